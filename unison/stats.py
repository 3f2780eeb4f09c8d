"""Means over task types with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def task_mean(values: Mapping[str, Sequence[float]]) -> Estimate:
    """Mean over tasks of the mean over items (GenEval's overall score); items are resampled within their task.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to average: the evaluation holds no item with this figure")
    rng = np.random.default_rng(0)
    tasks = [np.asarray(v, float) for v in values.values()]
    resampled = [v[rng.integers(len(v), size=(RESAMPLES, len(v)))].mean(-1) for v in tasks]  # each [RESAMPLES]
    low, high = np.quantile(np.mean(resampled, axis=0), (0.025, 0.975))
    return Estimate(float(np.mean([v.mean() for v in tasks])), float(low), float(high))


def task_difference(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> Estimate:
    """`after - before` on the same items in the same order (a paired bootstrap).

    Raises:
        ValueError: the two hold different tasks or numbers of items.
    """
    sizes = [{task: len(v) for task, v in side.items()} for side in (before, after)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the evaluations hold different items, {sizes[0]} and {sizes[1]}: compare equal suites")
    return task_mean({task: np.subtract(after[task], before[task]).tolist() for task in before})
