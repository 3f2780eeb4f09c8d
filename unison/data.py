"""Items to train on and to evaluate on: the embedded world, local files and folders, data sets of the hub.

Every source is random access and deterministic, and `step_indices` is a pure function of the step, so a
resumed run sees the same items in the same order without saved state.
"""

from __future__ import annotations

import difflib
import glob
import io
import json
import logging
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image, ImageOps

from unison.config import DataConfig
from unison.types import AnswerKind, Item
from unison.world.render import render
from unison.world.scene import TASKS, Split, ask, caption, sample

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

COLUMNS = {
    "prompt": "prompt",
    "image": "real_image",
    "question": "qa_problem",
    "answer": "qa_solution",
    "reply": "qa_reply",
    "kind": "qa_type",
    "task": "task",
    "id": "id",
}
"""Column of each field of an item unless `data.columns` says otherwise: the names of the CoRL data sets."""

KINDS: dict[str, AnswerKind] = {
    "multiple_choice": "multiple_choice",
    "multi_choice": "multiple_choice",
    "mcq": "multiple_choice",
    "mc": "multiple_choice",
    "open_ended": "open_ended",
    "free_form": "open_ended",
    "oe": "open_ended",
    "vqa": "open_ended",
}
READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
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


class BadRow(ValueError):  # noqa: N818 - a noun of the data, as users meet it in messages
    """A row that cannot become an item; the message names the source, the row (from 0) and the column."""


# -- the embedded world --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WorldItems:
    """`size` items of the synthetic world, the six tasks in turn; item i depends on (split, seed, i) alone.

    `questions` changes the form of a question, never the scene: item i shows the same picture in all forms.
    """

    split: Split
    questions: str
    suffix: str
    seed: int
    size: int
    skipped: int = field(default=0, init=False)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Item:
        _check_index(index, self.size)
        rng = random.Random(f"{self.split}:{self.seed}:{index}")
        task = TASKS[index % len(TASKS)]
        description, scene = sample(rng, task, self.split)
        image = render(scene)
        question = ask(rng, description, scene)
        choice = {"open_ended": False, "multiple_choice": True, "mixed": rng.random() < 0.5}[self.questions]
        answer = question.letter if choice else question.answer
        return Item(
            id=f"world-{self.split}-{self.seed}-{index}",
            prompt=description.prompt,
            image=image,
            question=_join(question.multiple_choice() if choice else question.text, self.suffix),
            answer=answer,
            reply=f"<think> {caption(scene)} </think><answer> {answer} </answer>",
            kind="multiple_choice" if choice else "open_ended",
            task=task,
        )


