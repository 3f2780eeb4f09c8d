"""UniRL-Zero's cycle edit: the model edits a picture, then takes the edit back; one advantage trains both.

Source: UniRL-Zero, arXiv 2510.17937. What the instruction changed can be judged in the edit, and what it should have
left alone in the picture that comes back, so no edited picture has to be given.
"""

from __future__ import annotations

from collections.abc import Sequence

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, begin, repeat, then_draw
from unison.types import Context, Item, Trajectory


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """(the item's picture, instruction) -> edit, (that edit, reverse instruction) -> the picture again"""
    group = config.group_size
    contexts = repeat([edit_context(item) for item in items], group)
    edited = then_draw(policy, begin(items, group), contexts, config, seeds.of(items, group, "edit"))
    back = [Context((t.turns[0].action, t.item.reverse or "")) for t in edited]
    return then_draw(policy, edited, back, config, seeds.of(items, group, "reverse"))


SCENARIO = Scenario(
    rollout,
    ("edit",),
    ("prompt", "image", "reverse"),
    "edit a picture, then take the edit back, one reward",
    held_out="cycle_edit",
    judged=0,
)


def edit_context(item: Item) -> Context:
    """The item's picture and what is to be done to it."""
    assert item.image is not None, "the scenario asks for the picture first"
    return Context((item.image, item.prompt or ""))
