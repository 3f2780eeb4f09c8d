"""Given drawings: a latent at levels of noise, scored by the velocity there (the forward process, not the sampler's).

A given drawing is `Noised`. Its state at a level is x = (1 - sigma) latent + sigma noise, whose velocity is to be
noise - latent. Its "log-probability" there is minus the squared error of the velocity, averaged over
latent dimensions as that of a denoising step is, so that the negative log-likelihood is the flow-matching loss; and its
divergence from the reference is the mean squared distance of the two velocities.

Differences of these numbers between policies stand for those of log-likelihoods: their sum over levels is, up to a
weight of the levels, a bound (Diffusion-DPO, arXiv 2311.12908; DiffusionNFT, arXiv 2509.16117).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import reduce
from torch import Tensor

from unison.policies.decisions.sde import Velocity, in_chunks, shifted
from unison.policies.decisions.selection import own_seed
from unison.types import Hides, Latents, Noised, Selected, Tokens

DROPPED = 0.05  # share of given drawings without their text, and without their source, and without both


class States(NamedTuple):
    """The states to score of given drawings, drawing by drawing."""

    x: Tensor  # [n, C, h, w]
    sigma: Tensor  # [n]
    target: Tensor  # [n, C, h, w] true velocity
    row: Tensor  # [n] whose they are


def noised_alike(whole: Sequence[Selected], seed: int) -> list[Selected]:
    """What is scored of a group: its drawings as given ones, with one noise, so that this is not what differs.

    The noise follows from `seed` and the noise that the first drawing started from, which no rounding reaches.
    """
    starts = [s.action.path[0] for s in whole if not isinstance(s.action, Tokens)]
    own = own_seed(starts[0], seed) if starts else seed
    return [s if isinstance(s.action, Tokens) else _as_given(s.action, own) for s in whole]


def _as_given(drawing: Latents | Noised, seed: int) -> Selected:
    given = noised(drawing, seed)
    return Selected(given, torch.ones(len(given)), None, given.mask)


def noised(drawing: Latents | Noised, seed: int) -> Noised:
    """A drawing as a given one: its end at the levels of its own schedule, with new noise of that seed."""
    latent = drawing.path[-1:]
    noise = torch.randn((len(drawing), *latent.shape[1:]), generator=torch.Generator().manual_seed(seed))
    return _noised(torch.cat([noise, latent]), drawing.sigmas)


def noised_once(latent: Tensor, shift: float, source: torch.Generator | None = None) -> Noised:
    """A latent [C, h, w] as it is learned from: one level sigmoid(N(0, 1)) in the time shift of a schedule, as SANA was
    trained, with noise and now and then with something of its context hidden; all from the generator, or torch's global
    one."""
    sigma = shifted(torch.sigmoid(torch.randn((), generator=source)), shift)
    hidden: tuple[Hides, ...] = ("text", "source", "everything", "nothing")
    hides = hidden[min(int(torch.rand((), generator=source) / DROPPED), 3)]
    path = torch.stack([torch.randn(latent.shape, generator=source), latent.cpu()])
    return _noised(path, torch.stack([sigma, torch.zeros(())]), hides)


def _noised(path: Tensor, sigmas: Tensor, hides: Hides = "nothing") -> Noised:
    levels = len(path) - 1
    return Noised(path, sigmas, torch.zeros(levels), torch.ones(levels, dtype=torch.bool), hides)


def states(drawings: Sequence[Noised], device: torch.device | str) -> States:
    """The states that their masks name."""
    noise = torch.cat([d.path[:-1][d.mask] for d in drawings]).to(device)
    sigma = torch.cat([d.sigmas[:-1][d.mask] for d in drawings]).to(device)
    row = torch.tensor([row for row, d in enumerate(drawings) for _ in range(int(d.mask.sum()))], device=device)
    latent = torch.stack([d.path[-1] for d in drawings]).to(device)[row]
    return States(torch.lerp(latent, noise, sigma.view(-1, 1, 1, 1)), sigma, noise - latent, row)


def score(
    velocity: Velocity,
    drawings: Sequence[Noised],
    anchors: Sequence[Tensor] | None = None,
    chunk: int = 0,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The "log-probabilities" of given drawings, differentiable; arguments as those of `sde.score`.

    Args:
        anchors: what `velocities` gave of each drawing under the reference.

    Returns:
        [L] for each drawing, 0 where its mask is not set; with anchors [2, L], the divergence from them below.
    """
    found = states(drawings, device)
    reference = None if anchors is None else torch.cat(list(anchors)).to(device)

    def of_chunk(which: Tensor) -> Tensor:
        v = velocity(found.x[which], found.sigma[which], found.row[which])
        logp = -_distance(v, found.target[which])
        if reference is None:
            return logp[:, None]
        return torch.stack([logp, _distance(v, reference[which])], 1)

    values = iter(in_chunks(of_chunk, len(found.row), chunk, device).split([int(d.mask.sum()) for d in drawings]))
    full = [_spread(next(values), d.mask.to(device)) for d in drawings]
    return [rows[0] if anchors is None else rows for rows in full]


@torch.no_grad()
def velocities(
    velocity: Velocity, drawings: Sequence[Noised], chunk: int = 0, device: torch.device | str = "cpu"
) -> list[Tensor]:
    """The velocities at each drawing's states [T, C, h, w]: what a divergence is measured from."""
    found = states(drawings, device)
    flat = in_chunks(lambda c: velocity(found.x[c], found.sigma[c], found.row[c]), len(found.row), chunk, device)
    return list(flat.split([int(d.mask.sum()) for d in drawings]))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return reduce((a - b) ** 2, "n ... -> n", "mean")


def _spread(values: Tensor, mask: Tensor) -> Tensor:
    """Values [T, k] at the set places of a mask [L], 0 elsewhere. [k, L]"""
    return values.new_zeros(values.shape[1], len(mask)).masked_scatter(mask, values.T)
