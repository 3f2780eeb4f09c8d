"""The records of an evaluation, made in batches by all processes and kept in a ledger as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from accelerate import PartialState
from rich.progress import Progress

from unison.evaluation.suites.common import Job, Record
from unison.evaluation.suites.ledger import Ledger

Key = TypeVar("Key")


def finish(
    keys: Sequence[Key],
    own: Sequence[Key],
    make: Callable[[Sequence[Key]], Iterable[Record]],
    size: int,
    ledger: Ledger,
    processes: PartialState,
    title: str,
) -> list[Record] | None:
    """Makes what the ledger lacks of this process's keys; the first process gets the records of all, in order.

    Args:
        keys: everything, in the order of the result; a record's `key` is its key as text.
        own: the part of this process; the parts of all processes hold every key once.
        make: the records of some keys, loading what it needs when first called; each is kept as soon as it comes.
        size: keys of one call.
    """
    todo = [key for key in own if ledger.is_open(str(key))]
    with Progress(transient=True, disable=not processes.is_main_process) as progress:
        task = progress.add_task(title, total=len(todo))
        for start in range(0, len(todo), size):
            for record in make(todo[start : start + size]):
                ledger.append([record])
                progress.advance(task)
    processes.wait_for_everyone()
    if not processes.is_main_process:
        return None
    found = ledger.read()
    return [found[str(key)] for key in keys]


def finish_rows(
    rows: range, make: Callable[[Sequence[int]], Iterable[Record]], size: int, ledger: Ledger, job: Job, title: str
) -> list[Record] | None:
    """`finish` for the rows of a table, every n-th of which belongs to each of n processes."""
    processes = job.processes
    own = rows[processes.process_index :: processes.num_processes]
    return finish(rows, own, make, size, ledger, processes, title)
