"""The clipped policy-gradient objective over decisions, be they text tokens, image tokens or denoising steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unison.config import ObjectiveConfig
from unison.objectives.base import Objective
from unison.types import Metrics, TurnBatch, pad_stack


@dataclass(frozen=True)
class Totals:
    """How many turns and decisions of one modality the whole update holds, over all micro-batches and processes."""

    turns: float
    decisions: float


def totals(masks: Sequence[Tensor]) -> Totals:
    """Counts of this process, from the decisions [L] that count of every turn."""
    return Totals(len(masks), float(sum(int(mask.sum()) for mask in masks)))


def decision_shares(mask: Tensor, total: Totals, config: ObjectiveConfig) -> Tensor:
    """Each decision's share of the update's loss, so that micro-batches simply add up. [B, L]

    `sequence`: mean over a turn's decisions, then over turns (GRPO, arXiv 2402.03300; CoRL). `token`: mean over all
    decisions (DAPO, arXiv 2503.14476). A number: sum over a constant length (Dr. GRPO, arXiv 2503.20783).
    """
    match config.aggregation:
        case "sequence":
            divisor = total.turns * mask.sum(-1, keepdim=True).clamp_min(1)
        case "token":
            divisor = torch.tensor(max(total.decisions, 1.0))
        case length:
            divisor = torch.tensor(total.turns * length)
    return mask / divisor


def grpo(batch: TurnBatch, config: ObjectiveConfig) -> tuple[Tensor, Metrics]:
    """Clipped surrogate plus the divergence from the reference.

    Source: GRPO, arXiv 2402.03300, eq. 3 and 4; separate clip bounds as in DAPO, arXiv 2503.14476, eq. 8; at level
    "sequence" the ratio of a whole action, its length's root, as in GSPO, arXiv 2507.18071, eq. 5 to 7.

    Returns:
        The batch's share of the loss, and sums over its decisions: divide by `decisions` for means.
    """
    difference = torch.where(batch.mask, batch.logp - batch.old_logp, 0.0)
    if config.level == "sequence":
        whole, count = (batch.of_actions(x).sum(-1, keepdim=True) for x in (difference, batch.mask))
        mean = whole / count.clamp_min(1)
        difference = torch.where(batch.mask, mean, 0.0)
    ratio = difference.exp()
    advantage = batch.advantage[:, None]
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    loss = -torch.minimum(ratio * advantage, clipped * advantage)
    kl = torch.zeros_like(loss) if batch.kl is None else torch.where(batch.mask, batch.kl, 0.0)
    loss = loss + config.kl_beta * kl
    cut = torch.where(advantage > 0, ratio > 1 + config.clip_high, ratio < 1 - config.clip_low) & (advantage != 0)
    with torch.no_grad():
        measured = {
            "ratio": ratio,
            "logp_difference": difference.abs(),
            "clip_fraction": cut.float(),
            "kl": kl,
            "entropy": -batch.old_logp,  # of sampled tokens: an unbiased estimate
        }
        sums = {name: float((value * batch.mask).sum()) for name, value in measured.items()}
    return (batch.share * loss).sum(), {**sums, "decisions": float(batch.mask.sum())}


OBJECTIVE = Objective(grpo, reads=("level", "clip_low", "clip_high", "image_clip", "kl_beta", "image_kl_beta"))


def sampling_difference(batch: TurnBatch, sampled: Sequence[Tensor]) -> Tensor:
    """How far the log-probabilities of the policy that is trained are from those that sampling gave of each turn, each
    [L], decision by decision of those that are scored. A turn of zeros was given, not sampled, and is left out. [N]"""
    theirs = pad_stack(sampled).to(batch.logp.device)
    known = batch.mask & (theirs != 0).any(-1, keepdim=True)
    return (batch.logp.detach() - theirs).abs()[known]
