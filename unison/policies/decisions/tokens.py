"""Categorical decisions: one step function that draws a token, or scores a given one.

Randomness is one uniform number per decision, made in advance from the row's own seed, so a sample depends on its seed
and its context alone: not on the batch it sits in, nor on the global generator.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unison.types import Sampling

# Logits held at once while scoring (36 MB in float32). Not fewer: glibc gives a freed block of 32 MiB or more back to
# the system, but smaller ones leave gaps in its heap, which over the chunks of a long score add up to gigabytes.
LOGITS_PER_CHUNK = 9_000_000
# Logits above which scoring computes them once more in the backward pass; fewer are kept as log-probabilities.
LOGITS_KEPT = 4 * LOGITS_PER_CHUNK


def uniforms(seeds: Sequence[int], length: int, device: torch.device | str = "cpu") -> Tensor:
    """One uniform number in [0, 1) per decision of each row, drawn on the CPU from the row's seed. [B, L]"""
    rows = [torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of logits, u + w (c - u) (Ho and Salimans 2022)."""
    return torch.lerp(unconditional, conditional, scale)


def step(
    logits: Tensor, temperature: float, u: Tensor | None = None, ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One categorical decision per row: drawn with the uniform numbers `u`, or scored where `ids` are given.

    Args:
        logits: [..., V]
        temperature: softmax temperature, above 0.
        u: [...] in [0, 1).
        ids: [...] int64.

    Returns:
        ids [...] and their float32 log-probabilities [...].

    Raises:
        ValueError: neither or both of `u` and `ids` are given.
    """
    if (u is None) == (ids is None):
        raise ValueError("step draws with `u` or scores `ids`: give exactly one of them")
    logp = torch.log_softmax(_tempered(logits, temperature), dim=-1)
    if ids is None:
        assert u is not None
        ids = pick(logp, u)
    return ids, logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    # dividing by 1 would be a pass over all logits, in the backward pass too
    return logits.float() if temperature == 1 else logits.float() / temperature


def pick(logp: Tensor, u: Tensor) -> Tensor:
    """Inverse transform sampling. log-probabilities [..., V] and uniform numbers [...] in [0, 1) -> ids [...]"""
    cumulative = logp.exp().cumsum(-1)  # its last entry may round below u
    ids = torch.searchsorted(cumulative, u.unsqueeze(-1) * cumulative[..., -1:], right=True).squeeze(-1)
    return ids.clamp_max(logp.shape[-1] - 1)


def draw(
    conditional: Tensor, unconditional: Tensor | None, sampling: Sampling, choose: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws tokens from the guided distribution.

    Args:
        conditional: [..., V] logits.
        unconditional: the same of the unconditional branch; None without guidance.
        sampling: temperature, guidance and what is scored.
        choose: log-probabilities [..., V] -> ids [...].

    Returns:
        ids [...], their log-probabilities as they are to be scored, and those that they were drawn with.
    """
    guided = conditional if unconditional is None else guide(conditional, unconditional, sampling.guidance)
    logp = torch.log_softmax(_tempered(guided, sampling.temperature), dim=-1)
    ids = choose(logp)
    drawn = logp.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    if unconditional is None or not sampling.score_conditional:
        return ids, drawn, drawn
    return ids, step(conditional, sampling.temperature, ids=ids)[1], drawn


def divergence(logp: Tensor, reference: Tensor) -> Tensor:
    """KL divergence from the reference at each sampled decision, estimated from its log-probabilities. [L], same -> [L]

    The estimate "k3" of Schulman 2020: unbiased under the policy that sampled, never negative.
    """
    gap = reference - logp
    return gap.exp() - gap - 1


def beside_divergence(logps: Sequence[Tensor], anchors: Sequence[Tensor] | None) -> list[Tensor]:
    """Log-probabilities [L], or, where the reference's are given, with the divergence below [2, L]."""
    if anchors is None:
        return list(logps)
    return [torch.stack([p, divergence(p, anchor)]) for p, anchor in zip(logps, anchors, strict=True)]


def _gumbel_softmax(logits: Tensor, ids: Tensor, temperature: float, exponential: Tensor) -> Tensor:
    logp = torch.log_softmax(logits.float(), -1)
    with torch.no_grad():
        log_e, chosen = exponential.log(), ids[:, None]
        largest = log_e.gather(-1, chosen)  # minus the largest perturbed logit, which is the drawn token's
        others = -torch.logaddexp(log_e - logp, largest)
        noise = others.scatter(-1, chosen, -largest) - logp
    return torch.softmax((logp + noise) / temperature, -1)


def relaxed_rows(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    ids: Tensor,
    sampling: Sampling,
    temperature: float,
    exponential: Tensor,
    table: Tensor,
    unconditional: Tensor | None = None,
) -> Tensor:
    """Rows of a table looked up by given draws, with the gradient of a Gumbel-softmax of the logits times the table.

    The Gumbel noise is drawn *given that the drawn token won*, so the forward value is the draw itself, and draw and
    gradient are distributed as if the draw had been made by the straight-through Gumbel-softmax in the first place
    (Jang et al., arXiv 1611.01144; conditional noise: Paulus et al., arXiv 2010.04838).

    Args:
        temperature: of the Gumbel-softmax, above 0; lower is less biased and of higher variance.
        exponential: [N, V] noise of unit rate.
        table: [V, E] embeddings or codebook.
        (others as in `score`; logits are recomputed in the backward pass here too)

    Returns:
        [N, E], equal to `table[ids]`.
    """

    rows_of = table.detach()  # the table was looked up at the draws alone, which is all that its gradient may say

    def of_chunk(h: Tensor, chunk_ids: Tensor, noise: Tensor, h_u: Tensor | None) -> Tensor:
        logits = _tempered(_logits(head, h, h_u, sampling), sampling.temperature)
        return _gumbel_softmax(logits, chunk_ids, temperature, noise) @ rows_of.float()

    soft = _in_chunks(_checkpointed(of_chunk), len(table), hidden, ids, exponential, unconditional)
    return table[ids] + (soft - soft.detach())


def exponentials(seeds: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """Exponential noise of unit rate, drawn on the CPU from each row's seed. [B, *shape]"""
    rows = [torch.empty(shape).exponential_(generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).clamp_min(torch.finfo(torch.float32).tiny).to(device)


def score(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    ids: Tensor,
    sampling: Sampling,
    unconditional: Tensor | None = None,
) -> Tensor:
    """Log-probabilities of given tokens from hidden states, a chunk of logits at a time.

    Of up to `LOGITS_KEPT` logits the backward pass keeps the log-probabilities; more are computed once more, so memory
    does not grow with the vocabulary.

    Args:
        head: hidden states -> logits.
        hidden: [N, D] states that predict the tokens, of the conditional branch.
        ids: [N]
        sampling: temperature and guidance.
        unconditional: [N, D] states of the unconditional branch; None without guidance.

    Returns:
        [N] float32
    """

    def of_chunk(h: Tensor, chunk_ids: Tensor, h_u: Tensor | None) -> Tensor:
        return step(_logits(head, h, h_u, sampling), sampling.temperature, ids=chunk_ids)[1]

    vocabulary = _vocabulary(head, hidden)
    few = len(hidden) * vocabulary <= LOGITS_KEPT
    return _in_chunks(of_chunk if few else _checkpointed(of_chunk), vocabulary, hidden, ids, unconditional)


def _checkpointed(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same, computed once more in the backward pass."""
    return partial(checkpoint, function, use_reentrant=False)


def _in_chunks(of_chunk: Callable[..., Tensor], vocabulary: int, *parts: Tensor | None) -> Tensor:
    """What a function makes of rows of all parts, as many at a time as `LOGITS_PER_CHUNK` allows. [N, ...]

    Args:
        parts: [N, ...] each, or None, of which every chunk gets None; the first is a tensor.
    """
    rows = max(1, LOGITS_PER_CHUNK // vocabulary)
    chunks = zip(*(itertools.repeat(None) if p is None else p.split(rows) for p in parts), strict=False)
    return torch.cat([of_chunk(*chunk) for chunk in chunks])


def _logits(
    head: Callable[[Tensor], Tensor], hidden: Tensor, unconditional: Tensor | None, sampling: Sampling
) -> Tensor:
    """Guided where there are states of the unconditional branch, before the temperature. [N, V]"""
    logits = head(hidden).float()
    return logits if unconditional is None else guide(logits, head(unconditional).float(), sampling.guidance)


def _vocabulary(head: Callable[[Tensor], Tensor], hidden: Tensor) -> int:
    with torch.no_grad():
        return head(hidden[:1]).shape[-1]
