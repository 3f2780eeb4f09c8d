"""Sampling and scoring with a causal transformer, prefixes computed once and kept in a KV cache.

Both start alike: every distinct prefix (a prompt, or the unconditional row of guidance) goes through the network once,
and its keys and values are handed to all rows that continue it. Sampling then decides one token a pass; scoring sends
all given tokens through in one pass. The two see the same numbers, so replayed log-probabilities equal sampled ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from unison.config import PolicyConfig, Recompute
from unison.policies.decisions import tokens
from unison.policies.decoding import cpu, graph, packed
from unison.policies.decoding.gradient_checkpointing import checkpointed
from unison.policies.decoding.matmul import prepacked
from unison.types import Sampling


class PrefixCache:
    """A KV cache of P prefixes, then of B rows that continue them. A `transformers` layer calls only `update`."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []  # each [P or B, H, S, D]
        self.rows: Tensor | None = None
        self.room = 0
        self.filled: list[int] = []

    def continue_with(self, rows: Tensor, room: int = 0) -> None:
        """From now on row b continues prefix `rows[b]`.

        With `room` > 0 tokens come a few at a time and are written in place (sampling, no gradient); with 0 they come
        all at once and are joined to the prefix (scoring, differentiable).
        """
        self.rows, self.room = rows, room
        if room:
            self.filled = [k.shape[2] for k, _ in self.layers]
            self.layers = [(_with_room(k, rows, room), _with_room(v, rows, room)) for k, v in self.layers]

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Takes the new positions' keys and values, returns those of all positions. [B, H, S, D]"""
        if self.rows is None:
            if layer == len(self.layers):  # not again where the layer is computed once more for the backward pass
                self.layers.append((key, value))
            return key, value
        past_key, past_value = self.layers[layer]
        if not self.room:
            return torch.cat([past_key[self.rows], key], 2), torch.cat([past_value[self.rows], value], 2)
        start, end = self.filled[layer], self.filled[layer] + key.shape[2]
        past_key[:, :, start:end], past_value[:, :, start:end] = key, value
        self.filled[layer] = end
        return past_key[:, :, :end], past_value[:, :, :end]


def _with_room(prefix: Tensor, rows: Tensor, room: int) -> Tensor:
    _, heads, length, width = prefix.shape
    buffer = prefix.new_empty(len(rows), heads, length + room, width)
    buffer[:, :, :length] = prefix[rows]
    return buffer


@dataclass(frozen=True)
class Prefixed:
    """Prefixes after their pass: what rows need to continue them."""

    cache: PrefixCache
    hidden: Tensor  # [P, S, D] states of all positions
    visible: Tensor  # [P, S] bool, False at left padding
    lengths: Tensor  # [P] position that follows each prefix: its length, if no two of its tokens share one

    @property
    def last(self) -> Tensor:
        """The state at the end of each prefix, which predicts the first token. [P, D]"""
        return self.hidden[:, -1]

    def states(self) -> list[Tensor]:
        """The states of each prefix without padding. each [S_p, D]"""
        return [row[seen] for row, seen in zip(self.hidden, self.visible, strict=True)]


