"""The rows of a local file or folder, or of a data set of the hub, as `datasets` reads them."""

from __future__ import annotations

import glob
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from unison.hub import is_hub_id
from unison.types import Split

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
SPLIT_NAMES: dict[str, tuple[str, ...]] = {
    "train": ("train",),
    "eval": ("test", "validation", "eval", "val", "dev"),
}


def open_rows(source: str, split: Split, streaming: bool) -> tuple[Any, str | Path]:
    """The rows of a split, a table or a stream of `datasets`, and what to call them in messages and ids.

    Raises:
        ValueError: the source is missing, unreadable or of unknown format, or has nothing of this split.
    """
    path = Path(source).expanduser()
    if path.exists():
        files = _files(path, split)
        return _load_files(files, streaming), files[0].parent if path.is_dir() else path
    if is_hub_id(source) or source.isidentifier():  # some of the hub's first data sets have no owner
        return _load_hub(source, split, streaming), source
    raise ValueError(
        f"data.{split} = {source!r}: there is no such file or folder (looked for {path.absolute()}); other sources are "
        "`world`, `prompts`, `coco-prompts`, and data sets of the hub, which are named owner/name"
    )


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
