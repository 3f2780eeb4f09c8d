"""A row of a table becomes an item, or an error that names the source, the row and the column."""

from __future__ import annotations

import difflib
import io
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image, ImageOps

from unison.answers import lettered, unwrap_answer
from unison.config import Suffix
from unison.data.geneval import read_wanted
from unison.types import AnswerKind, Item, Wanted

log = logging.getLogger(__name__)

COLUMNS = {
    "prompt": "prompt",
    "image": "real_image",
    "question": "qa_problem",
    "answer": "qa_solution",
    "reply": "qa_reply",
    "source_caption": "source_caption",
    "target_caption": "target_caption",
    "target_image": "target_image",
    "reverse": "reverse",
    "kind": "qa_type",
    "choices": "choices",
    "correct": "correct_choice_idx",
    "task": "task",
    "tag": "tag",
    "include": "include",
    "exclude": "exclude",
    "id": "id",
}
"""Column of each field unless `data.columns` says otherwise: the names of the CoRL data sets, and those of A-OKVQA for
options that have a column of their own (`choices`, a list) and for the number, from 0, of the right one (`correct`).
`tag`, `include` and `exclude` are GenEval's: what a judge that detects objects must find in the drawing."""

OPTIONS = ("choices", "correct")  # used together or not at all
PICTURES = ("image", "target_image")
WANTED = ("tag", "include", "exclude")  # the first two together, for the `geneval` rewards

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
"""Kind of question by what the kind column says, in lower case with underscores; `data.kinds` adds to it."""

"""What every question ends with, or the questions of each kind."""


class BadRow(ValueError):  # noqa: N818 - a noun of the data, as users meet it in messages
    """A row that cannot become an item; the message names the source, the row (from 0) and the column."""


@dataclass(eq=False)
class RowReader:
    """Reads the rows of one table.

    A field whose column the table lacks is left out of every item; a field whose column it has must hold a usable value
    in every row. Only `choices` may be null: such a row has a plain answer.

    Raises:
        ValueError: a mapped column that the table lacks, neither prompts nor questions, questions without answers.
    """

    available: Sequence[str]
    """Columns of the table."""
    columns: Mapping[str, str]
    """Column of a field where it differs from COLUMNS."""
    suffix: Suffix
    kinds: Mapping[str, AnswerKind]
    """Kinds of question beyond KINDS, by what the kind column says."""
    source: str | Path
    """Names the table in messages and ids; relative image paths start at this folder or file's folder."""
    skip_bad_rows: bool = False
    bad: set[int] = field(init=False, repr=False, default_factory=set)
    """Places of bad rows that were skipped."""
    column: dict[str, str] = field(init=False)
    """Column of each field that the table can fill."""

    def __post_init__(self) -> None:
        self.column = resolve_columns(self.available, self.columns, self.source)

    def good(
        self, places: Iterable[int], values: Callable[[int], Mapping[str, Any]], of: str = ""
    ) -> Iterator[tuple[int, Item]]:
        """Places and items of the good rows, one after another; bad ones are remembered and logged.

        Raises:
            BadRow: bad rows are not skipped.
        """
        for place in places:
            if place in self.bad:
                continue
            try:
                item = self.read(f"{place}{of}", values(place))
            except BadRow as error:
                if not self.skip_bad_rows:
                    raise
                self.bad.add(place)
                log.warning("skipped: %s", error)
            else:
                yield place, item

    def read(self, row: int | str, values: Mapping[str, Any]) -> Item:
        """The item of a row; without a picture where `values` leaves its column out.

        Raises:
            BadRow: a value that cannot be used.
        """
        given = {name: values[column] for name, column in self.column.items() if column in values}
        options = self._options(row, given) if "choices" in given else []
        unread = (*PICTURES, *OPTIONS, *WANTED, *(["answer"] if options else []))
        text = {name: self._text(row, name, value) for name, value in given.items() if name not in unread}
        kind = self._kind(row, text.get("kind"), bool(options))
        question, answer, wanted = text.get("question"), text.get("answer"), self._wanted(row, given)
        if question and options:
            question, answer = lettered(question, options), ascii_uppercase[int(given["correct"])]
        elif question and not answer:
            raise self._bad_row(row, "choices", "is null, and there is no column with a plain answer")
        return Item(
            id=text.get("id", f"{Path(self.source).stem}-{row}"),
            prompt=text.get("prompt"),
            image=self._image(row, "image", given),
            question=join(question, self.suffix, kind) if question else None,
            answer=answer,
            reply=text.get("reply"),
            source_caption=text.get("source_caption"),
            target_caption=text.get("target_caption"),
            target_image=self._image(row, "target_image", given),
            reverse=text.get("reverse"),
            kind=kind,
            task=text.get("task") or (wanted.tag if wanted else "all"),
            wanted=wanted,
        )

    def _wanted(self, row: int | str, given: Mapping[str, Any]) -> Wanted | None:
        """What GenEval's columns say; nothing where they are not both there."""
        if "include" not in given or "tag" not in given:
            return None
        try:
            return read_wanted({name: given.get(name) for name in WANTED})
        except ValueError as error:
            raise self._bad_row(row, "include", str(error)) from error

    def _options(self, row: int | str, given: Mapping[str, Any]) -> list[str]:
        """The options of a multiple-choice question; none if the row has none."""
        choices, correct = given["choices"], given["correct"]
        if choices is None:
            return []
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(ascii_uppercase):
            raise self._bad_row(row, "choices", f"{choices!r:.60} is not a list of 2 to {len(ascii_uppercase)} options")
        if correct not in range(len(choices)):
            rule = f"from 0 to {len(choices) - 1}"
            raise self._bad_row(row, "correct", f"{correct!r:.60} is not the number of an option, {rule}")
        return [self._text(row, "choices", choice) for choice in choices]

    def _text(self, row: int | str, name: str, value: Any) -> str:
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

    def _kind(self, row: int | str, value: str | None, has_options: bool) -> AnswerKind:
        if value is None:
            return "multiple_choice" if has_options else "open_ended"
        kind = self.kinds.get(value) or KINDS.get(re.sub(r"[\s-]+", "_", value.lower()))
        if kind is None:
            known = ", ".join([*KINDS, *self.kinds])
            raise self._bad_row(row, "kind", f"{value!r} is not one of {known}: say what it is with --data.kinds")
        if has_options and kind == "open_ended":
            raise self._bad_row(
                row, "kind", f"{value!r} is open-ended, but column {self.column['choices']!r} has options"
            )
        return kind

    def _image(self, row: int | str, name: str, given: Mapping[str, Any]) -> Image.Image | None:
        if name not in given:
            return None
        source = Path(self.source)
        try:
            return read_image(given[name], source if source.is_dir() else source.parent)
        except Exception as error:  # the decoders of PIL raise whatever a broken file provokes
            raise self._bad_row(row, name, f"cannot be read: {error}") from error

    def _bad_row(self, row: int | str, name: str, what: str) -> BadRow:
        where = f"{self.source}, row {row}, column {self.column[name]!r} (field {name})"
        return BadRow(f"{where}: {what}; fix the row, or replace bad rows by the next with --data.skip-bad-rows")


