"""Judging what is finished of a rollout while the rest is sampled.

Only what other machines judge: here it is nothing but waiting, and the values are what they would have been afterwards.
A reward that is computed here would take cores and memory from sampling, and one that reads the policy must have it
alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

from unison.rewards import is_elsewhere
from unison.types import RewardFn, Trajectory

Values: TypeAlias = list[float | None]
AT_ONCE = 8  # chunks and rewards under way; each sends requests of its own


class Ahead:
    """The rewards of a run; those elsewhere may be begun with, chunk by chunk in the order of the rollout."""

    def __init__(self, rewards: Mapping[str, RewardFn]) -> None:
        self.rewards = rewards
        self.begun: dict[str, list[Future[Values]]] = {}
        self.pool = ThreadPoolExecutor(AT_ONCE)

    def begin(self, chunk: Sequence[Trajectory]) -> None:
        """Sends a finished chunk to the rewards elsewhere."""
        for name in filter(is_elsewhere, self.rewards):
            self.begun.setdefault(name, []).append(self.pool.submit(self.rewards[name], chunk, None))

    def finish(self) -> dict[str, RewardFn]:
        """The rewards, for all that was begun with together: those elsewhere have but to wait for the rest."""
        begun, self.begun = self.begun, {}
        return {
            name: partial(_gather, begun[name]) if name in begun else reward for name, reward in self.rewards.items()
        }


def _gather(chunks: Sequence[Future[Values]], trajectories: Sequence[Trajectory], policy: object) -> Values:
    """The values of all chunks.

    Raises:
        Exception: what the reward raised; chunks that were not begun with are given up.
    """
    try:
        return [value for chunk in chunks for value in chunk.result()]
    finally:
        for chunk in chunks:
            chunk.cancel()
