"""Advantages: groups of rewards in, numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from unison.config import AdvantageConfig
from unison.types import Metrics

EPSILON = 1e-4  # added to the standard deviation


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
        case "pair":
            return best_against_worst(rewards, groups), metrics
        case "group" | "mean" | "rloo":
            return compared, metrics


def best_against_worst(rewards: Sequence[float | None], groups: Mapping[str, Sequence[int]]) -> list[float | None]:
    """1 for the best of each group, -1 for the worst, None for the others and for groups of equal rewards.

    Of equals the first counts.
    """
    advantages: list[float | None] = [None] * len(rewards)
    for rows in groups.values():
        judged = {row: reward for row in rows if (reward := rewards[row]) is not None}
        if len(set(judged.values())) > 1:
            advantages[max(judged, key=judged.__getitem__)] = 1.0
            advantages[min(judged, key=judged.__getitem__)] = -1.0
    return advantages


def group_advantages(
    rewards: Sequence[float | None], groups: Mapping[str, Sequence[int]], config: AdvantageConfig
) -> tuple[list[float | None], Metrics]:
    """Reward minus the mean of its group, or with kind "rloo" of its siblings; with kind "group" over the group's
    standard deviation.

    Source: GRPO, arXiv 2402.03300, eq. 3; without the division Dr. GRPO, arXiv 2503.20783; the mean of the others alone
    RLOO, arXiv 2402.14740, which is n / (n - 1) times the difference to the mean of all n. A trajectory without a
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
        if config.kind == "rloo" and len(judged) > 1:
            centred = centred * (len(judged) / (len(judged) - 1))
        spreads.append(spread)
        if config.kind == "group":
            centred = centred / (spread + EPSILON)
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
