"""Text to image: one drawing a trajectory."""

from __future__ import annotations

from collections.abc import Sequence

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, begin, prompt_context, repeat, then_draw
from unison.types import Item, Trajectory


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> drawing"""
    group = config.group_size
    contexts = repeat([prompt_context(item) for item in items], group)
    return then_draw(policy, begin(items, group), contexts, config, seeds.of(items, group, "draw"))


SCENARIO = Scenario(rollout, ("draw",), ("prompt",), "draw a prompt", shares_prompts=True)
