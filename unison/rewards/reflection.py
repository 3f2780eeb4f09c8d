"""Rewards of reflection: is the verdict on the first drawing right, and is the last drawing better.

Source: UniRL-Zero, arXiv 2510.17937, reflective drawing: the accuracy of the judgement, and the correction. The paper
leaves their formulas open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unison.answers import says_right
from unison.rewards.geneval.reward import geneval, geneval_strict
from unison.rewards.world import first_drawings, world, world_strict
from unison.types import Trajectory


def verdict_right(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the last reply says of the first drawing what the world's judge says: right or wrong, in the requested
    format."""
    return agreement(trajectories, world_strict(first_drawings(trajectories), policy))


def geneval_verdict(trajectories: Sequence[Trajectory], policy: Any, detector: str, colors: str) -> list[float | None]:
    """As `verdict_right`, with GenEval's strict decision in the judge's place."""
    return agreement(trajectories, geneval_strict(first_drawings(trajectories), policy, detector, colors))


def improvement(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """How much better the last drawing is than the first to the world's judge, in [-1, 1], see `gain`."""
    return gains(world(first_drawings(trajectories), policy), world(trajectories, policy))


def geneval_improvement(
    trajectories: Sequence[Trajectory], policy: Any, detector: str, colors: str
) -> list[float | None]:
    """As `improvement`, by GenEval's partial credit."""
    first = geneval(first_drawings(trajectories), policy, detector, colors)
    return gains(first, geneval(trajectories, policy, detector, colors))


def agreement(trajectories: Sequence[Trajectory], truths: Sequence[float | None]) -> list[float | None]:
    """1 where the last reply says right of what is right, or wrong of what is not; None where either is lacking."""
    return [
        None if truth is None or not t.texts else float(says_right(t.texts[-1]) == (truth == 1))
        for t, truth in zip(trajectories, truths, strict=True)
    ]


def gains(first: Sequence[float | None], last: Sequence[float | None]) -> list[float | None]:
    """`gain` of each pair of scores, None where either is."""
    return [None if a is None or b is None else gain(a, b) for a, b in zip(first, last, strict=True)]


def gain(first: float, last: float) -> float:
    """The share of what the first drawing lacked that the last one has; minus the share that it lost of what it had.

    A right drawing lacks nothing, and earns 1 if it stays right: so nothing is gained by drawing badly at first, and a
    right drawing made worse is worse than a wrong one left as it was. Scores are cut to [0, 1].
    """
    first, last = (min(max(score, 0.0), 1.0) for score in (first, last))
    if first == 1:
        return 1.0 if last == 1 else last - 1
    return (last - first) / (1 - first if last >= first else first)
