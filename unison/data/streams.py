"""Items from the rows of a stream, which skips to where a run stopped."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unison.data.rows import RowReader, check_index, undecoded
from unison.types import Item

if TYPE_CHECKING:
    import datasets

KEPT = 256  # rows of a stream that are held in memory behind the last one


@dataclass(eq=False)
class StreamItems:
    """Items from the rows of a `datasets.IterableDataset`, epoch after epoch without end, shuffled in a buffer.

    The order depends on `seed` and `buffer` alone. Item i is found by walking there, over rows that are read but not
    decoded; the last `KEPT` rows are held, and an index before them starts over. Ids are numbered, so that a row
    that comes again is another item. A bad row raises `BadRow`, or where it is skipped is replaced by the next.

    Raises:
        ValueError: (on access) a row that cannot be read, or `KEPT` bad rows.
    """

    stream: datasets.IterableDataset
    reader: RowReader
    buffer: int
    """Rows from which the next one is drawn at random."""
    seed: int
    _rows: dict[int, Mapping[str, Any]] = field(init=False, repr=False, default_factory=dict)
    _walk: Iterator[tuple[int, Mapping[str, Any]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.stream = undecoded(self.stream).shuffle(seed=self.seed, buffer_size=self.buffer)
        self._walk = enumerate(self._endless())

    @property
    def skipped(self) -> int:
        return len(self.reader.bad)

    def __len__(self) -> int:
        """A stream has no last item."""
        return sys.maxsize

    def __getitem__(self, index: int, /) -> Item:
        check_index(index, len(self))
        for _, item in self.reader.good(range(index, index + KEPT), self._row, " of the stream"):
            stem = item.id if "id" in self.reader.column else Path(self.reader.source).stem
            return replace(item, id=f"{stem}-{index}")
        raise ValueError(f"{self.reader.source}: {KEPT} bad rows one after another; the warnings above say why")

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
            yield from rows_of(self.stream, self.reader.source)


def columns_of(stream: datasets.IterableDataset, source: str | Path) -> list[str]:
    """The columns of a stream, by its first row.

    Raises:
        ValueError: it has none, or none that can be read.
    """
    for row in rows_of(undecoded(stream), source):
        return list(row)
    raise ValueError(f"{source} has no rows")


def rows_of(stream: datasets.IterableDataset, source: str | Path) -> Iterator[Mapping[str, Any]]:
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
