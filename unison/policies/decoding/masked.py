"""Sampling and scoring of drawings by masked decoding, prompts computed once.

A drawing is a canvas of N codes, all masked at first. Every round reads the whole canvas, draws a code for every masked
position, and keeps those drawn with most confidence; the others are masked again (Chang et al. 2022, arXiv 2202.04200;
Show-o, arXiv 2408.12528).

**The action of round t** is the set of codes that it keeps, given the canvas of that round: its log-probability is the
sum of their categorical log-probabilities. *Which* positions are kept is the sampler's doing and counts as part of the
environment, although it depends on the codes drawn: a policy gradient through it would need the probability of a
ranking, and the codes that were drawn and thrown away would have to be stored. `Tokens.order` holds the round at which
each position was kept, which is all that replay needs: the canvas of round t is `where(order < t, ids, MASK)`.

Codes are numbered from 0; the number after the last is MASK, on the canvas alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from unison.policies.decisions import tokens
from unison.policies.decisions.sde import in_chunks
from unison.policies.decisions.selection import GIVEN
from unison.policies.decoding import causal
from unison.types import Sampling

SMALLEST = 1e-20  # below it probabilities and uniform numbers are lifted before their logarithm is taken, as upstream

# Canvas positions scored at once. Beyond it, canvases go through the network in chunks that are recomputed in the
# backward pass, so that memory does not grow with the number of rounds.
POSITIONS_PER_CHUNK = 8_192

# Canvas positions read at once on a CPU where no gradient is taken: few enough for its caches, which made drawings of
# 256 codes in batches of 8 a fifth faster; more of them at once gain a CPU nothing.
POSITIONS_PER_CPU_PASS = 1_024


class RowChance:
    """Every row's randomness from its own seed: a drawing depends neither on its batch nor on the global generator."""

    def __init__(self, seeds: Sequence[int], rounds: int, positions: int, device: torch.device | str = "cpu") -> None:
        u = tokens.uniforms(seeds, 2 * rounds * positions, device)
        self.u = u.view(len(seeds), rounds, 2, positions)

    def codes(self, t: int, logp: Tensor, cells: Tensor) -> Tensor:
        """Draws codes in round t. log-probabilities [n, K] at cells [n] of the flattened [B, N] -> [n]"""
        return tokens.pick(logp, self.u[:, t, 0].flatten()[cells])

    def noise(self, t: int) -> Tensor:
        """Standard Gumbel noise of round t. [B, N]"""
        return gumbel(self.u[:, t, 1])


def gumbel(u: Tensor) -> Tensor:
    """Standard Gumbel numbers from uniform ones."""
    return -torch.log((-torch.log(u.clamp_min(SMALLEST))).clamp_min(SMALLEST))


# -- how many and which ----------------------------------------------------------------------------------------------


def still_masked(positions: int, rounds: int) -> list[int]:
    """Masked positions after each round by the cosine schedule, before the limits that a canvas sets.

    The cosine is that of float32, as upstream, so that `positions * cos(pi / 3)` rounds down to one less than the half.
    """
    ratio = np.array([(t + 1) / rounds for t in range(rounds)], dtype=np.float32)
    angle = (ratio * np.float32(math.pi / 2)).astype(np.float64)
    left = np.float32(positions) * np.cos(angle).astype(np.float32)  # correctly rounded, on any processor
    return np.floor(left).astype(int).tolist()


def temperatures(first: float, rounds: int) -> list[float]:
    """Weight of the Gumbel noise in each round: it shrinks by (1 - share of the rounds done) *every* round, to 0."""
    shares = np.array([(t + 1) / rounds for t in range(rounds)])
    return (first * np.cumprod(1 - shares)).tolist()


def masked_again(masked: Tensor, logp: Tensor, noise: Tensor, left: int, temperature: float) -> Tensor:
    """Which of the masked positions are masked again after their codes were drawn: those with the lowest scores.

    Args:
        masked: [B, N] bool, before the round.
        logp: [B, N] log-probabilities of the codes drawn.
        noise: [B, N] standard Gumbel.
        left: masked positions by the schedule; at least one is decided and at least one is left.
        temperature: weight of the noise.

    Returns:
        [B, N] bool
    """
    score = logp.clamp_min(math.log(SMALLEST)) + temperature * noise
    score = score.masked_fill(~masked, math.inf)  # what is decided stays decided
    count = (masked.sum(1) - 1).clamp_max(left).clamp_min(1)
    cut = score.sort(1).values.gather(1, count[:, None])
    return score < cut


