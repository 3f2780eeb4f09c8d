"""Understanding: one reply a trajectory, to a question with or without an image."""

from __future__ import annotations

from collections.abc import Sequence

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.common import Seeds, question_context, repeat
from unison.types import Item, Trajectory, Turn


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """(image, question) -> reply"""
    group = config.group_size
    contexts = repeat([question_context(item) for item in items], group)
    replies = policy.write(contexts, config.text, seeds.of(items, group, "write"))
    return [
        Trajectory(item, (Turn(context, reply),), texts=(text,))
        for item, context, reply, text in zip(
            repeat(items, group), contexts, replies, policy.decode(replies), strict=True
        )
    ]
