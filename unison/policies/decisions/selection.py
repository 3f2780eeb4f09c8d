"""Which of a drawing's decisions an update scores: all, those of some rounds, or a random part in a single pass."""

from __future__ import annotations

import zlib
from dataclasses import replace

import torch
from torch import Tensor

from unison.types import Selected, Tokens

GIVEN = -1  # the round of a position that was there from the start


def some_rounds(order: Tensor, mask: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random part of a drawing's rounds, to be scored in place of all at a fraction of the cost.

    The rounds are cut into `count` runs of nearly equal length, and one is taken from each. Its decisions weigh as much
    as its run is long, so sums over decisions and their gradients are unbiased.

    Args:
        order: [N] the round of each decision.
        mask: [N] bool, decisions that are trained.
        count: rounds to keep.
        seed: of the choice.

    Returns:
        the decisions to score [N] bool and their weights [N], 0 where left out.
    """
    rounds = order[mask].unique()
    if count >= len(rounds):
        return mask, mask.float()
    generator = torch.Generator().manual_seed(seed)
    runs = rounds.tensor_split(count)
    weights = torch.zeros(len(order))
    for run in runs:
        taken = run[torch.randint(len(run), (1,), generator=generator)]
        weights[mask & (order == taken)] = len(run)
    return weights > 0, weights


def of_some_rounds(whole: Selected, order: Tensor, drawn: Tensor, rounds: int, seed: int) -> Selected:
    """What is scored of a drawing in `rounds` of its rounds, or with 0 in all.

    Args:
        order: [N] the round of each decision.
        drawn: what tells the drawing from others, which decides with the seed which rounds they are (`own_seed`).
    """
    if not rounds:
        return whole
    wanted, weight = some_rounds(order, whole.action.mask, rounds, own_seed(drawn, seed))
    return replace(whole, action=replace(whole.action, mask=wanted), share=weight)


def of_some_steps(whole: Selected, steps: int, seed: int) -> Selected:
    """The same for a denoising path, whose steps are its rounds; its noise, which no rounding reaches, tells it from
    others."""
    drawing = whole.action
    assert not isinstance(drawing, Tokens)
    return of_some_rounds(whole, torch.arange(len(drawing)), drawing.path[0], steps, seed)


def own_seed(drawn: Tensor, seed: int) -> int:
    """A seed of a drawing's own, whatever batch it is in."""
    return zlib.crc32(drawn.numpy().tobytes(), seed)


def one_pass(mask: Tensor, least: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A random part of a drawing's decisions, to be scored from the rest of it as if they were one round.

    A surrogate, not an unbiased estimate: the drawing was not drawn from such canvases, so these log-probabilities do
    not add up to its own and their gradient points elsewhere. It costs one pass, whatever the rounds. With `least` = 1
    all decisions are scored from an empty canvas (diffu-GRPO, arXiv 2504.12216), with 0 any share of them (UniGRPO,
    arXiv 2505.15809), in between a large one (MaskGRPO, arXiv 2510.02880). There the importance ratio is to be taken
    under one mask; here it follows from the seed. Left out: UniGRPO spreads the shares of a drawing's several updates
    evenly, while here a drawing has one update.

    Args:
        mask: [N] bool, decisions that are trained; what else there is stays in view.
        least: smallest share of them to score; the share is uniform between it and 1.
        seed: of share and choice.

    Returns:
        order [N], 0 where scored and GIVEN elsewhere; the decisions to score [N] bool; and their weights [N], by which
        a drawing counts as much as if all were scored.
    """
    generator = torch.Generator().manual_seed(seed)
    share = least + (1 - least) * float(torch.rand((), generator=generator))
    trained = mask.nonzero().squeeze(1)
    count = max(1, round(share * len(trained)))
    wanted = torch.zeros_like(mask)
    wanted[trained[torch.randperm(len(trained), generator=generator)[:count]]] = True
    return torch.where(wanted, 0, GIVEN), wanted, wanted * (len(trained) / count)
