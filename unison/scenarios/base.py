"""What a scenario is: a program over the policy's verbs, and all that it asks of a model and of data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from unison.config import ScenarioConfig
from unison.policies.base import Policy
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
    gives: bool = False
    """Whether actions are trained that were given, not sampled by a policy."""
    shares_prompts: bool = False
    """Whether siblings have the contexts of all their turns in common: none comes from what they did before."""
    has_answerer: bool = False
    """Whether a reply about the model's own drawing is judged, so that the reference may give it."""

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
