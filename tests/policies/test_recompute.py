"""Layers that are computed twice give what layers that keep everything give, and keep less."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from unison.config import Recompute
from unison.policies.decoding import gradient_checkpointing
from unison.policies.decoding.gradient_checkpointing import checkpointed, kept_bytes
from unison.policies.janus.policy import Janus
from unison.policies.metaquery.policy import MetaQuery
from unison.policies.showo.policy import ShowO
from unison.types import Context, Sampling

Made = Callable[..., Janus | ShowO | MetaQuery]


@pytest.fixture(params=["make_policy", "make_showo", "make_metaquery"])
def make(request: pytest.FixtureRequest) -> Made:
    return request.getfixturevalue(request.param)


def gradient(policy: Janus | ShowO | MetaQuery) -> tuple[Tensor, Tensor]:
    """Log-probabilities of replies to two questions, and the gradient of their sum."""
    contexts = [context for word in ("red", "two") for context in [Context((f"what is {word}?",))] * 2]
    replies = policy.write(contexts, Sampling(max_tokens=6), range(4))
    logp = torch.cat(policy(contexts, replies))
    logp.sum().backward()
    return logp.detach(), torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def test_scoring_is_the_same_with_and_without(make: Made) -> None:
    (kept, one), (again, two) = (gradient(make(gradient_checkpointing=choice)) for choice in ("never", "always"))
    assert torch.allclose(kept, again, atol=1e-5)
    assert one.norm() > 0
    assert torch.allclose(one, two, atol=1e-5 * one.abs().max().item())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_drawings_are_scored_the_same(make_policy: Callable[..., Janus], guidance: float) -> None:
    found = []
    for choice in ("never", "always"):
        policy, contexts = make_policy(gradient_checkpointing=choice), [Context(("a red circle",))] * 2
        logp = torch.stack(policy(contexts, policy.draw(contexts, Sampling(guidance=guidance), range(2))))
        logp.sum().backward()
        gradients = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
        found.append((logp.detach(), torch.cat(gradients)))
    (kept, one), (again, two) = found
    assert torch.allclose(kept, again, atol=1e-5)
    assert torch.allclose(one, two, atol=1e-5 * one.abs().max().item())


def test_a_prompt_that_is_computed_again_draws_the_same_paths(make_metaquery: Callable[..., MetaQuery]) -> None:
    found = []
    for choice in ("never", "always"):
        policy = make_metaquery(gradient_checkpointing=choice)
        contexts = [Context(("a red circle",)), Context(("a dog",))]
        logp = torch.cat(policy(contexts, policy.draw(contexts, Sampling(steps=3), range(2))))
        logp.sum().backward()
        found.append((logp.detach(), policy.network.bridge.queries["draw"].grad))
    (kept, one), (again, two) = found
    assert torch.allclose(kept, again, atol=1e-5)
    assert torch.allclose(one, two, atol=1e-5 * one.abs().max().item())


# -- which layers keep what --------------------------------------------------------------------------------------


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
