"""Items x group -> scored trajectories, in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds
from unison.types import Item, Trajectory, group_rows

Finished: TypeAlias = Callable[[Sequence[Trajectory]], None]
"""What is told of every chunk that is rolled out."""


@torch.no_grad()
def roll_out(
    policy: Policy,
    scenario: Scenario,
    items: Sequence[Item],
    config: ScenarioConfig,
    seeds: Seeds,
    chunk: int,
    finished: Finished = lambda trajectories: None,
) -> list[Trajectory]:
    """G trajectories for every item, siblings next to each other; `chunk` items at a time, each told to `finished`.

    Each sample's randomness comes from its own seed, so the chunk size does not change it.
    """
    trajectories: list[Trajectory] = []
    for start in range(0, len(items), chunk):
        rolled = scenario.rollout(policy, items[start : start + chunk], config, seeds)
        finished(rolled)
        trajectories += rolled
    return trajectories


# -- dynamic sampling ------------------------------------------------------------------------------------------------


def groups_of(trajectories: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """The siblings of each item."""
    return [[trajectories[row] for row in rows] for rows in group_rows(trajectories).values()]


def tells(group: Sequence[Trajectory]) -> bool:
    """Whether the rewards of siblings differ, as far as they are known: else their comparison teaches nothing."""
    return len({t.reward for t in group if t.reward is not None}) > 1


def most_telling(groups: Sequence[list[Trajectory]], count: int) -> list[list[Trajectory]]:
    """At most `count` groups, the first that tell something, then the first others, in their order."""
    ranked = sorted(range(len(groups)), key=lambda number: not tells(groups[number]))
    return [groups[number] for number in sorted(ranked[:count])]
