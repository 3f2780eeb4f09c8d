"""Scoring in one packed sequence: [prefixes][continuation 1]..[continuation B] under a block mask.

Every token sees its own prefix and what its own continuation has before it. Keys and values of a prefix then exist
once, not once a row, and nothing is padded. The mask is sparse, so this wants an attention that skips empty blocks:
PyTorch's FlexAttention, on a GPU (its backward pass is not there on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "unison_blocks"


@dataclass(frozen=True)
class Layout:
    """Whose tokens stand where in a packed sequence of T positions."""

    owner: Tensor  # [T] prefix p as p, row b as P + b
    base: Tensor  # [T] the prefix that each position belongs to or continues
    positions: Tensor  # [T] in its own row
    last: Tensor  # [P] where each prefix ends
    starts: Tensor  # [B] where each continuation starts

    @classmethod
    def of(cls, prefixes: Sequence[int], rows: Tensor, continued: Sequence[int]) -> Layout:
        """Of prefixes' lengths, the prefix of each row, and how many tokens of each row are read."""
        device = rows.device
        lengths = torch.tensor([*prefixes, *continued], device=device)
        count = len(prefixes)
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        bases = torch.cat([torch.arange(count, device=device), rows])
        begins = lengths.cumsum(0) - lengths
        offsets = torch.cat([torch.zeros_like(lengths[:count]), lengths[:count][rows]])
        positions = torch.arange(len(owner), device=device) - begins[owner] + offsets[owner]
        return cls(owner, bases[owner], positions, (begins + lengths)[:count] - 1, begins[count:])

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether positions see others. bool"""
        own = self.owner[query] == self.owner[key]
        return (key <= query) & (own | (self.owner[key] == self.base[query]))

    def blocks(self) -> BlockMask:
        size = len(self.owner)
        return create_block_mask(lambda b, h, q, k: self.sees(q, k), None, None, size, size, str(self.owner.device))


def states(
    network: nn.Module,
    prefixes: Sequence[Tensor],
    rows: Tensor,
    embed: Callable[[Tensor], Tensor],
    continuations: Sequence[Tensor],
    mask_of: Callable[[Layout], Any] = Layout.blocks,
) -> list[Tensor]:
    """The states that predict each given token.

    Args:
        network: a causal `transformers` decoder over input embeddings, which `accept` has been told of.
        prefixes: P tensors [S_p, D] of embeddings.
        rows: [B] the prefix of each row.
        embed: token ids [N] -> embeddings [N, D].
        continuations: the ids of each row, each [L_b].
        mask_of: makes the attention mask.

    Returns:
        each [L_b, D]
    """
    read = [ids[:-1] for ids in continuations]  # the last token is predicted but never read
    layout = Layout.of([len(p) for p in prefixes], rows, [len(ids) for ids in read])
    embeds = torch.cat([*prefixes, embed(torch.cat(read).to(rows.device))])[None]
    out: Any = network(
        inputs_embeds=embeds, attention_mask=mask_of(layout), position_ids=layout.positions[None], use_cache=False
    ).last_hidden_state[0]
    firsts, starts = layout.last[rows].tolist(), layout.starts.tolist()
    return [
        torch.cat([out[first : first + 1], out[start : start + len(ids)]])
        for first, start, ids in zip(firsts, starts, read, strict=True)
    ]


# -- the attention -------------------------------------------------------------------------------------------------


def accept(network: nn.Module) -> None:
    """From now on the decoder's attention takes block masks, and other masks as before."""
    AttentionInterface.register(NAME, attend)
    config: Any = network.config
    config._attn_implementation = NAME


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    scaling: float | None = None,
    **kwargs: Any,  # as `transformers` calls it
) -> tuple[Tensor, None]:
    """Attention of [1, H, T, D] under a block mask [1, T, H, D], or `transformers`' own."""
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    flex = _flex(query.device.type)
    shared = key.shape[1] != query.shape[1]
    mixed: Any = flex(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=shared)
    return mixed.transpose(1, 2).contiguous(), None


@cache
def _flex(device: str) -> Callable[..., Any]:
    """Compiled into one kernel on a GPU; on a CPU the reference, which has no backward pass."""
    return torch.compile(flex_attention) if device == "cuda" else flex_attention
