"""Supervised fine-tuning: negative log-likelihood of given decisions."""

from __future__ import annotations

import torch
from torch import Tensor

from unison.config import ObjectiveConfig, RunConfig
from unison.objectives.base import Objective, takes_no_ratios
from unison.types import Metrics, TurnBatch


def sft(batch: TurnBatch, config: ObjectiveConfig) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood, weighted by the advantage: 1 imitates, a filter's 0 leaves a trajectory out.

    Returns:
        The batch's share of the loss, and sums over its decisions: divide by `decisions` for means.
    """
    nll = torch.where(batch.mask, -batch.logp, 0.0)
    loss = (batch.share * batch.advantage[:, None] * nll).sum()
    return loss, {"nll": float(nll.detach().sum()), "decisions": float(batch.mask.sum())}


def check(config: RunConfig) -> None:
    """No ratio is taken, so there is nothing to compute anew."""
    takes_no_ratios(config)


OBJECTIVE = Objective(sft, check, imitates=True)
