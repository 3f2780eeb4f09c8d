"""Two ways to the same result, measured side by side."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table: what both sides did and what each repetition cost them."""

    what: str
    unison: list[float]
    other: list[float]
    other_name: str
    """What the other side is; empty where the column's heading says it."""
    unit: str
    last: str
    """The last column: a target for the ratio, or how it was computed."""

    @property
    def ratio(self) -> float:
        return median(self.other) / median(self.unison)

    def markdown(self) -> str:
        ratios = [b / a for a, b in zip(self.unison, self.other, strict=True)]
        cells = [
            self.what,
            _spread(self.unison, self.unit),
            f"{self.other_name}{': ' if self.other_name else ''}{_spread(self.other, self.unit)}",
            f"**{self.ratio:.2f}** [{min(ratios):.2f}, {max(ratios):.2f}]",
            self.last,
        ]
        return "| " + " | ".join(cells) + " |"


HEADER = "| what | Unison, median [min, max] | other, median [min, max] | ratio | target |\n|---|---|---|---|---|"


def _spread(values: list[float], unit: str) -> str:
    return f"{median(values):.3g} [{min(values):.3g}, {max(values):.3g}] {unit}"


def interleaved(
    sides: Mapping[str, Callable[[], Any]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Seconds of each side, by the wall's clock or another. All run once untimed, unless they are warm already; then
    they take turns, every other round in reverse, so that a change of the machine's load meets them all.
    """
    for run in sides.values() if warm_up else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(repeats):
        for name in list(sides)[:: -1 if round_ % 2 else 1]:
            gc.collect()
            start = clock()
            sides[name]()
            seconds[name].append(clock() - start)
    return seconds
