"""Cold starts of thought-enhanced and of reflective drawing: the item's thoughts, verdicts and pictures are imitated.

Source: UniRL-Zero, arXiv 2510.17937, which trains the diffusion side alone before reinforcement learning, for losses of
text hurt its language model: whether words are learned too is said by `policy.frozen`. Actions are given, and what
earlier turns gave to later ones stays in tokens and latents, as in the scenarios themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, prompt_context, repeat
from unison.scenarios.reflect import correction_context, verdict_context
from unison.scenarios.think_then_draw import request_context, thought_context
from unison.types import Item, Trajectory, Turn


def thought(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt with a request -> the item's reply, (both) -> the item's picture; siblings are equal"""
    pictures, replies = [item.image for item in items if item.image], [item.reply or "" for item in items]
    examples = [
        Trajectory(
            item,
            (Turn(request_context(item), reply), Turn(thought_context(item, reply), drawing)),
            texts=(text,),
            images=(picture,),
        )
        for item, reply, drawing, text, picture in zip(
            items,
            policy.encode(replies),
            policy.encode(pictures, seeds.once(items, "draw")),
            replies,
            pictures,
            strict=True,
        )
    ]
    return [replace(example) for example in repeat(examples, config.group_size)]


THOUGHT = Scenario(
    thought,
    ("write", "draw"),
    ("prompt", "image", "reply"),
    "imitate the item's thought and the picture that follows it",
    held_out="think_then_draw",
    gives=True,
    reads=False,
)


def reflection(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> the right picture, (the item's picture, prompt) -> the item's reply, (all three) -> the right picture

    The right picture is the item's target; the first turn keeps alive what the model can do already.
    """
    shown, replies = [item.image for item in items if item.image], [item.reply or "" for item in items]
    right = [item.target_image for item in items if item.target_image]
    examples = [
        Trajectory(
            item,
            (
                Turn(prompt_context(item), drawing),
                Turn(verdict_context(seen, item), verdict),
                Turn(correction_context(seen, item, verdict), corrected),
            ),
            texts=(text,),
            images=(picture, target),
        )
        for item, seen, verdict, drawing, corrected, text, picture, target in zip(
            items,
            policy.encode(shown, seeds.once(items, "show")),
            policy.encode(replies),
            policy.encode(right, seeds.once(items, "draw")),
            policy.encode(right, seeds.once(items, "correct")),
            replies,
            shown,
            right,
            strict=True,
        )
    ]
    return [replace(example) for example in repeat(examples, config.group_size)]


REFLECTION = Scenario(
    reflection,
    ("draw", "write", "edit"),
    ("prompt", "image", "reply", "target_image"),
    "imitate the item's verdict on a picture and its correction",
    held_out="reflect",
    gives=True,
)
