"""Items x group -> scored trajectories, in chunks that fit memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios import Scenario
from unison.scenarios.common import Seeds
from unison.types import Item, Trajectory


@torch.no_grad()
def roll_out(
    policy: Policy,
    scenario: Scenario,
    items: Sequence[Item],
    config: ScenarioConfig,
    seeds: Seeds,
    chunk: int,
    finished: Callable[[Sequence[Trajectory]], None] = lambda trajectories: None,
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
