"""Gradient checkpointing: layers that are computed twice keep less. That they give the same is in the contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from unison.config import Recompute
from unison.policies.decoding import gradient_checkpointing
from unison.policies.decoding.gradient_checkpointing import checkpointed, kept_bytes


def network() -> LlamaModel:
    torch.manual_seed(0)
    return LlamaModel(
        LlamaConfig(vocab_size=10, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=2)
    )


def kept(choice: Recompute, positions: int) -> int:
    """Numbers that the backward pass keeps of one pass, but for weights."""
    decoder = network()
    weights = {p.data_ptr() for p in decoder.parameters()}
    sizes: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in weights:
            sizes[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), checkpointed(decoder, positions, choice):
        decoder(inputs_embeds=torch.randn(1, positions, 32), use_cache=False)
    return sum(sizes.values())


def test_layers_keep_their_inputs_alone() -> None:
    assert kept("always", 200) < kept("never", 200) / 4


def test_the_estimate_is_what_is_kept() -> None:
    assert kept_bytes(network(), 200) == pytest.approx(4 * kept("never", 200), rel=0.5)


def test_size_decides_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, least = kept("never", 200), kept("always", 200)
    assert kept("auto", 200) == whole
    monkeypatch.setattr(gradient_checkpointing, "FROM_BYTES", kept_bytes(network(), 200))
    assert kept("auto", 200) == least
    assert kept("auto", 199) > kept("always", 199)


def test_layers_are_as_they_were_afterwards() -> None:
    decoder = network()
    own = decoder.layers[0].forward
    vars(decoder.layers[1])["forward"] = own  # of another library
    with checkpointed(decoder, 1, "always"):
        assert all("forward" in vars(layer) for layer in decoder.layers)
        assert vars(decoder.layers[1])["forward"] != own
    assert "forward" not in vars(decoder.layers[0])
    assert vars(decoder.layers[1])["forward"] == own
