"""UniRL's scenario: the model draws, then answers a question about its own drawing; the answer judges both turns.

Source: UniRL, arXiv 2505.23380, GRPO. No real image and no judge take part: the item's answer follows from its prompt,
so a right answer says that the drawing shows what was asked for and that the model has read it. An item's own image, if
there is one, is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios import t2i
from unison.scenarios.common import Seeds, own_question_context
from unison.types import Item, Trajectory, Turn


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> drawing, (that drawing, question) -> reply"""
    drawn = t2i.rollout(policy, items, config, seeds)
    contexts = [own_question_context(t.turns[0].action, t.item) for t in drawn]
    replies = policy.write(contexts, config.text, seeds.of(items, config.group_size, "write"))
    return [
        replace(t, turns=(*t.turns, Turn(context, reply)), texts=(text,))
        for t, context, reply, text in zip(drawn, contexts, replies, policy.decode(replies), strict=True)
    ]