# -- tables --------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class TableItems:
    """Items from the rows of a map-style `datasets.Dataset`.

    A field whose column the table lacks is left out of every item; a field whose column it has must hold a
    usable value in every row. A bad row raises `BadRow`, or with `skip_bad_rows` is replaced by the next good
    row, under an id of its own (ids key the groups, and both rows may meet in one step).

    Raises:
        ValueError: a mapped column that the table lacks, neither prompts nor questions, questions without
            answers, repeated ids, no rows, or (on access) only bad rows.
    """

    dataset: datasets.Dataset
    columns: Mapping[str, str]
    """Column of a field where it differs from COLUMNS."""
    suffix: str
    skip_bad_rows: bool
    source: str | Path
    """Names the table in messages and ids; relative image paths start at this folder or file's folder."""
    _column: dict[str, str] = field(init=False, repr=False)
    _bad: set[int] = field(init=False, repr=False, default_factory=set)

    def __post_init__(self) -> None:
        self._column = _resolve_columns(self.dataset.column_names, self.columns, self.source)
        self.dataset = _undecoded(self.dataset.select_columns(sorted(set(self._column.values()))))
        if not len(self.dataset):
            raise ValueError(f"{self.source} has no rows")
        if "id" in self._column:
            _check_ids(self.dataset[self._column["id"]], self._column["id"], self.source)

    @property
    def skipped(self) -> int:
        return len(self._bad)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Item:
        _check_index(index, len(self))
        for row in (*range(index, len(self)), *range(index)):
            if row in self._bad:
                continue
            try:
                item = self._read(row)
            except BadRow as error:
                if not self.skip_bad_rows:
                    raise
                self._bad.add(row)
                log.warning("skipped: %s", error)
                continue
            return item if row == index else replace(item, id=f"{item.id} for row {index}")
        raise ValueError(f"{self.source}: all {len(self)} rows are bad; the warnings above say why")

    def _read(self, row: int) -> Item:
        values = self.dataset[row]
        text = {name: self._text(row, name, values[column]) for name, column in self._column.items() if name != "image"}
        image = self._image(row, values[self._column["image"]]) if "image" in self._column else None
        return Item(
            id=text.get("id", f"{Path(self.source).stem}-{row}"),
            prompt=text.get("prompt"),
            image=image,
            question=_join(text["question"], self.suffix) if "question" in text else None,
            answer=text.get("answer"),
            reply=text.get("reply"),
            kind=self._kind(row, text.get("kind", "open_ended")),
            task=text.get("task", "all"),
        )

    def _text(self, row: int, name: str, value: Any) -> str:
        if value is None or isinstance(value, dict | list | bytes):
            raise self._bad_row(row, name, f"{value!r:.60} is not text")
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # a whole number that its column's type turned into 3.0
        text = str(value).strip()
        if name == "answer":
            text = unwrap_answer(text)
        if not text:
            raise self._bad_row(row, name, "is empty")
        return text

    def _kind(self, row: int, value: str) -> AnswerKind:
        kind = KINDS.get(re.sub(r"[\s-]+", "_", value.lower()))
        if kind is None:
            raise self._bad_row(row, "kind", f"{value!r} is not one of {', '.join(KINDS)}")
        return kind

    def _image(self, row: int, value: Any) -> Image.Image:
        source = Path(self.source)
        try:
            return read_image(value, source if source.is_dir() else source.parent)
        except Exception as error:  # the decoders of PIL raise whatever a broken file provokes
            raise self._bad_row(row, "image", f"cannot be read: {error}") from error

    def _bad_row(self, row: int, name: str, what: str) -> BadRow:
        where = f"{self.source}, row {row}, column {self._column[name]!r} (field {name})"
        return BadRow(f"{where}: {what}; fix the row, or replace bad rows by the next with --data.skip_bad_rows true")


def _resolve_columns(available: Sequence[str], columns: Mapping[str, str], source: str | Path) -> dict[str, str]:
    """The column of each field that the table can fill.

    Raises:
        ValueError: an unknown field, a mapped column that is missing, or too few columns to make an item.
    """
    for name in columns:
        if name not in COLUMNS:
            raise ValueError(f"data.columns has the field {name!r}, which is not one of {', '.join(COLUMNS)}")
    mapping = COLUMNS | dict(columns)
    found = {name: column for name, column in mapping.items() if column in available}
    missing = [name for name in columns if name not in found]
    if not missing and "prompt" not in found and "question" not in found:
        missing = ["prompt", "question"]
    if not missing and "question" in found and "answer" not in found:
        missing = ["answer"]
    if missing:
        wanted = " or ".join(f"{mapping[name]!r} (field {name})" for name in missing)
        near = _nearest(mapping[missing[0]], missing[0], available)
        raise ValueError(
            f"{source} has no column {wanted}; it has {', '.join(available)}. "
            f"Name the right one with --data.columns {missing[0]}={near}"
        )
    return found


def _nearest(column: str, name: str, available: Sequence[str]) -> str:
    lower = {x.lower(): x for x in available}
    near = [y for x in (column, name) for y in difflib.get_close_matches(x.lower(), lower, n=1)]
    return lower[near[0]] if near else "<name>"


def _undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """Leaves image columns as bytes and paths: `read_image` decodes, so that a broken file is a bad row."""
    import datasets

    for name, feature in dataset.features.items():
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


