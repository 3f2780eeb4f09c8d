"""Texts of unequal length: finished rows make room for those that wait.

A batch that ends with its longest row computes the finished ones to no end. Here `width` rows are in progress at a
time. Once enough of them are finished, what the others have is moved together and rows that wait take the places; when
none waits the batch shrinks. A row's tokens follow from its own numbers alone, so they are the same for any width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from unison.policies.actions import sampled
from unison.policies.decisions.tokens import uniforms
from unison.policies.decoding import causal
from unison.policies.decoding.causal import PrefixCache, Prefixed, Prompts, Rows, Speaker, Start
from unison.types import Modality, Sampling, Tokens

SHARE = 4
"""With rows that wait the batch is laid out anew once one in so many is finished; without, once half are."""
Past: TypeAlias = list[tuple[Tensor, Tensor]]
"""Every layer's keys and values [H, S, D]."""
Decide: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""States [A, D] and uniform numbers [A] -> ids and log-probabilities [A]."""


def act(
    speaker: Speaker,
    prompts: Prompts,
    modality: Modality,
    sampling: Sampling,
    seeds: Sequence[int],
    length: int,
    stop: int | None,
) -> list[Tokens]:
    """Samples an action of up to `length` tokens for every row, whose randomness comes from its own seed alone."""
    u = uniforms(seeds, length, prompts.rows.prefix.device)
    written = sample(speaker, prompts, sampling, u, stop)
    return [sampled(modality, ids, logp, stop, sampling) for ids, logp in zip(*written, strict=True)]


@torch.no_grad()
def sample(
    speaker: Speaker,
    prompts: Prompts,
    sampling: Sampling,
    u: Tensor,
    stop: int | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """`causal.sample`, with texts of unequal length up to `rows_writing` at a time.

    Returns:
        each row's ids [L_b] and log-probabilities [L_b], to its stop token or beyond.
    """
    width = speaker.config.rows_writing
    if stop is None or not width:
        ids, logp = causal.sample(speaker, prompts, sampling, u, stop)
        return list(ids), list(logp)
    rows = prompts.rows
    assert rows.unconditional is None, "texts are written without guidance"
    done = prompts.run(speaker.network)
    with causal.to_logits(speaker) as logits, causal.continuing(speaker) as start:

        def decide(hidden: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
            return causal.decide(logits, hidden, Rows(rows.prefix[: len(hidden)], None), sampling, chance)

        sheet = _Sheet.blank(u, stop)
        _write_all(_Batch.empty(done, rows.prefix), sheet, width, start, speaker.embed, decide)
        return sheet.rows()


def _write_all(
    batch: _Batch, sheet: _Sheet, width: int, start: Start, embed: Callable[[Tensor], Tensor], decide: Decide
) -> None:
    """Writes every row to its end."""
    waiting = torch.arange(len(sheet.u), device=sheet.u.device)
    while len(waiting) or len(batch.numbers):
        free = width - len(batch.numbers)
        batch.join(waiting[:free])
        waiting = waiting[free:]
        enough = max(1, len(batch.numbers) // (SHARE if len(waiting) else 2))
        step = batch.resume(start, sheet)
        running, hidden = torch.ones_like(batch.numbers, dtype=torch.bool), batch.hidden
        while True:
            chosen, logp = decide(hidden, sheet.chance(batch.numbers))
            running = sheet.write(batch.numbers, running, chosen, logp)
            finished = len(running) - int(running.sum())
            if finished < len(running):  # finished rows go along until the batch is laid out anew
                hidden = step(embed(chosen))
            if finished >= enough:
                break
        batch.leave(running, hidden, step)


@dataclass
class _Sheet:
    """What all B rows have written so far."""

    u: Tensor  # [B, L]
    stop: int
    ids: Tensor  # [B, L]
    logp: Tensor  # [B, L]
    taken: Tensor  # [B] tokens written

    @classmethod
    def blank(cls, u: Tensor, stop: int) -> _Sheet:
        ids = torch.zeros(u.shape, dtype=torch.long, device=u.device)
        return cls(u, stop, ids, torch.zeros_like(u), torch.zeros_like(ids[:, 0]))

    def chance(self, numbers: Tensor) -> Tensor:
        """The uniform number of each row's next token; of a finished row any."""
        return self.u[numbers, self.taken[numbers].clamp_max(self.u.shape[1] - 1)]

    def write(self, numbers: Tensor, running: Tensor, chosen: Tensor, logp: Tensor) -> Tensor:
        """Adds a token to the rows that run; which of them go on. [A] bool"""
        rows = numbers[running]
        at = self.taken[rows]
        self.ids[rows, at], self.logp[rows, at] = chosen[running], logp[running]
        self.taken[rows] += 1
        return running & (chosen != self.stop) & (self.taken[numbers] < self.u.shape[1])

    def rows(self) -> tuple[list[Tensor], list[Tensor]]:
        lengths = self.taken.tolist()
        ids, logp = ([row[:n] for row, n in zip(x, lengths, strict=True)] for x in (self.ids, self.logp))
        return ids, logp


