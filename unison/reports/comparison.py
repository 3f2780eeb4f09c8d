"""Figures side by side: each side with its interval, the paired difference, and what it allows one to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from unison.evaluation.records import (
    CONDITIONALS,
    REWARD,
    Evaluation,
    columns_of,
    is_met,
    measured,
    paired,
    pairs_by_task,
)
from unison.evaluation.stats import Estimate, conditional, conditional_difference, task_difference, task_mean

FIGURES = {
    "drawing_correct": "Drawing score",
    "answer_correct": "Answer accuracy",
    "format_ok": "Format rate",
    "own_answer_correct": "Answers about own drawings",
    "probe_correct": "Understanding kept",
}
SHARES = {  # conditional shares, and what they say
    "answer_given_drawing": "Answer right where the drawing is",
    "drawing_given_answer": "Drawing right where the answer is",
}
Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""By task what each item has: a value, or condition and event."""


@dataclass(frozen=True)
class Comparison:
    """One figure over one task, or over all: each side with its interval, and the paired difference."""

    label: str
    items: int
    sides: list[Estimate]
    difference: Estimate | None

    @property
    def is_share(self) -> bool:
        """Whether every side lies in [0, 1], the range of the plots."""
        return all(side.low >= 0 and side.high <= 1 for side in self.sides)

    @property
    def direction(self) -> str:
        """`up` or `down` where the interval of the difference excludes 0, else `flat`."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return "flat"
        return "up" if self.difference.low > 0 else "down"


def labels_of(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Field and title of every figure: FIGURES, and the rewards that evaluations measured."""
    names = measured(record for evaluation in evaluations for record in evaluation.records)
    return FIGURES | {name: f"Measured {name.removeprefix(REWARD)}" for name in names}


def compare(sides: Sequence[Evaluation], name: str) -> list[Comparison]:
    """The figure over all tasks first, then by task; empty where no item has the figure."""
    return [_compare(label, some, task_mean, task_difference) for label, some in _cuts(columns_of(sides, name))]


def compare_shares(sides: Sequence[Evaluation], name: str) -> list[Comparison]:
    """The conditional share over all tasks first, then by task, over the items that every side holds.

    A cut in which a side has no item that meets the condition is left out.
    """
    pairs = [pairs_by_task(records, name) for records in paired(sides, *CONDITIONALS[name])]
    return [
        _compare(label, some, conditional, lambda before, after: conditional_difference([before], [after]))
        for label, some in _cuts(pairs)
        if all(map(is_met, some))
    ]


def _cuts(sides: Sequence[Columns]) -> list[tuple[str, list[Columns]]]:
    """What each side has over all tasks, then in each; nothing where there is no task."""
    tasks = sorted(sides[0]) if sides else []
    cuts = [("all tasks", tasks), *((task, [task]) for task in tasks)] if tasks else []
    return [(label, [{task: side[task] for task in kept} for side in sides]) for label, kept in cuts]


def _compare(
    label: str,
    sides: Sequence[Columns],
    measure: Callable[[Columns], Estimate],
    difference: Callable[[Columns, Columns], Estimate],
) -> Comparison:
    paired = difference(sides[0], sides[1]) if len(sides) == 2 else None
    return Comparison(label, sum(map(len, sides[0].values())), [measure(side) for side in sides], paired)


def imbalance(sides: Sequence[Evaluation]) -> dict[str, list[Comparison]]:
    """Both conditional shares, and how often the model agrees with itself where the judge does not."""
    found = {label: compare_shares(sides, name) for name, label in SHARES.items()}
    found["Drift: answer right, drawing wrong"] = compare(sides, "drift")
    return {label: rows for label, rows in found.items() if rows}


def verdict(results: dict[str, list[Comparison]]) -> str:
    """One sentence that claims no more than the intervals of the differences allow; empty without any."""
    parts = []
    for label, (overall, *_) in results.items():
        if overall.difference is not None:
            size = f"{abs(overall.difference.value):.3f}"
            words = {"up": f"rises by {size}", "down": f"falls by {size}", "flat": "shows no change beyond noise"}
            parts.append(f"{label.lower()} {words[overall.direction]}")
    joined = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
    return joined[:1].upper() + joined[1:] + "." * bool(joined)