def run_prefixes(
    network: nn.Module,
    prefixes: Sequence[Tensor],
    open_to_all: Sequence[Tensor] = (),
    end: int | None = None,
    keep: bool = True,
    positions: Sequence[Tensor] = (),
    recompute: Recompute = "never",
) -> Prefixed:
    """Sends P prefixes through the network in one left-padded batch.

    Args:
        network: a `transformers` decoder over input embeddings.
        prefixes: each [S_p, D] embeddings.
        open_to_all: each [S_p] bool, True at positions that earlier ones may attend to as well; none where left out.
        end: the position that follows every prefix; where left out, positions of every prefix start at 0.
        keep: without it no row can continue them and only the states are held, not every layer's keys and values.
        positions: each [3, S_p], for networks whose positions have a time, a height and a width (Qwen2-VL); what
            follows a prefix counts on from the largest in all three.
        recompute: whether the layers compute their inner states once more in the backward pass.
    """
    lengths = torch.tensor([len(p) for p in prefixes], device=prefixes[0].device)
    embeds = pad_sequence(list(prefixes), batch_first=True, padding_side="left")  # [P, S, D]
    size = embeds.shape[1]
    at = torch.arange(size, device=embeds.device)
    visible = at >= size - lengths[:, None]  # [P, S]
    causal = (at[:, None] >= at) & visible[:, None]  # [P, S, S]
    if open_to_all:
        causal |= pad_sequence(list(open_to_all), batch_first=True, padding_side="left")[:, None]
    causal |= torch.eye(size, dtype=torch.bool, device=embeds.device)  # a pad sees itself: no empty row, no NaN
    ends = lengths if end is None else torch.full_like(lengths, end)
    places = (at - size + ends[:, None]).clamp_min(0)
    if positions:
        places = pad_sequence([p.T.to(embeds.device) for p in positions], True, padding_side="left").permute(2, 0, 1)
        lengths = places.amax((0, 2)) + 1
    read, cache = PrefixCache(), PrefixCache()
    with checkpointed(network, embeds.shape[0] * size, recompute):
        hidden = run(network, embeds, causal[:, None], places, read if keep else None)
    cache.layers = read.layers  # in a cache of their own: `read` may yet be asked again, and never continues
    return Prefixed(cache, hidden, visible, lengths)


def run(network: nn.Module, embeds: Tensor, mask: Tensor, positions: Tensor, cache: PrefixCache | None) -> Tensor:
    """One pass of the decoder: embeddings [B, S, D], 4-D bool mask, positions [B, S] or [3, B, S] -> last states
    [B, S, D]."""
    return network(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    ).last_hidden_state


@dataclass(frozen=True)
class Rows:
    """Which prefix each of B rows continues, and which unconditional one in its guidance branch."""

    prefix: Tensor  # [B]
    unconditional: Tensor | None  # [B], None without guidance

    def branches(self) -> Tensor:
        """Conditional rows, then the unconditional ones. [B or 2B]"""
        return self.prefix if self.unconditional is None else torch.cat([self.prefix, self.unconditional])

    def some(self, which: Tensor | slice) -> Rows:
        """Some of the rows."""
        return Rows(self.prefix[which], None if self.unconditional is None else self.unconditional[which])

    def repeat(self, x: Tensor) -> Tensor:
        """The same input for both branches."""
        return x if self.unconditional is None else torch.cat([x, x])

    def split(self, x: Tensor, which: Tensor | EllipsisType = ...) -> tuple[Tensor, Tensor | None]:
        """Conditional and unconditional halves, or of both the entries that `which` names."""
        count = len(self.prefix)
        return x[:count][which], None if self.unconditional is None else x[count:][which]


PLAIN = PolicyConfig("", gradient_checkpointing="never")


@dataclass(frozen=True)
class Speaker:
    """A causal `transformers` decoder over input embeddings, with what stands before and after it."""

    network: nn.Module
    embed: Callable[[Tensor], Tensor]
    """Token ids [N] -> embeddings [N, D]."""
    head: Callable[[Tensor], Tensor]
    """States [N, D] -> logits [N, V]."""
    config: PolicyConfig = PLAIN
    """How it computes, which changes no number but for rounding."""


@dataclass(frozen=True)
class Prompts:
    """P distinct prefixes, and which of them each of B rows continues."""

    prefixes: Sequence[Tensor]  # each [S_p, D] embeddings
    rows: Rows
    open_to_all: Sequence[Tensor] = ()  # this and what follows as in `run_prefixes`
    positions: Sequence[Tensor] = ()

    def run(self, network: nn.Module, keep: bool = True, recompute: Recompute = "never") -> Prefixed:
        """`run_prefixes` of them."""
        return run_prefixes(network, self.prefixes, self.open_to_all, None, keep, self.positions, recompute)


