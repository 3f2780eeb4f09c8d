"""Scenarios by name: short programs over the policy's verbs, from items to trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unison.config import ScenarioConfig, pick
from unison.policies.base import Policy
from unison.scenarios import (
    cold_start,
    cycle_edit,
    imitate,
    reflect,
    self_improve,
    self_sft,
    t2i,
    think_then_draw,
    understanding,
    unified,
)
from unison.scenarios.common import Seeds
from unison.types import Item, Trajectory


@dataclass(frozen=True)
class Scenario:
    """A program `rollout(policy, items, config, seeds)`, G trajectories an item, siblings next to each other."""

    rollout: Callable[[Policy, Sequence[Item], ScenarioConfig, Seeds], list[Trajectory]]
    verbs: tuple[str, ...]
    """What the policy must be able to do."""
    fields: tuple[str, ...]
    """What every item must have."""
    summary: str
    held_out: str = "t2i"
    """The scenario by which held-out items are drawn, itself or the one that it is a cold start of."""
    reads: bool = True
    """Whether what is written may be about a picture."""
    judged: int = -1
    """Which drawing of a trajectory is its result."""

    @property
    def relaxes(self) -> bool:
        """Whether losses are differentiated through drawings, which costs memory."""
        return "relax drawings" in self.verbs

    def require(self, policy: Policy, item: Item) -> None:
        """Checks policy and data before training starts.

        Raises:
            ValueError: a missing ability or field.
        """
        for verb in self.verbs:
            policy.require(verb, f"the scenario ({self.summary})")
        for name in self.fields:
            if not getattr(item, name):
                raise ValueError(
                    f"the scenario ({self.summary}) needs {name!r} in every item, but item {item.id!r} has none: "
                    f"map a column to it with --data.columns {name} <column>"
                )


SCENARIOS = {
    "t2i": Scenario(t2i.rollout, ("draw",), ("prompt",), "draw a prompt"),
    "understanding": Scenario(understanding.rollout, ("write",), ("question", "answer"), "answer a question"),
    "unified": Scenario(
        unified.rollout,
        ("draw", "write"),
        ("prompt", "image", "question", "answer"),
        "draw a prompt and answer a question, one reward",
    ),
    "imitate": Scenario(
        imitate.rollout,
        ("draw", "write"),
        ("prompt", "image", "question", "reply"),
        "imitate the item's own picture and reply",
    ),
    "self_improve": Scenario(
        self_improve.rollout,
        ("draw", "write"),
        ("prompt", "question", "answer"),
        "draw a prompt and answer a question about that drawing, one reward",
    ),
    "self_sft": Scenario(
        self_sft.end_to_end,
        ("draw", "write", "relax drawings"),
        ("prompt", "question", "answer"),
        "draw a prompt and learn the true answer about that drawing, through the drawing",
    ),
    "self_sft_split": Scenario(
        self_sft.split,
        ("draw", "write"),
        ("prompt", "question", "answer"),
        "draw a prompt, learn the true answer about that drawing, imitate drawings that were answered right",
    ),
    "cycle_edit": Scenario(
        cycle_edit.rollout,
        ("edit",),
        ("prompt", "image", "reverse"),
        "edit a picture, then take the edit back, one reward",
        held_out="cycle_edit",
        judged=0,
    ),
    "think_then_draw": Scenario(
        think_then_draw.rollout,
        ("write", "draw"),
        ("prompt",),
        "say what to draw, then draw it, one reward",
        held_out="think_then_draw",
        reads=False,
    ),
    "reflect": Scenario(
        reflect.rollout,
        ("draw", "write", "edit"),
        ("prompt",),
        "draw a prompt, judge that drawing and correct it, one reward",
        held_out="reflect",
    ),
    "imitate_thought": Scenario(
        cold_start.thought,
        ("write", "draw"),
        ("prompt", "image", "reply"),
        "imitate the item's thought and the picture that follows it",
        held_out="think_then_draw",
        reads=False,
    ),
    "imitate_reflection": Scenario(
        cold_start.reflection,
        ("draw", "write", "edit"),
        ("prompt", "image", "reply", "target_image"),
        "imitate the item's verdict on a picture and its correction",
        held_out="reflect",
    ),
}


def find(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        ValueError: unknown name.
    """
    return pick(SCENARIOS, name, "scenario.name")