@dataclass
class _Batch:
    """The A rows in progress, and what continues them."""

    done: Prefixed
    prefix_of: Tensor  # [B]
    numbers: Tensor  # [A] of the B rows
    hidden: Tensor  # [A, D] states that predict the next token
    pasts: list[Past]  # of each row, without padding

    @classmethod
    def empty(cls, done: Prefixed, prefix_of: Tensor) -> _Batch:
        return cls(done, prefix_of, prefix_of[:0], done.last[:0], [])

    def join(self, new: Tensor) -> None:
        """Takes in rows that start from their prefixes."""
        which = self.prefix_of[new]
        self.numbers, self.hidden = torch.cat([self.numbers, new]), torch.cat([self.hidden, self.done.last[which]])
        self.pasts += [_past(self.done.cache.layers, p, self.done.visible[p]) for p in which.tolist()]

    def resume(self, start: Start, sheet: _Sheet) -> Any:
        """What continues the rows: their pasts side by side, padded on the left, with room for all they may write."""
        taken = sheet.taken[self.numbers]
        room = sheet.u.shape[1] - int(taken.min())
        sizes = torch.tensor([past[0][0].shape[1] for past in self.pasts], device=taken.device)
        filled = int(sizes.max())
        self.visible = torch.arange(filled, device=taken.device) >= filled - sizes[:, None]
        cache = PrefixCache()
        cache.layers = [
            (_side_by_side([k for k, _ in layer], room), _side_by_side([v for _, v in layer], room))
            for layer in zip(*self.pasts, strict=True)
        ]
        cache.rows, cache.room, cache.filled = self.numbers, room, [filled] * len(cache.layers)
        lengths = self.done.lengths[self.prefix_of[self.numbers]] + taken
        return start(cache, F.pad(self.visible, (0, room), value=True), lengths, filled)

    def leave(self, running: Tensor, hidden: Tensor, step: Any) -> None:
        """Keeps those that run, with what the steps since `resume` have added."""
        cache: Past = step.cache()  # each [A, H, S, D]
        seen = F.pad(self.visible, (0, cache[0][0].shape[2] - self.visible.shape[1]), value=True)
        self.pasts = [_past(cache, row, seen[row]) for row in running.nonzero().flatten().tolist()]
        self.numbers, self.hidden = self.numbers[running], hidden[running]


def _past(cache: Past, row: int, seen: Tensor) -> Past:
    return [(k[row][:, seen], v[row][:, seen]) for k, v in cache]


def _side_by_side(parts: Sequence[Tensor], room: int) -> Tensor:
    """[H, S_a, D] each -> [A, H, S + room, D]"""
    kind = parts[0].dtype  # a prefix may be of another type than rows that our own step has taken over
    padded = pad_sequence([part.to(kind).transpose(0, 1) for part in parts], True, padding_side="left")
    return F.pad(padded.transpose(1, 2), (0, 0, 0, room)).contiguous()
