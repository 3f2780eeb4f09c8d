"""Items from the rows of a table in random access, and items written as a table."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unison.data.rows import COLUMNS, PICTURES, BadRow, RowReader, Suffix, check_index, text_columns, undecoded
from unison.data.world import WorldItems
from unison.types import Item

if TYPE_CHECKING:
    import datasets


@dataclass(eq=False)
class TableItems:
    """Items from the rows of a map-style `datasets.Dataset`, read as `RowReader` says.

    A bad row raises `BadRow`, or where it is skipped is replaced by the next good row, under an id of its own (ids key
    the groups, and both rows may meet in one step).

    Raises:
        ValueError: repeated ids, no rows, or (on access) only bad rows.
    """

    dataset: datasets.Dataset
    reader: RowReader
    """Of the table's columns."""

    def __post_init__(self) -> None:
        column = self.reader.column
        self.dataset = undecoded(self.dataset.select_columns(sorted(set(column.values()))))
        if not len(self.dataset):
            raise ValueError(f"{self.reader.source} has no rows")
        if "id" in column:
            _check_ids(self.dataset[column["id"]], column["id"], self.reader.source)

    @property
    def suffix(self) -> Suffix:
        """What questions end with."""
        return self.reader.suffix

    @property
    def skipped(self) -> int:
        return len(self.reader.bad)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int, /) -> Item:
        check_index(index, len(self))
        rows = itertools.chain(range(index, len(self)), range(index))
        for row, item in self.reader.good(rows, self.dataset.__getitem__):
            return item if row == index else replace(item, id=f"{item.id} for row {index}")
        raise ValueError(f"{self.reader.source}: all {len(self)} rows are bad; the warnings above say why")

    def complaints(self) -> list[str]:
        """What is wrong with each bad row, pictures apart: a check of the whole table before a run."""
        names = {column for name, column in self.reader.column.items() if name not in PICTURES}
        found = []
        for row, values in enumerate(self.dataset.select_columns(sorted(names))):
            try:
                self.reader.read(row, values)
            except BadRow as error:
                found.append(str(error))
        return found


def _check_ids(ids: Sequence[Any], column: str, source: str | Path) -> None:
    for value, times in Counter(str(x).strip() for x in ids if x is not None).most_common(1):
        if times > 1:
            raise ValueError(
                f"{source}, column {column!r} (field id): {value!r} occurs {times} times; "
                "ids must differ, for they tell groups apart (without such a column rows are numbered)"
            )


def export(items: WorldItems | TableItems, folder: Path, count: int) -> Path:
    """Writes the first `count` items as `metadata.jsonl` and `images/*.png` with the CoRL columns.

    Questions are written without their suffix, which `open_items` appends. `file_name` repeats the path of
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
    rows = [json.dumps(_row(items[index], items.suffix, folder, f"images/{index:06d}.png")) for index in range(count)]
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def _row(item: Item, suffix: Suffix, folder: Path, file_name: str) -> dict[str, str]:
    """Saves the item's pictures and returns its row, without the fields that it lacks."""
    row = text_columns(item, suffix)
    files = {"image": file_name, "target_image": file_name.replace(".png", "-target.png")}
    for name, picture in (("image", item.image), ("target_image", item.target_image)):
        if picture is not None:
            picture.save(folder / files[name])
            row[COLUMNS[name]] = files[name]
    return row | ({"file_name": file_name} if item.image is not None else {})
