"""Classifier-free guidance of drawings and edits: what each branch may know, and the velocity of all in one pass.

Guidance of a drawing is u + w (c - u); that of an edit, with i seeing the source alone and u nothing at all,

    u + s (i - u) + w (c - i),       w = `guidance`, s = `source_guidance`

so a branch whose share is 0 is not computed: i and c are enough at s = 1.

Source: UniRL-Zero (arXiv 2510.17937).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import Tensor

from unison.policies.metaquery import diffusion
from unison.policies.metaquery.layout import source_of
from unison.types import Context, Hides, Sampling

Shares: TypeAlias = list[tuple[Hides, float]]
"""Branches of guidance, each by what it hides, with its share of the velocity."""


@dataclass(frozen=True)
class Ask:
    """What a branch of guidance may know of a row."""

    context: Context
    hides: Hides

    @classmethod
    def of(cls, context: Context, hides: Hides) -> Ask:
        """An unconditional context hides everything itself."""
        return cls(context, "everything" if context.unconditional else hides)

    @property
    def key(self) -> tuple[int, Hides]:
        """Equal where the prompt is: siblings share one context, and all without one share one."""
        return 0 if self.hides == "everything" else id(self.context), self.hides

    @property
    def sees_source(self) -> bool:
        return self.hides in ("nothing", "text")


@dataclass(frozen=True)
class Guided:
    """The velocity of B rows after guidance, in one pass of the diffusion transformer for all branches."""

    transformer: Any
    shares: Tensor  # [branches]
    context: Tensor  # [K, Q, W] what the language model understood
    pooled: Tensor | None  # [K, P]
    context_of: Tensor  # [branches, B]
    source: Tensor | None  # [M, positions, E] what edits add to embedded latents, the last of nothing
    source_of: Tensor  # [branches, B]

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """States [n, C, h, w], their sigmas [n] and the rows that they belong to [n] -> [n, C, h, w] float32"""
        count = len(self.shares)
        which, source = self.context_of[:, rows].flatten(), self.source_of[:, rows].flatten()
        v = diffusion.velocity(
            self.transformer,
            x.repeat(count, 1, 1, 1),
            sigma.repeat(count),
            self.context[which],
            None if self.pooled is None else self.pooled[which],
            None if self.source is None else self.source[source],
        )
        return (self.shares.view(-1, 1, 1, 1, 1) * v.unflatten(0, (count, -1))).sum(0)


def branch_shares(sampling: Sampling, edit: bool) -> Shares:
    """The branches of guidance with their shares, which add up to 1; none of a branch without a share.

    At `source_guidance` 1 an edit needs no unconditional branch.
    """
    w, s = sampling.guidance, sampling.source_guidance
    edits: Shares = [("nothing", w), ("text", s - w), ("everything", 1 - s)]
    draws: Shares = [("nothing", w), ("everything", 1 - w)]
    return [(hides, share) for hides, share in (edits if edit else draws) if share]


def edits(context: Context) -> bool:
    """Whether a drawing from the context is an edit."""
    return source_of(context) is not None


def of_first(contexts: Sequence[Context], seeds: Sequence[int]) -> list[int]:
    """The seed of the first row that has the same context, for every row."""
    first: dict[int, int] = {}
    return [first.setdefault(id(context), seed) for context, seed in zip(contexts, seeds, strict=True)]
