"""Text to image: one drawing a trajectory."""

from __future__ import annotations

from collections.abc import Sequence

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.common import Seeds, prompt_context, repeat
from unison.types import Item, Trajectory, Turn


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> drawing"""
    group = config.group_size
    contexts = repeat([prompt_context(item) for item in items], group)
    drawings = policy.draw(contexts, config.image, seeds.of(items, group, "draw"))
    return [
        Trajectory(item, (Turn(context, drawing),), images=(image,))
        for item, context, drawing, image in zip(
            repeat(items, group), contexts, drawings, policy.decode(drawings), strict=True
        )
    ]
