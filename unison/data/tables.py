"""Items from the rows of a table in random access."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unison.data.rows import PICTURES, BadRow, RowReader, Suffix, check_index, undecoded
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
