"""UniRL-Zero's thought-enhanced drawing: the model says what to draw, then draws it; one advantage trains both.

Source: UniRL-Zero, arXiv 2510.17937. The drawing is conditioned on the prompt and on the whole reply, which stays in
tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from unison.answers import THOUGHT_REQUEST
from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, begin, repeat, then_draw, then_write
from unison.types import Action, Context, Item, Trajectory


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt with a request -> thought, (both) -> drawing"""
    group = config.group_size
    contexts = repeat([request_context(item) for item in items], group)
    thought = then_write(policy, begin(items, group), contexts, config, seeds.of(items, group, "think"))
    after = [thought_context(t.item, t.turns[0].action) for t in thought]
    return then_draw(policy, thought, after, config, seeds.of(items, group, "draw"))


SCENARIO = Scenario(
    rollout,
    ("write", "draw"),
    ("prompt",),
    "say what to draw, then draw it, one reward",
    held_out="think_then_draw",
    reads=False,
)


def request_context(item: Item) -> Context:
    """The item's prompt, and the request to think first."""
    return Context((f"{item.prompt}\n{THOUGHT_REQUEST}",))


def thought_context(item: Item, thought: Action) -> Context:
    """The same with the reply to it."""
    return Context((*request_context(item).parts, thought))
