"""Items to train on and to evaluate on: the embedded world, prompts, local files and folders, data sets of the hub.

Every source is deterministic, and which items a step takes is a pure function of the step, so a resumed run sees the
same items in the same order without saved state. Tables are random access; a stream skips to where a run stopped.
"""

from __future__ import annotations

import glob
import itertools
import json
import logging
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unison.config import DataConfig, Suffix, is_prompts, world_kind
from unison.data.prompts import PromptItems, read_excluded
from unison.data.rows import COLUMNS, OPTIONS, PICTURES, WANTED, BadRow, RowReader, check_index
from unison.data.world import WorldItems
from unison.types import AnswerKind, Item, Split

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
KEPT = 256  # rows of a stream that are held in memory behind the last one
SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "eval": ("test", "validation", "eval", "val", "dev"),
}


class Items(Protocol):
    """A sequence of items; an index out of range is an IndexError, so `for item in items` ends."""

    @property
    def skipped(self) -> int:
        """Bad rows found and replaced so far, by this process."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


# -- tables --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class TableItems:
    """Items from the rows of a map-style `datasets.Dataset`, read as `RowReader` says.

    A bad row raises `BadRow`, or with `skip_bad_rows` is replaced by the next good row, under an id of its own (ids key
    the groups, and both rows may meet in one step).

    Raises:
        ValueError: columns that make no items, repeated ids, no rows, or (on access) only bad rows.
    """

    dataset: datasets.Dataset
    columns: Mapping[str, str]
    """Column of a field where it differs from COLUMNS."""
    suffix: Suffix
    skip_bad_rows: bool
    source: str | Path
    """Names the table in messages and ids; relative image paths start at this folder or file's folder."""
    kinds: Mapping[str, AnswerKind] = field(default_factory=dict)
    """Kinds of question beyond the known names."""
    _reader: RowReader = field(init=False, repr=False)
    _bad: set[int] = field(init=False, repr=False, default_factory=set)

    def __post_init__(self) -> None:
        self._reader = RowReader(self.dataset.column_names, self.columns, self.suffix, self.kinds, self.source)
        column = self._reader.column
        self.dataset = _undecoded(self.dataset.select_columns(sorted(set(column.values()))))
        if not len(self.dataset):
            raise ValueError(f"{self.source} has no rows")
        if "id" in column:
            _check_ids(self.dataset[column["id"]], column["id"], self.source)

    @property
    def skipped(self) -> int:
        return len(self._bad)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Item:
        check_index(index, len(self))
        for row in (*range(index, len(self)), *range(index)):
            if row in self._bad:
                continue
            item = _read_or_skip(self, row, row, self.dataset[row])
            if item is None:
                continue
            return item if row == index else replace(item, id=f"{item.id} for row {index}")
        raise ValueError(f"{self.source}: all {len(self)} rows are bad; the warnings above say why")

    def complaints(self) -> list[str]:
        """What is wrong with each bad row, pictures apart: a check of the whole table before a run."""
        names = {column for name, column in self._reader.column.items() if name not in PICTURES}
        found = []
        for row, values in enumerate(self.dataset.select_columns(sorted(names))):
            try:
                self._reader.read(row, values)
            except BadRow as error:
                found.append(str(error))
        return found


def _undecoded(dataset: Any) -> Any:
    """Leaves image columns as bytes and paths: `read_image` decodes, so that a broken file is a bad row."""
    import datasets

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def _check_ids(ids: Sequence[Any], column: str, source: str | Path) -> None:
    for value, times in Counter(str(x).strip() for x in ids if x is not None).most_common(1):
        if times > 1:
            raise ValueError(
                f"{source}, column {column!r} (field id): {value!r} occurs {times} times; "
                "ids must differ, for they tell groups apart (without such a column rows are numbered)"
            )


