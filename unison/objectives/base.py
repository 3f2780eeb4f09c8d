"""What an objective is: a loss over decisions, and all that it asks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unison.config import ObjectiveConfig, RunConfig, require
from unison.types import Metrics, TurnBatch


def anything(config: RunConfig) -> None:
    """No setting is refused."""


def held_by_beta(config: RunConfig) -> None:
    """Refuses another weight of the divergence beside `objective.beta`."""
    held = (config.objective.kl_beta, config.objective.image_kl_beta)
    rule = f"0 with {config.objective.name!r}, which beta holds back"
    require(not any(held), "objective.kl_beta, image_kl_beta", held, rule)


@dataclass(frozen=True)
class Objective:
    """A pure function from a batch to its share of the loss and sums of metrics over its `decisions`."""

    loss: Callable[[TurnBatch, ObjectiveConfig], tuple[Tensor, Metrics]]
    check: Callable[[RunConfig], None] = anything
    """Refuses settings of a run under which the loss has no meaning, by a ValueError."""
    pairs: bool = False
    """Whether it takes advantages of kind "pair", and no others."""
    from_reference: bool = False
    """Whether log-probabilities are measured from the reference's, not from those of the policy that sampled."""
    samples_reference: bool = False
    """Whether the reference makes the rollouts, and the divergence from it is a part of the loss."""
    states_at: tuple[str, ...] = ()
    """Levels at which it is defined for noisy states of drawings alone, not for tokens."""
