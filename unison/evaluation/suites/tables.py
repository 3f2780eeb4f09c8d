"""The rows of a prompt file, wherever it is: CSV, JSON, JSONL, Parquet, a folder of these, or a data set of the hub."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unison.data.files import SPLIT_NAMES
from unison.hub import ROWS, is_hub_id


class Row(NamedTuple):
    """A row, and where it stands."""

    where: str
    values: dict[str, Any]

    def text(self, name: str) -> str:
        """The row's text in a column.

        Raises:
            ValueError: there is none.
        """
        value = self.values.get(name)
        if value is None or not str(value).strip():
            raise ValueError(f"{self.where}: {name} is empty; every row needs one")
        return str(value).strip()

    def number(self, name: str) -> int:
        """The row's whole number in a column.

        Raises:
            ValueError: there is none.
        """
        text = self.text(name)
        if not text.removesuffix(".0").isdigit():
            raise ValueError(f"{self.where}: {name} = {text!r} is no whole number; write one, such as 1")
        return int(text.removesuffix(".0"))


def read_rows(source: str, columns: Sequence[str], suggested: str) -> list[Row]:
    """All rows of a source, each with at least these columns.

    Args:
        suggested: the file that a user of the suite has in mind, for messages.

    Raises:
        ValueError: no such source, one that cannot be read, without rows, or without a column.
    """
    path = Path(source).expanduser()
    if path.exists():
        rows = [row for file in _files(path, suggested) for row in _read_file(file)]
    elif not is_hub_id(source):
        raise ValueError(f"prompts = {source!r}: no such file; give {suggested}, or a hub id of the form owner/name")
    else:
        rows = _read_hub(source, suggested)
    if not rows:
        raise ValueError(f"prompts = {source!r}: it holds no rows; give {suggested}")
    for row in rows:
        if None in row.values:
            raise ValueError(f"{row.where}: it has more fields than the header; put quotes around texts with commas")
        if missing := [name for name in columns if name not in row.values]:
            known = ", ".join(str(name) for name in row.values)
            raise ValueError(f"{row.where}: there is no {missing[0]!r}, only {known}; give {suggested}")
    return rows


def digest(rows: Sequence[Row]) -> str:
    """Changes with what the rows say."""
    told = json.dumps([row.values for row in rows], sort_keys=True, default=str)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


def _files(path: Path, suggested: str) -> list[Path]:
    files = sorted(file for file in path.iterdir() if file.suffix in ROWS) if path.is_dir() else [path]
    if not files or files[0].suffix not in ROWS:
        endings = ", ".join(ROWS)
        raise ValueError(f"prompts = {str(path)!r}: no file that ends in {endings} is there; give {suggested}")
    return files


def _read_file(path: Path) -> list[Row]:
    try:
        values = list(_values(path))
    except (ValueError, csv.Error, OSError) as error:
        raise ValueError(f"prompts = {str(path)!r}: cannot be read as {path.suffix[1:]}: {error}") from error
    return _numbered(values, str(path))


def _values(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        from pyarrow import parquet

        yield from parquet.read_table(path).to_pylist()
        return
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".csv":
        csv.field_size_limit(2**24)
        yield from csv.DictReader(io.StringIO(text, newline=""), strict=True)
    elif path.suffix == ".jsonl":
        yield from (json.loads(line) for line in text.split("\n") if line.strip())
    else:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise ValueError(f"it holds no list of rows but a {type(rows).__name__}")
        yield from rows


def _numbered(values: Sequence[Any], source: str) -> list[Row]:
    rows = [Row(f"prompts = {source!r}, row {number}", value) for number, value in enumerate(values, start=1)]
    for row in rows:
        if not isinstance(row.values, dict):
            raise ValueError(f"{row.where}: it is no object with named fields but {str(row.values)[:40]!r}")
    return rows


def _read_hub(source: str, suggested: str) -> list[Row]:
    """The rows of a data set's held-out split, or of its only one."""
    import datasets

    try:
        splits = datasets.get_dataset_split_names(*source.split(":", 1))
        chosen = next((name for name in SPLIT_NAMES["eval"] if name in splits), splits[0])
        if len(splits) > 1 and chosen not in SPLIT_NAMES["eval"]:
            raise ValueError(f"it has the splits {', '.join(splits)}, none of {', '.join(SPLIT_NAMES['eval'])}")
        values = datasets.load_dataset(*source.split(":", 1), split=chosen).to_list()
    except (OSError, ValueError) as error:  # offline, unknown or private; several configurations
        raise ValueError(
            f"prompts = {source!r} is no local file and cannot be read from the hub ({error}); give {suggested}"
        ) from error
    return _numbered(values, source)