# -- streams -------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class StreamItems:
    """Items from the rows of a `datasets.IterableDataset`, epoch after epoch without end, shuffled in a buffer.

    The order depends on `seed` and `buffer` alone. Item i is found by walking there, over rows that are read but not
    decoded; the last `KEPT` rows are held, and an index before them starts over. Ids are numbered, so that a row
    that comes again is another item. A bad row raises `BadRow`, or with `skip_bad_rows` is replaced by the next.

    Raises:
        ValueError: columns that make no items, no rows, or (on access) a row that cannot be read or `KEPT` bad rows.
    """

    stream: datasets.IterableDataset
    columns: Mapping[str, str]
    suffix: Suffix
    skip_bad_rows: bool
    source: str | Path
    kinds: Mapping[str, AnswerKind]
    buffer: int
    """Rows from which the next one is drawn at random."""
    seed: int
    _reader: RowReader = field(init=False, repr=False)
    _bad: set[int] = field(init=False, repr=False, default_factory=set)
    _rows: dict[int, Mapping[str, Any]] = field(init=False, repr=False, default_factory=dict)
    _walk: Iterator[tuple[int, Mapping[str, Any]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        first = next(_rows(self.stream, self.source), None)
        if first is None:
            raise ValueError(f"{self.source} has no rows")
        self._reader = RowReader(list(first), self.columns, self.suffix, self.kinds, self.source)
        self.stream = self.stream.shuffle(seed=self.seed, buffer_size=self.buffer)
        self._walk = enumerate(self._endless())

    @property
    def skipped(self) -> int:
        return len(self._bad)

    def __len__(self) -> int:
        """A stream has no last item."""
        return sys.maxsize

    def __getitem__(self, index: int, /) -> Item:
        check_index(index, len(self))
        for place in range(index, index + KEPT):
            if place in self._bad:
                continue
            item = _read_or_skip(self, place, f"{place} of the stream", self._row(place))
            if item is None:
                continue
            stem = item.id if "id" in self._reader.column else Path(self.source).stem
            return replace(item, id=f"{stem}-{index}")
        raise ValueError(f"{self.source}: {KEPT} bad rows one after another; the warnings above say why")

    def _row(self, place: int) -> Mapping[str, Any]:
        if self._rows and place < min(self._rows):
            self._rows, self._walk = {}, enumerate(self._endless())
        while place not in self._rows:
            passed, row = next(self._walk)
            self._rows[passed] = row
            self._rows.pop(passed - KEPT, None)
        return self._rows[place]

    def _endless(self) -> Iterator[Mapping[str, Any]]:
        for epoch in itertools.count():
            self.stream.set_epoch(epoch)  # another order
            yield from _rows(self.stream, self.source)


def _read_or_skip(
    items: TableItems | StreamItems, place: int, where: int | str, values: Mapping[str, Any]
) -> Item | None:
    """The item of a row; None if the row is bad and bad rows are skipped, which is remembered and logged.

    Raises:
        BadRow: bad rows are not skipped.
    """
    try:
        return items._reader.read(where, values)
    except BadRow as error:
        if not items.skip_bad_rows:
            raise
        items._bad.add(place)
        log.warning("skipped: %s", error)
        return None


def _rows(stream: datasets.IterableDataset, source: str | Path) -> Iterator[Mapping[str, Any]]:
    """The rows of one pass, as they come.

    Raises:
        ValueError: a broken file, or a broken connection; says how far it got.
    """
    count = 0
    try:
        for row in stream:
            yield row
            count += 1
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: after {count} rows of the stream, the next cannot be read: {error}") from error


# -- opening -------------------------------------------------------------------------------------------------


def open_items(source: str, split: Split, config: DataConfig, seed: int, size: int) -> Items:
    """The items of the world, of `prompts`, of a local file or folder, or of a hub data set, as `DataConfig` says.

    `seed` and `size` are those of the first two; any other source has as many items as rows. Where files of a
    folder or splits of a hub data set are named after a split, only those of `split` are read. With `data.streaming`
    training items come from a stream in the order of `seed`, and held-out items are the first `size` rows.

    Raises:
        ValueError: the source is missing, unreadable, of unknown format, or lacks columns (see `RowReader`).
    """
    suffix = config.question_suffix
    if kind := world_kind(source, f"data.{split}"):
        return WorldItems(split, config.questions, suffix, seed, size, kind)
    if is_prompts(source):
        file = source.partition(":")[2]
        return PromptItems(split, suffix, seed, size, read_excluded(Path(file).expanduser()) if file else frozenset())
    path, name = Path(source).expanduser(), source
    if path.exists():
        files = _files(path, split)
        rows, name = _load_files(files, bool(config.streaming)), files[0].parent if path.is_dir() else path
    elif source.startswith((".", "/", "~")) or path.suffix[1:].isalpha():
        raise ValueError(f"data.{split} = {source!r}: there is no such file or folder (looked for {path.absolute()})")
    else:
        rows = _load_hub(source, split, bool(config.streaming))
    if config.streaming and split == "train":
        options = (config.columns, suffix, config.skip_bad_rows, name, config.kinds)
        return StreamItems(_undecoded(rows), *options, buffer=config.streaming, seed=seed)
    if config.streaming:
        from datasets import Dataset

        rows = Dataset.from_list(list(_rows(_undecoded(rows).take(size), name)))
    return TableItems(rows, config.columns, suffix, config.skip_bad_rows, name, config.kinds)


def _files(path: Path, split: Split) -> list[Path]:
    """The data files of a file or folder that belong to the split.

    Raises:
        ValueError: unknown format, no data files, or none of this split.
    """
    if path.is_file():
        if path.suffix not in READERS:
            raise ValueError(f"data.{split} = {str(path)!r}: the format must be one of {', '.join(READERS)}")
        return [path]
    for folder in (path, path / "data"):
        for pattern in ("metadata.jsonl", "*.jsonl", "*.parquet"):
            if files := sorted(folder.glob(pattern)):
                return _of_split(files, path, split)
    raise ValueError(f"data.{split} = {str(path)!r}: the folder has no metadata.jsonl, *.jsonl or *.parquet")


def _of_split(files: list[Path], path: Path, split: Split) -> list[Path]:
    names = {file: re.split(r"[-_.]", file.name.lower())[0] for file in files}
    if not any(name in known for name in names.values() for known in SPLIT_NAMES.values()):
        return files
    chosen = [file for file in files if names[file] in SPLIT_NAMES[split]]
    if not chosen:
        raise ValueError(
            f"data.{split} = {str(path)!r}: no file is named {' or '.join(SPLIT_NAMES[split])}; "
            f"give one of {', '.join(file.name for file in files)} itself to use it for {split}"
        )
    return chosen


def _load_files(files: list[Path], streaming: bool) -> Any:
    """Reads local files offline; the arrow copy, if not streaming, is kept in the system's temporary folder.

    Raises:
        ValueError: a file is not what its suffix says, or its rows do not share one type per column.
    """
    import datasets
    from datasets.exceptions import DatasetGenerationError

    cache = Path(tempfile.gettempdir()) / f"unison-datasets-{os.getuid()}"
    reader = READERS[files[0].suffix]
    options: dict[str, Any] = {"keep_default_na": False} if reader == "csv" else {}  # the answer "None" is an answer
    try:
        return datasets.load_dataset(
            reader,
            data_files=[glob.escape(str(file.absolute())) for file in files],
            split="train",
            cache_dir=str(cache),
            streaming=streaming,
            **options,
        )
    except (DatasetGenerationError, ValueError, StopIteration) as error:
        names, why = ", ".join(map(str, files)), str(error.__cause__ or error) or "it is empty"
        raise ValueError(f"{names}: cannot be read as {reader}: {why}") from error


def _load_hub(source: str, split: Split, streaming: bool) -> Any:
    """Loads a hub data set through the usual Hugging Face cache, or opens it as a stream; one of its configurations is
    named after a colon.

    Raises:
        ValueError: it cannot be reached, or has no split of this kind.
    """
    import datasets

    try:
        name = source.split(":", 1)
        available = datasets.get_dataset_split_names(*name)
        chosen = next((name for name in SPLIT_NAMES[split] if name in available), None)
        if chosen is not None:
            return datasets.load_dataset(*name, split=chosen, streaming=streaming)
    except OSError as error:  # offline, unknown or private
        raise ValueError(
            f"data.{split} = {source!r} is neither `world` nor `prompts`, nor a local path, nor a hub data set "
            f"that can be reached: {error}"
        ) from error
    raise ValueError(
        f"data.{split} = {source!r} has the splits {', '.join(available)}, none of {', '.join(SPLIT_NAMES[split])}"
    )


# -- order ---------------------------------------------------------------------------------------------------


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


# -- export --------------------------------------------------------------------------------------------------


def export(items: WorldItems | TableItems, folder: Path, count: int) -> Path:
    """Writes the first `count` items as `metadata.jsonl` and `images/*.png` with the CoRL columns.

    Questions are written without their suffix, since `open_items` appends it. `file_name` repeats the path of
    the picture because the imagefolder reader of `datasets` wants that column. Returns the folder.

    Raises:
        ValueError: more items than there are, or the folder already has a `metadata.jsonl`.
    """
    folder = Path(folder)
    if not 1 <= count <= len(items):
        raise ValueError(f"count = {count}: must be from 1 to the {len(items)} items there are")
    if (folder / "metadata.jsonl").exists():
        raise ValueError(f"folder = {str(folder)!r} already has a metadata.jsonl: name another folder")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    plain = replace(items, suffix="")
    rows = [json.dumps(_export_row(plain[index], folder, f"images/{index:06d}.png")) for index in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def _export_row(item: Item, folder: Path, file_name: str) -> dict[str, str]:
    """Saves the item's pictures and returns its row, without the fields that it lacks."""
    values = {name: getattr(item, name) for name in COLUMNS if name not in (*PICTURES, *OPTIONS, *WANTED)}
    files = {"image": file_name, "target_image": file_name.replace(".png", "-target.png")}
    for name, picture in (("image", item.image), ("target_image", item.target_image)):
        if picture is not None:
            picture.save(folder / files[name])
            values[name] = files[name]
    row = {COLUMNS[name]: value for name, value in values.items() if value is not None}
    return row | ({"file_name": file_name} if item.image is not None else {})
