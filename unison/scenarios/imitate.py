"""Imitation: the item's own picture and reply stand in for samples, for supervised fine-tuning.

Source: the cold start that CoRL, arXiv 2505.17534, compares its first stage with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, prompt_context, question_context, repeat
from unison.types import Item, Trajectory, Turn


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> the item's picture and (image, question) -> the item's reply; siblings are equal"""
    pictures, replies = [item.image for item in items if item.image], [item.reply or "" for item in items]
    examples = [
        Trajectory(
            item,
            (Turn(prompt_context(item), drawing), Turn(question_context(item), written)),
            texts=(text,),
            images=(image,),
        )
        for item, drawing, written, image, text in zip(
            items,
            policy.encode(pictures, seeds.once(items, "draw")),
            policy.encode(replies),
            pictures,
            replies,
            strict=True,
        )
    ]
    return [replace(example) for example in repeat(examples, config.group_size)]


SCENARIO = Scenario(
    rollout,
    ("draw", "write"),
    ("prompt", "image", "question", "reply"),
    "imitate the item's own picture and reply",
    gives=True,
    shares_prompts=True,
)
