"""One more position through a plain Llama decoder: what sampling repeats hundreds of times, on the CPU.

The same equations as `transformers`' `LlamaModel` (RMSNorm, rotary attention with grouped queries, gated MLP) with what
does not change from token to token done once a rollout: weights prepacked and joined (queries, keys and values in one
product, gate and up in another), rotary angles of all positions, the mask, room for all keys and values. A step has the
same shapes every time but for the filled part of the cache, and decides nothing by values.

Attention of one query a row is bound by memory, and PyTorch's fused attention, made for many queries, reads far slower
than the CPU can (about half as fast in float32, a tenth in bfloat16). Here scores are batched products with keys in
float32, and the mixture of values is `embedding_bag`: the weighted sum of a table's rows that it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.llama import modeling_llama as llama

from unison.policies.decoding.matmul import Product, compute_type, product

PLAIN = (
    nn.ModuleList,
    nn.Embedding,
    nn.Linear,
    llama.LlamaModel,
    llama.LlamaDecoderLayer,
    llama.LlamaAttention,
    llama.LlamaMLP,
    llama.LlamaRMSNorm,
    llama.LlamaRotaryEmbedding,
)
FIXED_ANGLES = ("default", "linear", "llama3")  # kinds of rotary embedding that do not depend on the sequence's length


def supports(network: nn.Module) -> bool:
    """Whether `Decoder` computes what this network does: a `LlamaModel` on the CPU that nobody adapted or wrapped."""
    return (
        type(network) is llama.LlamaModel
        and network.device.type == "cpu"
        and network.dtype in (torch.float32, torch.bfloat16)
        and network.rotary_emb.rope_type in FIXED_ANGLES
        and not (network.training and network.config.attention_dropout)
        and all(type(m) in PLAIN or name.endswith("act_fn") for name, m in network.named_modules())
        and not any("forward" in vars(m) or m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    )


@dataclass(frozen=True)
class Layer:
    """A layer's parts."""

    attention_norm: nn.Module
    qkv: Product
    out: Product
    mlp_norm: nn.Module
    gate_up: Product
    act: nn.Module
    down: Product
    kind: torch.dtype  # of the products


@dataclass(frozen=True)
class Prepacked:
    """A network whose weights have been prepacked as they were, in the type that autocast had then."""

    network: llama.LlamaModel
    layers: list[Layer]


def prepack(network: nn.Module) -> Prepacked:
    """Prepacks a network that `supports` accepts."""
    assert isinstance(network, llama.LlamaModel)
    return Prepacked(network, [_layer(layer) for layer in network.layers])


