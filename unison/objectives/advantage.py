"""Advantages: groups of rewards in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unison.config import AdvantageConfig
from unison.types import Metrics


def advantages_of(
    rewards: Sequence[float | None], groups: Mapping[str, Sequence[int]], config: AdvantageConfig
) -> tuple[list[float | None], Metrics]:
    """Advantages of the configured kind; arguments and results as those of `group_advantages`."""
    compared, metrics = group_advantages(rewards, groups, config)
    match config.kind:
        case "constant":
            return [1.0] * len(rewards), metrics
        case "reward":
            return list(rewards), metrics
        case "group":
            return compared, metrics


def group_advantages(
    rewards: Sequence[float | None], groups: Mapping[str, Sequence[int]], config: AdvantageConfig
) -> tuple[list[float | None], Metrics]:
    """Reward minus the mean of its group, by default over the group's standard deviation.

    Source: GRPO, arXiv 2402.03300, eq. 3; without the division Dr. GRPO, arXiv 2503.20783. A trajectory without a
    reward leaves its group; one that is left alone has nothing to be compared with and gets 0, as does a group of
    equal rewards.

    Args:
        rewards: one per trajectory, None where no reward could be given.
        groups: row numbers of the siblings of each item.

    Returns:
        Advantages, None where the reward is None, and `constant_share`, `abstained`, `mean` and `std` (the mean
        spread within groups).
    """
    advantages: list[float | None] = [None] * len(rewards)
    spreads = []
    for rows in groups.values():
        judged = [row for row in rows if rewards[row] is not None]
        if not judged:
            continue
        values = np.array([rewards[row] for row in judged], np.float64)
        centred = values - values.mean()
        if np.ptp(values) == 0:
            centred[:] = 0  # the mean of equal numbers may be off by a rounding error
        spread = centred.std(ddof=1) if len(judged) > 1 else 0.0
        spreads.append(spread)
        if config.divide_by_std:
            centred = centred / (spread + config.epsilon)
        if config.clamp:
            centred = centred.clip(-config.clamp, config.clamp)
        for row, value in zip(judged, centred, strict=True):
            advantages[row] = float(value)
    known = [r for r in rewards if r is not None]
    return advantages, {
        "mean": float(np.mean(known)) if known else float("nan"),
        "std": float(np.mean(spreads)) if spreads else float("nan"),
        "constant_share": float(np.mean([s == 0 for s in spreads])) if spreads else 1.0,
        "abstained": float(len(rewards) - len(known)),
    }
