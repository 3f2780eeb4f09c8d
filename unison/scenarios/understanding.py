"""Understanding: one reply a trajectory, to a question with or without an image."""

from __future__ import annotations

from collections.abc import Sequence

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, begin, question_context, repeat, then_write
from unison.types import Item, Trajectory


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """(image, question) -> reply"""
    group = config.group_size
    contexts = repeat([question_context(item) for item in items], group)
    return then_write(policy, begin(items, group), contexts, config, seeds.of(items, group, "write"))


SCENARIO = Scenario(rollout, ("write",), ("question", "answer"), "answer a question", shares_prompts=True)
