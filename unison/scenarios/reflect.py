"""UniRL-Zero's reflective drawing: the model draws, judges its drawing in words and corrects it; one advantage for all.

Source: UniRL-Zero, arXiv 2510.17937. The paper leaves open what the correction is made from; here it is an edit of the
first drawing, after prompt and verdict. Drawing and verdict stay in latents and tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from unison.answers import VERDICT_REQUEST
from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios import t2i
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, then_draw, then_write
from unison.types import Action, Context, Item, Trajectory


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> drawing, (that drawing, prompt) -> verdict, (all three) -> another drawing"""
    drawn = t2i.rollout(policy, items, config, seeds)
    contexts = [verdict_context(t.turns[0].action, t.item) for t in drawn]
    judged = then_write(policy, drawn, contexts, config, seeds.of(items, config.group_size, "judge"))
    after = [correction_context(t.turns[0].action, t.item, t.turns[1].action) for t in judged]
    return then_draw(policy, judged, after, config, seeds.of(items, config.group_size, "correct"))


SCENARIO = Scenario(
    rollout,
    ("draw", "write", "edit"),
    ("prompt",),
    "draw a prompt, judge that drawing and correct it, one reward",
    held_out="reflect",
)


def verdict_context(drawing: Action, item: Item) -> Context:
    """A drawing, its prompt and the request to judge it."""
    return Context((drawing, f"{item.prompt}\n{VERDICT_REQUEST}"))


def correction_context(drawing: Action, item: Item, verdict: Action) -> Context:
    """The same with the verdict."""
    return Context((*verdict_context(drawing, item).parts, verdict))