def check_index(index: int, size: int) -> None:
    """Rejects an index that a sequence of items lacks, by which iteration knows its end.

    Raises:
        IndexError: there is no such item.
    """
    if not 0 <= index < size:
        raise IndexError(f"item {index} of {size}")


def undecoded(dataset: Any) -> Any:
    """Leaves image columns as bytes and paths: `read_image` decodes, so that a broken file is a bad row."""
    import datasets

    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def resolve_columns(available: Sequence[str], columns: Mapping[str, str], source: str | Path) -> dict[str, str]:
    """The column of each field that the table can fill.

    Raises:
        ValueError: an unknown field, a mapped column that is missing, or too few columns to make an item.
    """
    for name in columns:
        if name not in COLUMNS:
            raise ValueError(f"data.columns has the field {name!r}, which is not one of {', '.join(COLUMNS)}")
    mapping = COLUMNS | dict(columns)
    found = {name: column for name, column in mapping.items() if column in available}
    asked = {*columns, *(OPTIONS if any(name in columns for name in OPTIONS) else ())}
    if not all(name in found for name in OPTIONS):
        found = {name: column for name, column in found.items() if name not in OPTIONS or name in asked}
    missing = [name for name in mapping if name in asked and name not in found]
    if not missing and "prompt" not in found and "question" not in found:
        missing = ["prompt", "question"]
    if not missing and "question" in found and "answer" not in found and "choices" not in found:
        missing = ["answer"]
    if missing:
        wanted = " or ".join(f"{mapping[name]!r} (field {name})" for name in missing)
        near = _nearest(mapping[missing[0]], missing[0], available)
        raise ValueError(
            f"{source} has no column {wanted}; it has {', '.join(available)}. "
            f"Name the right one with --data.columns {missing[0]} {near}"
        )
    return found


def _nearest(column: str, name: str, available: Sequence[str]) -> str:
    lower = {x.lower(): x for x in available}
    near = [y for x in (column, name) for y in difflib.get_close_matches(x.lower(), lower, n=1)]
    return lower[near[0]] if near else "<name>"


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


def join(question: str, suffix: Suffix, kind: AnswerKind) -> str:
    """The question with its suffix on a line of its own."""
    text = suffix if isinstance(suffix, str) else suffix.get(kind, "")
    return f"{question}\n{text}" if text else question


def text_columns(item: Item, suffix: Suffix) -> dict[str, str]:
    """What a row says of an item in text, the question without its suffix; pictures, and what becomes an item's other
    fields when it is read, are left out."""
    values = {name: getattr(item, name) for name in COLUMNS if name not in (*PICTURES, *OPTIONS, *WANTED)}
    if item.question:
        values["question"] = item.question.removesuffix(join("", suffix, item.kind))
    return {COLUMNS[name]: value for name, value in values.items() if value is not None}
