"""Scenarios by name: short programs over the policy's verbs, from items to trajectories."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unison.config import ScenarioConfig, pick
from unison.policies.base import Policy
from unison.scenarios import imitate, self_improve, self_sft, t2i, understanding, unified
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
}


def find(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        ValueError: unknown name.
    """
    return pick(SCENARIOS, name, "scenario.name")
