"""The result of a suite as it is printed: a table of its figures, its notes and its protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unison.evaluation.records import ALL, Cuts, Evaluation


def body(result: Evaluation) -> str:
    """The table, the notes and the protocol, in Markdown."""
    protocol = "\n".join(f"- {name}: {one_line(value)}" for name, value in result.protocol.items())
    told = [f"Counts: {counted(result.counts)}"] if result.counts else []
    return "\n\n".join([table(heads(result), rows(result)), *told, *result.notes, f"Protocol:\n\n{protocol}"])


def heads(result: Evaluation) -> list[str]:
    """The heads of the table."""
    return ["figure", "all tasks [95% interval]", *tasks(result)]


def rows(result: Evaluation) -> list[list[str]]:
    """Its cells: of every figure the name, then over all tasks with the interval, then for each task."""
    return [[name, *cells(cuts, tasks(result))] for name, cuts in result.figures.items()]


def tasks(result: Evaluation) -> list[str]:
    """Every task that a figure has, in the order of the figures."""
    return [cut for cut in dict.fromkeys(cut for cuts in result.figures.values() for cut in cuts) if cut != ALL]


def cells(cuts: Cuts, tasks: Sequence[str]) -> list[str]:
    """A figure as printed; a dash where a cut does not have it."""
    single = [cuts.get(task) for task in tasks]
    return [str(cuts[ALL]) if ALL in cuts else "-", *(f"{e.value:.3f}" if e else "-" for e in single)]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def one_line(value: Any) -> str:
    """A value of the protocol as printed."""
    return " ".join(str(value).split())


def counted(counts: Mapping[str, int]) -> str:
    """Counts as printed."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())