def read_image(value: Any, root: Path) -> Image.Image:
    """An RGB picture from a PIL image, bytes, a path (relative to `root`) or a dict with `bytes` or `path`.

    Raises:
        ValueError: nothing to read. OSError and others: a missing or broken file.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise ValueError("there is no image")
    if not isinstance(value, Image.Image):
        value = Image.open(io.BytesIO(value) if isinstance(value, bytes) else root / value)
    value.load()  # opening reads only the header
    return ImageOps.exif_transpose(value).convert("RGB")


def unwrap_answer(text: str) -> str:
    """The inside of `<answer>..</answer>` where there is such a block."""
    block = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return block[1].strip() if block else text


def _join(question: str, suffix: str) -> str:
    return f"{question}\n{suffix}" if suffix else question


def _check_index(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise IndexError(f"item {index} of {size}")


# -- opening -------------------------------------------------------------------------------------------------


def open_items(source: str, split: Split, config: DataConfig, seed: int, size: int) -> Items:
    """The items of `world`, of a local file or folder, or of a hub data set.

    `seed` and `size` are those of the world; any other source has as many items as rows. Where files of a
    folder or splits of a hub data set are named after a split, only those of `split` are read.

    Raises:
        ValueError: the source is missing, unreadable, of unknown format, or lacks columns (see `TableItems`).
    """
    if source == "world":
        return WorldItems(split, config.questions, config.question_suffix, seed, size)
    path = Path(source).expanduser()
    if path.exists():
        files = _files(path, split)
        return _table(_load_files(files), config, files[0].parent if path.is_dir() else path)
    if source.startswith((".", "/", "~")) or path.suffix[1:].isalpha():
        raise ValueError(f"data.{split} = {source!r}: there is no such file or folder (looked for {path.absolute()})")
    return _table(_load_hub(source, split), config, source)


def _table(dataset: datasets.Dataset, config: DataConfig, source: str | Path) -> TableItems:
    return TableItems(dataset, config.columns, config.question_suffix, config.skip_bad_rows, source)


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


def _load_files(files: list[Path]) -> datasets.Dataset:
    """Reads local files offline; the arrow copy is kept in the system's temporary folder.

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
            **options,
        )
    except (DatasetGenerationError, ValueError, StopIteration) as error:
        names, why = ", ".join(map(str, files)), str(error.__cause__ or error) or "it is empty"
        raise ValueError(f"{names}: cannot be read as {reader}: {why}") from error


def _load_hub(source: str, split: Split) -> datasets.Dataset:
    """Loads a hub data set through the usual Hugging Face cache.

    Raises:
        ValueError: it cannot be reached, or has no split of this kind.
    """
    import datasets

    try:
        available = datasets.get_dataset_split_names(source)
        chosen = next((name for name in SPLIT_NAMES[split] if name in available), None)
        if chosen is not None:
            return datasets.load_dataset(source, split=chosen)
    except OSError as error:  # offline, unknown or private
        raise ValueError(
            f"data.{split} = {source!r} is neither `world`, nor a local path, nor a hub data set "
            f"that can be reached: {error}"
        ) from error
    raise ValueError(
        f"data.{split} = {source!r} has the splits {', '.join(available)}, none of {', '.join(SPLIT_NAMES[split])}"
    )


# -- order ---------------------------------------------------------------------------------------------------


def step_indices(count: int, items: int, step: int, seed: int) -> list[int]:
    """The item indices of a training step: the next `items` of an endless chain of permutations.

    Each epoch is a permutation of range(count) and may end within a step. The step then still holds no index
    twice, provided that a step takes at most half of the items (count >= 2 * items).

    Raises:
        ValueError: fewer items than a step takes.
    """
    if items > count:
        raise ValueError(
            f"optim.items_per_step = {items}: must be at most the {count} items of the data set; "
            "lower it or give more data"
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
    """Saves the item's picture and returns its row, without the fields that it lacks."""
    values = {name: getattr(item, name) for name in COLUMNS if name != "image"}
    if item.image is not None:
        item.image.save(folder / file_name)
        values["image"] = file_name
    row = {COLUMNS[name]: value for name, value in values.items() if value is not None}
    return row | ({"file_name": file_name} if item.image is not None else {})