class Decoder:
    """Continues rows whose prefixes have been computed: a call sends the next position of every row through."""

    def __init__(
        self,
        prepacked: Prepacked,
        cache: Sequence[tuple[Tensor, Tensor]],
        visible: Tensor,
        lengths: Tensor,
        filled: int,
    ) -> None:
        """Takes over the cache.

        Args:
            prepacked: the network.
            cache: each layer's keys and values [B, K, S, D]: what went before, padded on the left, then room.
            visible: [B, S] bool, False at padding.
            lengths: [B] positions that follow what went before, without padding.
            filled: S of what went before alone.
        """
        attention: Any = prepacked.network.layers[0].self_attn
        groups, (rows, room) = attention.num_key_value_groups, visible.shape
        self.scaling: float = attention.scaling
        self.width: int = attention.head_dim
        self.heads: int = attention.config.num_attention_heads
        self.key_heads = self.heads // groups
        self.layers = prepacked.layers
        # keys [B, K, S, D] float32 and values [B, K, S, D] in the type of the products, of every layer
        kinds = [layer.kind for layer in prepacked.layers]
        self.keys = [k.contiguous().to(kind).float() for (k, _), kind in zip(cache, kinds, strict=True)]
        self.values = [v.contiguous().to(kind) for (_, v), kind in zip(cache, kinds, strict=True)]
        self.norm = prepacked.network.norm
        self.filled = filled
        self.steps = 0
        self.cos, self.sin = _angles(prepacked.network, lengths, room - filled)
        self.bias = _bias(visible, self.key_heads)
        # where in the table of all values, [B * K * S, D], the positions that each query head sees are; [B * H, S]
        tables = torch.arange(rows * self.key_heads, dtype=torch.int32, device=visible.device) * room
        at = torch.arange(room, dtype=torch.int32, device=visible.device)
        self.where = tables.repeat_interleave(groups)[:, None] + at

    def cache(self) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values so far. [B, K, S, D]"""
        at = self.filled + self.steps
        return [(k[:, :, :at], v[:, :, :at]) for k, v in zip(self.keys, self.values, strict=True)]

    def __call__(self, x: Tensor) -> Tensor:
        """Embeddings of the next position of each row -> its states. [B, D]"""
        cos, sin = self.cos[self.steps].to(x.dtype), self.sin[self.steps].to(x.dtype)
        where = self.where[:, : self.filled + self.steps + 1].contiguous()
        with torch.autocast(x.device.type, enabled=False):  # the products have their type already
            for layer, keys, values in zip(self.layers, self.keys, self.values, strict=True):
                qkv = layer.qkv(_rms(layer.attention_norm, x))
                x = x + layer.out(self._attention(keys, values, qkv, cos, sin, where))
                gate, up = layer.gate_up(_rms(layer.mlp_norm, x)).chunk(2, -1)
                x = x + layer.down(layer.act(gate) * up)
        self.steps += 1
        return _rms(self.norm, x)

    def _attention(
        self, all_keys: Tensor, all_values: Tensor, qkv: Tensor, cos: Tensor, sin: Tensor, where: Tensor
    ) -> Tensor:
        """Takes in the new position's keys and values, and attends with its queries. [B, H * D]"""
        at = self.filled + self.steps
        turned, values = qkv.unflatten(-1, (-1, self.width)).split([self.heads + self.key_heads, self.key_heads], 1)
        queries, keys = _rotate(turned, cos, sin).to(values.dtype).split([self.heads, self.key_heads], 1)
        all_keys[:, :, at] = keys
        all_values[:, :, at] = values
        weights = self._weights(all_keys.flatten(0, 1)[:, : at + 1], queries.float()).to(values.dtype)
        mixed = F.embedding_bag(where, all_values.flatten(0, 2), mode="sum", per_sample_weights=weights)
        return mixed.view(len(qkv), -1)

    def _weights(self, keys: Tensor, queries: Tensor) -> Tensor:
        """Attention weights of every query head. [B * H, S]"""
        # a transposed view, not a copy: MKL reads the keys three times as fast for it
        queries = queries.reshape(len(keys), -1, self.width).transpose(1, 2)  # [B * K, D, H / K]
        scores = torch.baddbmm(self.bias[:, : keys.shape[1]], keys, queries, alpha=self.scaling)
        return scores.transpose(1, 2).reshape(-1, keys.shape[1]).softmax(-1)


def _layer(layer: Any) -> Layer:
    """A `LlamaDecoderLayer`."""
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        attention_norm=layer.input_layernorm,
        qkv=product(attention.q_proj, attention.k_proj, attention.v_proj),
        out=product(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm,
        gate_up=product(mlp.gate_proj, mlp.up_proj),
        act=mlp.act_fn,
        down=product(mlp.down_proj),
        kind=compute_type(attention.q_proj.weight),
    )


def _angles(network: llama.LlamaModel, lengths: Tensor, room: int) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary embedding for each row's positions to come. each [room, B, 1, D]"""
    positions = torch.arange(room, device=lengths.device)[:, None] + lengths
    cos, sin = network.rotary_emb(torch.empty(0, device=lengths.device), positions)
    low, high = sin.chunk(2, -1)
    return cos[:, :, None], torch.cat([-low, high], -1)[:, :, None]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; the sine of the lower half has its sign already."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


def _bias(visible: Tensor, heads: int) -> Tensor:
    """What is added to scores: 0, or minus infinity at padding. [B * heads, S, 1]"""
    bias = torch.zeros(visible.shape, device=visible.device).masked_fill(~visible, -torch.inf)
    return bias.repeat_interleave(heads, 0)[..., None]


def _rms(norm: nn.Module, x: Tensor) -> Tensor:
    """Root mean square normalisation, rounded where `transformers` rounds."""
    assert isinstance(norm, llama.LlamaRMSNorm)
    return norm.weight * F.rms_norm(x.float(), norm.weight.shape, eps=norm.variance_epsilon).to(x.dtype)
