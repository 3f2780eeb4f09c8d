"""Items to train on and to evaluate on, by the name of their source.

    world.py    the embedded world's scenes, edits, riddles, verdicts and puzzles
    prompts.py  drawing prompts in GenEval's six categories
    files.py    rows of local files and folders, and of data sets of the hub
    tables.py   items from such rows in random access, and items written as a table
    streams.py  items from a stream of rows
    rows.py     a row becomes an item, or an error that names source, row and column
    geneval.py  GenEval's prompt file
    objects.py  the nouns and colours of prompts, and their grammar

To add a source that makes its items, write them in a file of their own, as a sequence that is `Items`, and give it a
name in `open_items`. To read another format, give its ending a reader in `files.py`.

Every source is deterministic, and which items a step takes is a pure function of the step, so a resumed run sees the
same items in the same order without saved state. Tables are random access; a stream skips to where a run stopped.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from unison.config import COCO_PROMPTS, HELD_OUT, DataConfig, is_prompts, world_kind
from unison.data.files import open_rows
from unison.data.prompts import PromptItems, read_excluded
from unison.data.rows import RowReader, undecoded
from unison.data.streams import StreamItems, columns_of, rows_of
from unison.data.tables import TableItems
from unison.data.world import WorldItems
from unison.types import Item, Split

HELD_OUT_EVERY = 40
"""One row in so many is held out where `data.eval` asks for rows of the training data."""


class Items(Protocol):
    """A sequence of items; an index out of range is an IndexError, so `for item in items` ends."""

    @property
    def skipped(self) -> int:
        """Bad rows found and replaced so far, by this process."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


def open_items(source: str, split: Split, config: DataConfig, seed: int, size: int) -> Items:
    """The items of the world, of `prompts` or `coco-prompts`, of a local file or folder, or of a hub data set, as
    `DataConfig` says.

    `seed` and `size` are those of the first three; any other source has as many items as rows. Where files of a
    folder or splits of a hub data set are named after a split, only those of `split` are read. With `data.streaming`
    training items come from a stream in the order of `seed`, and held-out items are the first `size` rows.

    Raises:
        ValueError: the source is missing, unreadable, of unknown format, or lacks columns (see `RowReader`).
    """
    suffix = config.question_suffix
    if kind := world_kind(source, f"data.{split}"):
        return WorldItems(split, config.questions, suffix, seed, size, kind)
    place, _, file = source.partition(":")
    if is_prompts(source) or place == COCO_PROMPTS:
        excluded = read_excluded(Path(file).expanduser()) if file else frozenset()
        return PromptItems(split, suffix, seed, size, excluded, detector=place == COCO_PROMPTS)
    shared = config.eval == HELD_OUT and source == config.train
    rows, name = open_rows(source, "train" if shared else split, bool(config.streaming))
    rows = part(undecoded(rows), split, bool(config.streaming)) if shared else rows
    streamed = bool(config.streaming) and split == "train"
    if config.streaming and not streamed:
        from datasets import Dataset

        rows = Dataset.from_list(list(rows_of(undecoded(rows).take(size), name)))
    columns = columns_of(rows, name) if streamed else rows.column_names
    reader = RowReader(columns, config.columns, suffix, config.kinds, name, config.skip_bad_rows)
    return StreamItems(rows, reader, config.streaming, seed) if streamed else TableItems(rows, reader)


def part(rows: Any, split: Split, streamed: bool) -> Any:
    """The rows of a table or stream that are held out, or those that are left for training."""

    def belongs(place: int) -> bool:
        return (place % HELD_OUT_EVERY == 0) is (split == "eval")

    if streamed:
        return rows.filter(lambda _, place: belongs(place), with_indices=True)
    return rows.select(list(filter(belongs, range(len(rows)))))


def step_items(items: Items, count: int, step: int, seed: int) -> list[int]:
    """Which `count` items a training step takes: those of `step_indices`, or the next of a stream."""
    if isinstance(items, StreamItems):
        return list(range(step * count, (step + 1) * count))
    return step_indices(len(items), count, step, seed)


def step_indices(count: int, items: int, step: int, seed: int) -> list[int]:
    """The item indices of a training step: the next `items` of an endless chain of permutations.

    Each epoch is a permutation of range(count) and may end within a step. The step then still holds no index
    twice, provided that a step takes at most half of the items (count >= 2 * items).

    Raises:
        ValueError: fewer items than a step takes.
    """
    if items > count:
        raise ValueError(
            f"step.items = {items}: must be at most the {count} items of the data set; lower it or give more data"
        )
    places = range(step * items, (step + 1) * items)
    return [_epoch(count, items, seed, place // count)[place % count] for place in places]


@lru_cache(maxsize=4)
def _epoch(count: int, items: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation that puts off what the step it shares with the previous epoch has already taken."""
    order = _permutation(count, seed, epoch)
    begun = epoch * count % items  # places of the step under way that the previous epoch filled
    taken = set(_permutation(count, seed, epoch - 1)[count - begun :])
    return (*sorted(order[:items], key=lambda index: index in taken), *order[items:])


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(random.Random(f"{seed}:{epoch}").sample(range(count), count))
