"""Means over task types, and conditional shares, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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

    @property
    def with_signs(self) -> str:
        """As a difference is printed: +0.100 [+0.050, +0.150]."""
        return f"{signed(self.value)} [{signed(self.low)}, {signed(self.high)}]"


def signed(x: float) -> str:
    """Three decimals with a sign; a true minus sign."""
    return "0.000" if abs(x) < 5e-4 else f"{x:+.3f}".replace("-", "−")


def drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """Which of `count` items each resample holds: here alone is said what is resampled. [RESAMPLES, count]"""
    return rng.integers(count, size=(RESAMPLES, count))


def task_mean(values: Mapping[str, Sequence[float]], weights: Mapping[str, float] | None = None) -> Estimate:
    """Mean over tasks of the mean over items (GenEval's overall score); items are resampled within their task.

    Args:
        weights: of the tasks, all the same if not given; they need not sum to 1.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values to average: the evaluation holds no item with this figure")
    rng = np.random.default_rng(0)
    tasks = [np.asarray(v, float) for v in values.values()]
    resampled = [v[drawn(rng, len(v))].mean(-1) for v in tasks]  # each [RESAMPLES]
    shares = None if weights is None else [weights[task] for task in values]
    low, high = np.quantile(np.average(resampled, axis=0, weights=shares), (0.025, 0.975))
    return Estimate(float(np.average([v.mean() for v in tasks], weights=shares)), float(low), float(high))


def pooled_share(counts: Sequence[tuple[float, float]]) -> Estimate:
    """Hits over tries, summed over items of which each has (hits, tries); items are resampled.

    Raises:
        ValueError: no tries.
    """
    units = {"": [(tries, hits) for hits, tries in counts]}
    if (share := _share(units)) is None:
        raise ValueError("no tries to take a share of: the evaluation holds no item with this figure")
    return _interval(share, _resampled_shares(units))


def task_difference(before: Mapping[str, Sequence[float]], after: Mapping[str, Sequence[float]]) -> Estimate:
    """`after - before` on the same items in the same order (a paired bootstrap).

    Raises:
        ValueError: the two hold different tasks or numbers of items.
    """
    _require_equal_suites(before, after)
    return task_mean({task: np.subtract(after[task], before[task]).tolist() for task in before})


def _require_equal_suites(before: Mapping[str, Sequence[object]], after: Mapping[str, Sequence[object]]) -> None:
    sizes = [{task: len(v) for task, v in side.items()} for side in (before, after)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the evaluations hold different items, {sizes[0]} and {sizes[1]}: compare equal suites")


# -- conditional shares ------------------------------------------------------------------------------------------------


Pairs: TypeAlias = Mapping[str, Sequence[tuple[bool, bool]]]
"""(condition, event) of every item, by task."""


def conditional(*runs: Pairs) -> Estimate:
    """P(event | condition) over the items of all tasks, averaged over the runs given (seeds, on the same items).

    It is one share over all items that meet the condition, not a mean over tasks, of which some may have hardly any.
    Items are resampled within their task; a resample in which none meets the condition is left out.

    Raises:
        ValueError: in a run no item meets the condition, or the runs hold different tasks or numbers of items.
    """
    shares, resampled = _shares(runs)
    return _interval(np.mean(shares), resampled.mean(0))


def conditional_difference(before: Sequence[Pairs], after: Sequence[Pairs]) -> Estimate:
    """`after - before` of conditional shares, each averaged over its runs, items of equal place resampled together.

    Raises:
        ValueError: as `conditional`.
    """
    shares, resampled = _shares([*before, *after])
    first, second = slice(len(before)), slice(len(before), None)
    return _interval(
        np.mean(shares[second]) - np.mean(shares[first]), resampled[second].mean(0) - resampled[first].mean(0)
    )


def _shares(runs: Sequence[Pairs]) -> tuple[list[float], np.ndarray]:
    """Each run's share, and its resamples [runs, RESAMPLES], which draw the same items in every run."""
    for run in runs[1:]:
        _require_equal_suites(runs[0], run)
    # all start from one seed and one order of tasks, so they draw the same items
    units = [{task: [(met, met and event) for met, event in run[task]] for task in runs[0]} for run in runs]
    shares = [share for run in units if (share := _share(run)) is not None]
    if len(shares) < len(runs):
        raise ValueError("no item meets the condition: its share is unknown")
    return shares, np.stack([_resampled_shares(run) for run in units])


Units: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
"""(tries, hits) of what is resampled, by task."""


def _share(units: Units) -> float | None:
    tries, hits = (sum(unit[part] for rows in units.values() for unit in rows) for part in (0, 1))
    return hits / tries if tries else None


def _resampled_shares(units: Units) -> np.ndarray:
    """NaN where there are no tries. [RESAMPLES]"""
    rng, total = np.random.default_rng(0), np.zeros((RESAMPLES, 2))
    for rows in units.values():
        total += np.asarray(rows, float)[drawn(rng, len(rows))].sum(1)
    tries, hits = total.T
    return np.divide(hits, tries, out=np.full(RESAMPLES, np.nan), where=tries > 0)


def _interval(value: float | np.floating, resampled: np.ndarray) -> Estimate:
    low, high = np.nanquantile(resampled, (0.025, 0.975))
    return Estimate(float(value), float(low), float(high))
