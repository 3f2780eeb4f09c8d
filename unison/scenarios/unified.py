"""CoRL's unified scenario: the model draws *and* answers, and one reward judges the pair.

Source: CoRL, arXiv 2505.17534, stage 1. The question is about the item's real image, not about the drawing.
"""

from __future__ import annotations

from collections.abc import Sequence

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios import t2i, understanding
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds
from unison.types import Item, Trajectory


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> drawing and (image, question) -> reply, paired"""
    drawn = t2i.rollout(policy, items, config, seeds)
    answered = understanding.rollout(policy, items, config, seeds)
    return [
        Trajectory(d.item, d.turns + a.turns, texts=a.texts, images=d.images)
        for d, a in zip(drawn, answered, strict=True)
    ]


SCENARIO = Scenario(
    rollout,
    ("draw", "write"),
    ("prompt", "image", "question", "answer"),
    "draw a prompt and answer a question, one reward",
    shares_prompts=True,
)
