"""One runner for all suites: records made in batches by all processes, kept as they are made, and their figures.

A suite says what its protocol is, how the records of some keys are made, and what they come to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from rich.progress import Progress

from unison.data import Items
from unison.evaluation.held_out import Pictures
from unison.evaluation.records import Cuts, Evaluation, Record
from unison.evaluation.suites.common import Job
from unison.evaluation.suites.ledger import Ledger
from unison.evaluation.suites.options import Options
from unison.types import Item


@dataclass(frozen=True)
class Run(ABC):
    """One evaluation, ready to be run or gone on with."""

    name: ClassVar[str]
    """The suite's."""

    options: Options
    job: Job
    items: Sequence[Item] | Items

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on."""

    @abstractmethod
    def make(self, keys: Sequence[Any]) -> Iterable[Record]:
        """The records of some keys, each with its key as text in `key`; each is kept as soon as it comes."""

    def keys(self, process: int = 0, processes: int = 1) -> Sequence[Any]:
        """The keys that one process makes, of one process all of them in the order of the result.

        By default numbers of items: of the first `items`, where that is an option and not 0, or of all.
        """
        return range(len(self.items))[: self.options.told("items").get("items") or None][process::processes]

    @abstractmethod
    def result(self, records: list[Record]) -> Evaluation:
        """What the records of all keys come to."""

    def __call__(self) -> Evaluation | None:
        """Makes what is not there yet; None in all processes but the first."""
        records = self._finished()
        return None if records is None else self.result(records)

    def told(
        self, records: list[Record], figures: Mapping[str, Cuts], fields: Mapping[str, str], notes: Sequence[str] = ()
    ) -> Evaluation:
        """The evaluation, with the protocol that its figures hold for."""
        return Evaluation(0, records, self.name, self.ledger.protocol, figures, notes, fields=fields)

    @property
    def pictures(self) -> Pictures:
        """Where pictures are kept, and from where records name them."""
        return self.job.pictures(self.name)

    @cached_property
    def ledger(self) -> Ledger:
        """What is made already; all processes open it at once."""
        return Ledger(self.job.file(self.name), self.protocol(), self.job)

    def _finished(self) -> list[Record] | None:
        """The records of all keys in order, in the first process."""
        processes, ledger, size = self.job.processes, self.ledger, self.options.batch_size
        own = self.keys(processes.process_index, processes.num_processes)
        todo = [key for key in own if ledger.is_open(str(key))]
        with Progress(transient=True, disable=not processes.is_main_process) as progress:
            task = progress.add_task(self.name, total=len(todo))
            for start in range(0, len(todo), size):
                for record in self.make(todo[start : start + size]):
                    ledger.append(record)
                    progress.advance(task)
        processes.wait_for_everyone()
        if not processes.is_main_process:
            return None
        found = ledger.read()
        return [found[str(key)] for key in self.keys()]
