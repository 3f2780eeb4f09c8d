"""Scoring passes on tensors without data, for `live.peak_bytes`: the code that scores, given counts for data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from unison.config import Recompute
from unison.planning.peak_memory import Program
from unison.policies.decisions import sde, tokens
from unison.policies.decoding import causal, masked
from unison.policies.decoding.gradient_checkpointing import checkpointed
from unison.policies.metaquery.guidance import Guided
from unison.types import Sampling

if TYPE_CHECKING:
    from unison.policies.metaquery.network import MetaQueryNetwork

Ends: TypeAlias = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""Ids to embeddings, and states to logits."""
GUIDED, PLAIN = Sampling(guidance=2.0), Sampling()


@dataclass(frozen=True)
class Continued:
    """Rows of tokens that continue prompts."""

    prompts: int
    """Different prompts."""
    prompt: int
    """Positions of each."""
    rows: int
    """Actions."""
    length: int
    """Tokens of each."""
    guided: bool = False
    """Whether an unconditional branch is read beside the conditional one."""
    recompute: Recompute = "never"
    """Whether layers compute inner states once more in the backward pass."""

    def rows_of(self) -> causal.Rows:
        """Siblings next to each other; the unconditional prompt is the last."""
        own = torch.arange(self.rows) // -(-self.rows // self.prompts)
        return causal.Rows(own, torch.full((self.rows,), self.prompts) if self.guided else None)

    def read(self, decoder: Any, end: int | None = None) -> causal.Prefixed:
        """The prompts after their pass."""
        embeds = _embeds(decoder, self.prompt)
        return causal.run_prefixes(decoder, [embeds] * (self.prompts + self.guided), end=end, recompute=self.recompute)


def _embeds(decoder: Any, count: int) -> Tensor:
    return torch.empty(count, decoder.config.hidden_size, dtype=next(decoder.parameters()).dtype)


def replies(decoder: nn.Module, ends: Callable[[], Ends], sizes: Continued) -> Program:
    """Tokens one after another, as `causal.score` scores them."""

    def score() -> Tensor:
        done, rows, (embed, head) = sizes.read(decoder), sizes.rows_of(), ends()
        ids = torch.zeros(sizes.rows, sizes.length, dtype=torch.long)
        with checkpointed(decoder, rows.branches().numel() * sizes.length, sizes.recompute):
            hidden = causal.continuation_states(decoder, done, rows, embed, ids)
        return _scored(head, *rows.split(hidden), sizes.rows * sizes.length)

    return score


def canvases(decoder: nn.Module, ends: Callable[[], Ends], sizes: Continued, decided: int) -> Program:
    """Canvases of codes, one a row, of which so many decisions are scored in all, as `masked.score` does in a chunk."""

    def score() -> Tensor:
        embed, head = ends()

        def frame(canvas: Tensor) -> Tensor:
            embeds = embed(canvas)
            return torch.cat([embeds[:, :1], embeds, embeds[:, :1]], 1)

        start, rows = sizes.prompt + 1, sizes.rows_of()
        reader = masked.Reader(decoder, sizes.read(decoder, start), frame, start, head, mask=0)
        canvas = torch.zeros(sizes.rows, sizes.length, dtype=torch.long)
        return _scored(head, *rows.split(reader.states(canvas, rows)), decided)

    return score


def _scored(head: Callable[[Tensor], Tensor], c: Tensor, u: Tensor | None, count: int) -> Tensor:
    """Log-probabilities of the first tokens from states [R, L, D] of both branches."""
    ids, flat = torch.zeros(count, dtype=torch.long), c.flatten(0, 1)[:count]
    if u is None:
        return tokens.score(head, flat, ids, PLAIN)
    return tokens.score(head, flat, ids, GUIDED, u.flatten(0, 1)[:count])


@dataclass(frozen=True)
class Denoised:
    """Noisy states of drawings under what a language model says of their prompts."""

    prompts: int
    """Different prompts, of all branches of guidance."""
    prompt: int
    """Positions of each, without the queries."""
    drawings: int
    """Drawings."""
    states: int
    """Noisy states of them all."""
    branches: int
    """Branches of guidance."""
    at_once: int
    """States that go through the diffusion transformer in one pass; 0 for all."""
    edits: bool
    """Whether every drawing edits a picture."""
    recompute: Recompute
    """Whether the language model's layers compute inner states once more in the backward pass."""


def denoised(network: MetaQueryNetwork, sizes: Denoised) -> Program:
    """Velocities at noisy states, as the metaquery family computes them for `sde.score`.

    Of many chunks two are run, for every further one keeps no more than its few results.
    """
    counted = min(sizes.states, 2 * sizes.at_once or sizes.states)

    def score() -> Tensor:
        velocity = _velocity(network, sizes)
        x, sigma = torch.empty(sizes.states, *network.latent_shape), torch.empty(sizes.states)
        row = torch.arange(sizes.states) % sizes.drawings

        def of_chunk(c: Tensor) -> Tensor:
            return (velocity(x[c], sigma[c], row[c]) - x[c]).square().flatten(1).mean(1)

        return sde.in_chunks(of_chunk, counted, sizes.at_once, "cpu")

    return score


def _velocity(network: MetaQueryNetwork, sizes: Denoised) -> Guided:
    decoder: Any = network.qwen.model.language_model
    queries = network.bridge.queries["edit" if sizes.edits else "draw"]
    embeds = torch.cat([_embeds(decoder, sizes.prompt), queries])
    states = causal.run_prefixes(decoder, [embeds] * sizes.prompts, keep=False, recompute=sizes.recompute).hidden
    context, pooled = network.bridge(states[:, -len(queries) :])
    latents = torch.empty(sizes.drawings, *network.latent_shape)
    source = network.source_tokens(latents, latents) if sizes.edits else None
    which = torch.zeros(sizes.branches, sizes.drawings, dtype=torch.long)
    return Guided(network.transformer, torch.empty(sizes.branches), context, pooled, which, source, which)