def random_masking(share: Tensor, u: Tensor) -> Tensor:
    """Positions to predict in supervised training: a cosine share of each row, at random.

    Args:
        share: [B] uniform in [0, 1).
        u: [B, N] uniform; its order decides.

    Returns:
        [B, N] bool, True at N cos(pi share / 2) positions, at least one.
    """
    count = (u.shape[1] * torch.cos(share * (math.pi / 2))).round().clamp_min(1)
    return u.argsort(1) < count[:, None]


# -- the canvas ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reader:
    """Reads canvases that continue prompts."""

    network: nn.Module
    """A `transformers` decoder over input embeddings."""
    prompts: causal.Prefixed
    """Their keys and values; canvases see them and they see no canvas."""
    embed: Callable[[Tensor], Tensor]
    """Canvases [C, N] -> embeddings [C, N + 2, D], with what frames an image."""
    start: int
    """Position of the first embedding."""
    head: Callable[[Tensor], Tensor]
    """States [n, D] -> logits of the codes [n, K]."""
    mask: int
    """The number MASK."""

    def states(self, canvas: Tensor, rows: causal.Rows) -> Tensor:
        """States of all positions, in both branches of guidance. [C, N] -> [C or 2C, N, D]"""
        if torch.is_grad_enabled() or canvas.device.type != "cpu":
            return self._states(canvas, rows)
        size = max(1, POSITIONS_PER_CPU_PASS // (canvas.shape[1] * (1 if rows.unconditional is None else 2)))
        parts = [slice(start, start + size) for start in range(0, len(canvas), size)]
        both = [rows.some(part).split(self._states(canvas[part], rows.some(part))) for part in parts]
        return torch.cat([c for c, _ in both] + [u for _, u in both if u is not None])

    def _states(self, canvas: Tensor, rows: causal.Rows) -> Tensor:
        branches = rows.branches()
        embeds = rows.repeat(self.embed(canvas))
        length = embeds.shape[1]
        self.prompts.cache.continue_with(branches)
        visible = nn.functional.pad(self.prompts.visible[branches], (0, length), value=True)
        mask = visible[:, None, None].expand(-1, -1, length, -1)  # every position sees the prompt and the whole canvas
        positions = self.start + torch.arange(length, device=canvas.device)
        hidden = causal.run(self.network, embeds, mask, positions[None], self.prompts.cache)
        return hidden[:, 1:-1]


@torch.no_grad()
def sample(
    reader: Reader,
    rows: causal.Rows,
    canvas: Tensor,
    sampling: Sampling,
    chance: RowChance,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws by masked decoding.

    Args:
        reader: reads the canvas of every row.
        rows: the prompt of each row.
        canvas: [B, N] at the start; what is not MASK stays.
        sampling: temperature, guidance, rounds and choice temperature.
        chance: the randomness.

    Returns:
        codes, the round in which each was decided (GIVEN where it was there), and their log-probabilities (0 where
        given). [B, N] each
    """
    canvas, order, logps = (
        canvas.clone(),
        torch.full_like(canvas, GIVEN),
        torch.zeros(canvas.shape, device=canvas.device),
    )
    plan = zip(
        still_masked(canvas.shape[1], sampling.rounds),
        temperatures(sampling.choice_temperature, sampling.rounds),
        strict=True,
    )
    for t, (left, temperature) in enumerate(plan):
        masked = canvas == reader.mask
        last = t == sampling.rounds - 1
        if not last and not (masked.sum(1) > 1).any():
            continue  # one position waits for the last round
        codes, logp, confidence = _round(reader, rows, canvas, sampling, chance, t, masked)
        kept = masked
        if not last:
            kept = masked & ~masked_again(masked, confidence, chance.noise(t), left, temperature)
        canvas, logps = canvas.where(~kept, codes), logps.where(~kept, logp)
        order.masked_fill_(kept, t)
    return canvas, order, logps


def _round(
    reader: Reader,
    rows: causal.Rows,
    canvas: Tensor,
    sampling: Sampling,
    chance: RowChance,
    t: int,
    masked: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a code for every masked position: codes, their log-probabilities as they will be scored, and as drawn."""
    conditional, unconditional = rows.split(reader.states(canvas, rows), masked)
    size = max(1, tokens.LOGITS_PER_CHUNK // reader.mask)
    cells = masked.flatten().nonzero().squeeze(1).split(size)
    states = conditional.split(size)
    states_u = itertools.repeat(None) if unconditional is None else unconditional.split(size)
    parts = [
        tokens.draw(
            reader.head(h).float(),
            None if h_u is None else reader.head(h_u).float(),
            sampling,
            lambda logp, some=some: chance.codes(t, logp, some),
        )
        for h, h_u, some in zip(states, states_u, cells, strict=False)
    ]
    codes, logp, confidence = (_spread(masked, torch.cat(column)) for column in zip(*parts, strict=True))
    return codes, logp, confidence


def _spread(where: Tensor, flat: Tensor) -> Tensor:
    """Puts flat values where they came from, 0 elsewhere."""
    return torch.zeros(where.shape, dtype=flat.dtype, device=flat.device).masked_scatter(where, flat)


def score(
    reader: Reader,
    rows: causal.Rows,
    codes: Tensor,
    order: Tensor,
    wanted: Tensor,
    sampling: Sampling,
) -> Tensor:
    """Log-probabilities of given decisions, differentiable. One canvas is read for every round of every row in which a
    decision is wanted.

    Args:
        codes: [B, N]
        order: [B, N] the round of each decision.
        wanted: [B, N] bool, decisions to score.
        (others as in `sample`)

    Returns:
        [B, N] float32, 0 where not wanted.
    """
    row, t = _canvases(order, wanted).unbind(1)
    decided = wanted[row] & (order[row] == t[:, None])  # [C, N] in the round of each canvas

    def of_chunk(which: Tensor) -> Tensor:
        own, some = decided[which], rows.some(row[which])
        canvas = codes[row[which]].masked_fill(order[row[which]] >= t[which, None], reader.mask)
        c, u = some.split(reader.states(canvas, some), own)
        return tokens.score(reader.head, c, codes[row[which]][own], sampling, u)

    size = max(1, POSITIONS_PER_CHUNK // (codes.shape[1] * (1 if rows.unconditional is None else 2)))
    flat = in_chunks(of_chunk, len(row), size, codes.device)
    cells = row[:, None] * codes.shape[1] + torch.arange(codes.shape[1], device=codes.device)
    return flat.new_zeros(codes.numel()).index_put((cells[decided],), flat).view_as(codes)


def masked_once_more(order: Tensor, seed: int) -> Tensor:
    """Positions of a drawing that are masked in the pass that its loss is differentiated through (`relax`).

    By the definition above each code's logits are those of the round that kept it, which would cost a pass for every
    round. The nearest that one pass offers are the positions that one of the drawing's own rounds, taken at random,
    read as masked: its canvas is one that the drawing was really decided on, the codes of that round get the very
    logits they were drawn from, and those still to come logits that they were drawn from once and thrown away. (To
    relax only the codes of the round taken, times the number of rounds, would be unbiased, but says far less of its
    gradient in a single pass.)

    Args:
        order: [N] the round of each decision.
        seed: of the choice.

    Returns:
        [N] bool, at least one.
    """
    rounds, generator = order.unique(), torch.Generator().manual_seed(seed)
    return order >= rounds[torch.randint(len(rounds), (1,), generator=generator)]


def relax(
    reader: Reader,
    rows: causal.Rows,
    codes: Tensor,
    masked: Tensor,
    sampling: Sampling,
    temperature: float,
    exponential: Tensor,
    table: Tensor,
) -> Tensor:
    """Rows of a table looked up by the codes of drawings, differentiable through one more pass that predicts the masked
    codes from the others.

    Args:
        codes: [B, N]
        masked: [B, N] bool, codes to predict; the rows of the others have no gradient but the table's.
        temperature: of the Gumbel-softmax.
        exponential: [B, N, K] noise of unit rate.
        table: [K, E]
        (others as in `sample`)

    Returns:
        [B, N, E], equal to `table[codes]`.
    """
    c, u = rows.split(reader.states(codes.masked_fill(masked, reader.mask), rows), masked)
    predicted = tokens.relaxed_rows(reader.head, c, codes[masked], sampling, temperature, exponential[masked], table, u)
    return table[codes].index_put((masked,), predicted)


def _canvases(order: Tensor, wanted: Tensor) -> Tensor:
    """The (row, round) pairs that have a decision to score. [C, 2]"""
    row = torch.arange(len(order), device=order.device)[:, None].expand_as(order)
    return torch.stack([row[wanted], order[wanted]], 1).unique(dim=0)