@torch.no_grad()
def sample(
    speaker: Speaker,
    prompts: Prompts,
    sampling: Sampling,
    u: Tensor,
    stop: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Samples one continuation a row, all rows at once (see `refill.sample`).

    Args:
        sampling: temperature and classifier-free guidance.
        u: uniform numbers [B, L]; L is the longest continuation.
        stop: id that ends a row, None for continuations of fixed length.

    Returns:
        ids [B, L'] and log-probabilities [B, L'] with L' <= L; what follows a row's stop token is to be ignored.
    """
    done, rows = prompts.run(speaker.network), prompts.rows
    branches = rows.branches()
    hidden = done.last[branches]
    ids: list[Tensor] = []
    logps: list[Tensor] = []
    running = torch.ones(len(rows.prefix), dtype=torch.bool, device=u.device)
    with _decoder(speaker, done, branches, u.shape[1]) as step, to_logits(speaker) as logits:
        for t in range(u.shape[1]):
            if t:
                hidden = step(rows.repeat(speaker.embed(ids[-1])))
            chosen, logp = decide(logits, hidden, rows, sampling, u[:, t])
            ids.append(chosen)
            logps.append(logp)
            if stop is not None:
                running &= chosen != stop
                if not running.any():
                    break
    return torch.stack(ids, 1), torch.stack(logps, 1)


Decode: TypeAlias = Callable[[Tensor], Tensor]
"""Embeddings of the next position of each row -> its states. [B, D]"""


@contextmanager
def _decoder(speaker: Speaker, done: Prefixed, rows: Tensor, room: int) -> Iterator[Decode]:
    """Continues prefix `rows[b]` in row b by up to `room` positions, one a call."""
    done.cache.continue_with(rows, room)
    visible = F.pad(done.visible[rows], (0, room), value=True)
    with continuing(speaker) as start:
        yield start(done.cache, visible, done.lengths[rows], done.visible.shape[1])


Start: TypeAlias = "Callable[[PrefixCache, Tensor, Tensor, int], cpu.Decoder | _Forward | graph.StaticStep]"
"""A cache of rows with room, what they may see of it [B, S] bool, the positions that follow [B] and what is filled of S
-> what decodes them."""


@contextmanager
def continuing(speaker: Speaker) -> Iterator[Start]:
    """Inside it rows are continued with weights prepacked as they are now: by our own step where it fits the network,
    else by the network's own forward; or, compiled, with the weights themselves."""
    network = speaker.network
    if speaker.config.compile_decode:
        yield lambda cache, *where: graph.StaticStep(network, cache.layers, *where, compiled=True)
        return
    if cpu.supports(network):
        weights = cpu.prepack(network)
        yield lambda cache, *where: cpu.Decoder(weights, cache.layers, *where)
        return
    with prepacked(network):
        yield lambda cache, *where: _Forward(network, cache, *where)


@dataclass
class _Forward:
    """`cpu.Decoder` for any network."""

    network: nn.Module
    past: PrefixCache
    visible: Tensor  # [B, S] bool with room
    lengths: Tensor  # [B]
    filled: int
    steps: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        positions = self.lengths[:, None] + self.steps
        self.steps += 1
        # always a 4-D mask: else `transformers` asks the cache for one
        mask = self.visible[:, None, None, : self.filled + self.steps]
        return run(self.network, x[:, None], mask, positions, self.past)[:, -1]

    def cache(self) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values so far. [B, K, S, D]"""
        at = self.filled + self.steps
        return [(k[:, :, :at], v[:, :, :at]) for k, v in self.past.layers]


@contextmanager
def to_logits(speaker: Speaker) -> Iterator[Callable[[Tensor], Tensor]]:
    """The head with prepacked weights, in autocast's type, or in the weights' own where sampling has a type of its
    own."""
    head = speaker.head
    if speaker.config.rollout_dtype is None:
        with prepacked(head):
            yield head
        return
    assert isinstance(head, nn.Module)
    weight = next(head.parameters())
    with ExitStack() as stack:
        with torch.autocast(weight.device.type, enabled=False):  # weights are prepacked in the type that counts now
            stack.enter_context(prepacked(head))

        def in_own_type(hidden: Tensor) -> Tensor:
            with torch.autocast(weight.device.type, enabled=False):
                return head(hidden.to(weight.dtype))

        yield in_own_type


def decide(
    head: Callable[[Tensor], Tensor], hidden: Tensor, rows: Rows, sampling: Sampling, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Draws the next token of every row from its branches' states [B or 2B, D]; ids [B] and log-probabilities [B]."""
    conditional, unconditional = rows.split(head(hidden).float())
    ids, logp, _ = tokens.draw(conditional, unconditional, sampling, lambda logp: tokens.pick(logp, u))
    return ids, logp


def score(
    speaker: Speaker,
    prompts: Prompts,
    sampling: Sampling,
    continuations: Sequence[Tensor],
) -> list[Tensor]:
    """Log-probabilities of given continuations, differentiable.

    Args:
        sampling: temperature and classifier-free guidance.
        continuations: the ids of each row, each [L_b].

    Returns:
        each [L_b] float32
    """
    lengths = [len(ids) for ids in continuations]
    ids = [part.to(prompts.rows.prefix.device) for part in continuations]
    states = _states_in_one if speaker.config.attention == "flex" else _states_in_rows
    conditional, unconditional = states(speaker, prompts, ids)
    return list(tokens.score(speaker.head, conditional, torch.cat(ids), sampling, unconditional).split(lengths))


def _states_in_rows(
    speaker: Speaker, prompts: Prompts, continuations: Sequence[Tensor]
) -> tuple[Tensor, Tensor | None]:
    """The states that predict all given tokens, row after row, of both branches. [N, D] each"""
    again, rows = speaker.config.gradient_checkpointing, prompts.rows
    done = prompts.run(speaker.network, recompute=again)
    ids = pad_sequence(list(continuations), batch_first=True)
    lengths = torch.tensor([len(row) for row in continuations], device=ids.device)
    with checkpointed(speaker.network, rows.branches().numel() * ids.shape[1], again):
        hidden = continuation_states(speaker.network, done, rows, speaker.embed, ids)
    return rows.split(hidden, torch.arange(ids.shape[1], device=ids.device) < lengths[:, None])


def _states_in_one(speaker: Speaker, prompts: Prompts, continuations: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """The same in one packed sequence."""
    rows, prefixes = prompts.rows, prompts.prefixes
    every = [*continuations] * (1 if rows.unconditional is None else 2)
    positions = sum(map(len, [*prefixes, *every]))
    with checkpointed(speaker.network, positions, speaker.config.gradient_checkpointing):
        hidden = torch.cat(packed.states(speaker.network, prefixes, rows.branches(), speaker.embed, every))
    count = sum(map(len, continuations))
    return hidden[:count], None if rows.unconditional is None else hidden[count:]


def continuation_states(
    network: nn.Module, done: Prefixed, rows: Rows, embed: Callable[[Tensor], Tensor], ids: Tensor
) -> Tensor:
    """The states that predict each given token, for all branches. [B or 2B, L, D]"""
    branches = rows.branches()
    first = done.last[branches, None]
    length = ids.shape[1] - 1  # the last token is predicted but never read
    if not length:
        return first
    done.cache.continue_with(branches)
    at = torch.arange(length, device=ids.device)
    own = (at[:, None] >= at).expand(len(branches), -1, -1)
    before = done.visible[branches, None].expand(-1, length, -1)
    positions = done.lengths[branches, None] + at
    embeds = rows.repeat(embed(ids[:, :-1]))
    later = run(network, embeds, torch.cat([before, own], -1)[:, None], positions, done.cache)
    return torch.cat([first, later], 1)
