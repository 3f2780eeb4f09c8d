"""DiffusionNFT: what was good and what was bad pull the velocity in opposite directions, on the forward process.

Source: DiffusionNFT, arXiv 2509.16117, eq. 5. With v the true velocity at a noisy state of a drawing x0 that the old
policy has sampled, r in [0, 1] how good it is, and the implicit policies v+ = (1 - b) v_old + b v_theta and
v- = (1 + b) v_old - b v_theta, it minimises r |v+ - v|^2 + (1 - r) |v- - v|^2.

That is a policy gradient with a trust region. With A = 2 r - 1, log p = -|v_theta - v|^2 and log p_old = -|v_old - v|^2
(the "log-probabilities" of given drawings, `policies.noising`), the loss over b is

    |v_old - v|^2 / b - A (log p - log p_old) + (b - A) |v_theta - v_old|^2

of which the first summand has no gradient. So the same three numbers that GRPO needs of a decision suffice: its
log-probability, its divergence from the policy that sampled, its advantage. r = 1/2 + clip(advantage, -1, 1) / 2 is the
setting `advantage.clamp` = 1; with the authors' clip at c their b is `beta` / c.

Changed: each state's loss is divided by the root mean square of the trained velocity's error, where the paper divides
the error of the predicted x0 by its own mean absolute value, for v+ and v- apart: these agree where the policies do, up
to the level of noise, which the choice of levels stands for. Left out: the divergence from a third, frozen policy, and
the course of eta (`reference_decay`) over the run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unison.config import ObjectiveConfig, RunConfig, require
from unison.objectives.base import Objective, takes_no_ratios
from unison.types import Metrics, TurnBatch

LEAST_ERROR = 1e-5  # below it a loss is not scaled up further


def nft(batch: TurnBatch, config: ObjectiveConfig) -> tuple[Tensor, Metrics]:
    """The contrast of good and bad drawings in its second form (see the module docstring).

    `batch.kl` is the mean squared distance from the velocity of the policy that sampled.

    Returns:
        The batch's share of the loss, and sums over states: divide by `decisions` for means.
    """
    assert batch.kl is not None, "nft needs the distance from the policy that sampled"
    improvement = torch.where(batch.mask, batch.logp - batch.old_logp, 0.0)
    distance = torch.where(batch.mask, batch.kl, 0.0)
    error = torch.where(batch.mask, -batch.logp.detach(), 1.0)  # squared
    advantage = batch.advantage[:, None]
    loss = -advantage * improvement + (config.beta - advantage) * distance
    loss = loss / error.clamp_min(LEAST_ERROR**2).sqrt()
    with torch.no_grad():
        measured = {"velocity_error": error, "kl": distance, "logp_difference": improvement.abs()}
        sums = {name: float((value * batch.mask).sum()) for name, value in measured.items()}
    return (batch.share * loss).sum(), {**sums, "decisions": float(batch.mask.sum())}


def check(config: RunConfig) -> None:
    """Given drawings are scored, of a policy that draws without guidance."""
    takes_no_ratios(config)
    scored, guidance = config.scoring.drawings, config.scenario.image.guidance
    require(scored == "noised", "scoring.drawings", scored, "'noised' with 'nft'")
    rule = "1 with 'nft', which learns from what the model draws without guidance"
    require(guidance == 1, "scenario.image.guidance", guidance, rule)


OBJECTIVE = Objective(nft, check, ("beta",), samples_reference=True, states_at=("decision", "sequence"))
