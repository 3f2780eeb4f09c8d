"""What an objective is: a loss over decisions, and all that it asks of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from unison.config import ObjectiveConfig, RunConfig, require
from unison.types import Metrics, TurnBatch


def anything(config: RunConfig) -> None:
    """No setting is refused."""


def takes_no_ratios(config: RunConfig) -> None:
    """Refuses log-probabilities that are computed anew for ratios which the objective does not take."""
    old, rule = config.scoring.old_logp, f"'sampled' with {config.objective.name!r}, which takes no ratios to them"
    require(old == "sampled", "scoring.old_logp", old, rule)


EVERYWHERE = ("name", "reference_decay", "aggregation")
"""Settings that have a meaning with every objective."""


@dataclass(frozen=True)
class Objective:
    """A pure function from a batch to its share of the loss and sums of metrics over its `decisions`, and what it asks
    of a run."""

    loss: Callable[[TurnBatch, ObjectiveConfig], tuple[Tensor, Metrics]]
    check: Callable[[RunConfig], None] = anything
    """Refuses settings of a run under which the loss has no meaning, by a ValueError."""
    reads: tuple[str, ...] = ()
    """Which settings of `objective` it goes by, beside those of every objective; the others are refused."""
    imitates: bool = False
    """Whether it learns from given actions; others need log-probabilities of a policy that sampled, or siblings that
    were sampled."""
    pairs: bool = False
    """Whether it takes advantages of kind "pair", and no others."""
    from_reference: bool = False
    """Whether log-probabilities are measured from the reference's, not from those of the policy that sampled."""
    samples_reference: bool = False
    """Whether the reference makes the rollouts, and the divergence from it is a part of the loss."""
    states_at: tuple[str, ...] = ()
    """Levels at which it is defined for noisy states of drawings alone, not for tokens."""
