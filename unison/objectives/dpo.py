"""Direct preference optimisation: the best of a group is to become likelier than the worst, measured from a reference.

Sources: DPO, arXiv 2305.18290, eq. 7; online, with pairs that the trained policy itself has sampled, OAIF, arXiv
2402.04792; of drawings by denoising Diffusion-DPO, arXiv 2311.12908, eq. 14.

At level "sequence" a pair is compared by the log-probabilities of whole actions. At level "decision" every decision is
compared by itself, which is the bound that Diffusion-DPO minimises: a decision is then a level of noise, its
"log-probability" minus the flow-matching loss there, and its beta times the number of steps is `beta` here.

Left out: a judge that is asked about pairs (OAIF), since rewards rank a group; pairs other than the best and the worst.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unison.config import ObjectiveConfig, RunConfig, require
from unison.objectives.base import Objective, takes_no_ratios
from unison.types import Metrics, TurnBatch


def dpo(batch: TurnBatch, config: ObjectiveConfig) -> tuple[Tensor, Metrics]:
    """-log sigmoid(beta (log-ratio of the best - log-ratio of the worst)), for each pair or each of its decisions.

    `batch.old_logp` is the reference's; the advantage is 1 for the best and -1 for the worst of a group. Where a
    trajectory has several turns of the modality, they are compared together. Where only some decisions of an action are
    scored, the margin is an unbiased estimate of the whole's.

    Returns:
        The batch's share of the loss, and sums over comparisons: divide by `decisions` for means.
    """
    gain = batch.advantage[:, None] * torch.where(batch.mask, batch.logp - batch.old_logp, 0.0)
    share = batch.share
    if config.level == "sequence":
        gain, share = batch.of_actions(gain).sum(1, keepdim=True), share.sum(1, keepdim=True)
    margin, share = of_groups(gain, batch.group), of_groups(share, batch.group)
    compared = share > 0
    loss = -(share * F.logsigmoid(config.beta * margin)).sum()
    with torch.no_grad():
        measured = {"margin": margin, "preferred": (margin > 0).float()}
        sums = {name: float((value * compared).sum()) for name, value in measured.items()}
    return loss, {**sums, "decisions": float(compared.sum())}


def of_groups(rows: Tensor, group: Tensor) -> Tensor:
    """Sums over the rows of each group. [B, L] -> [groups, L]"""
    return rows.new_zeros(int(group.max()) + 1, rows.shape[1]).index_add(0, group, rows)


def check(config: RunConfig) -> None:
    """Both drawings of a pair are compared at once, at every level of noise."""
    takes_no_ratios(config)
    images, rounds = config.step.micro_batch_images, config.scoring.rounds
    require(not images, "step.micro_batch_images", images, "0: 'dpo' compares the two drawings of a pair")
    rule = "0: 'dpo' compares both drawings at every level of noise"
    require(config.objective.level == "sequence" or not rounds, "scoring.rounds", rounds, rule)


OBJECTIVE = Objective(dpo, check, ("level", "beta"), pairs=True, from_reference=True, states_at=("decision",))
