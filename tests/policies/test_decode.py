"""The decoding step of our own: the states of `transformers`' forward, and only for networks that it fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PhiConfig, PhiModel, Qwen2Config, Qwen2Model

from unison.policies.decisions.tokens import uniforms
from unison.policies.decoding import causal, cpu
from unison.policies.decoding.matmul import prepacked, product
from unison.policies.janus.policy import Janus
from unison.types import Context, Sampling

WIDTH, STEPS, VOCABULARY = 48, 7, 40
LENGTHS = 3, 9, 5  # of the prefixes
ROWS = torch.tensor([0, 0, 1, 2, 2])  # the prefix that each row continues
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two queries a key": {"num_key_value_heads": 2},
    "one key for all": {"num_key_value_heads": 1},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "heads wider than the network": {"head_dim": 32, "num_key_value_heads": 2},
    "another activation": {"hidden_act": "gelu"},
    "scaled angles": {"rope_parameters": LLAMA3},
}


class Foreign(LlamaModel):
    """The same network under a name that is not known, so that it takes the general path."""


def random(kind: type, config: Any) -> Any:
    """A network with weights so large that every part of it matters."""
    torch.manual_seed(0)
    network = kind(config).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(1 if weight.ndim == 1 else 0, 0.2)
    return network


def llama(kind: type = LlamaModel, **fields: Any) -> Any:
    return random(kind, LlamaConfig(**(SIZES | fields)))


def inputs(kind: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Prefixes [S_p, D] and what follows them, [B, STEPS, D]."""
    generator = torch.Generator().manual_seed(1)
    prefixes = [torch.randn(length, WIDTH, generator=generator).to(kind) for length in LENGTHS]
    return prefixes, torch.randn(len(ROWS), STEPS, WIDTH, generator=generator).to(kind)


@torch.no_grad()
def stepped(network: nn.Module, prefixes: Sequence[Tensor], later: Tensor) -> Tensor:
    """States of the later positions, one pass each. [B, STEPS, D]"""
    done = causal.run_prefixes(network, prefixes)
    with causal._decoder(causal.Speaker(network, nn.Identity(), nn.Identity()), done, ROWS, STEPS) as step:
        return torch.stack([step(x) for x in later.unbind(1)], 1)


# -- the same states ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_step_gives_the_states_of_the_general_path(variant: str) -> None:
    ours, foreign = llama(**VARIANTS[variant]), llama(Foreign, **VARIANTS[variant])
    assert cpu.supports(ours)
    assert not cpu.supports(foreign)
    states = stepped(ours, *inputs())
    assert states.std() > 0.1
    assert torch.allclose(states, stepped(foreign, *inputs()), atol=1e-5)


@pytest.mark.parametrize("kind", [LlamaModel, Foreign], ids=["our step", "general path"])
def test_both_paths_give_the_states_of_a_whole_pass_without_padding(kind: type) -> None:
    network = llama(kind, num_key_value_heads=2)
    prefixes, later = inputs()
    states = stepped(network, prefixes, later)
    for row, number in enumerate(ROWS):
        whole = torch.cat([prefixes[number], later[row]])[None]
        with torch.no_grad():
            expected = network(inputs_embeds=whole).last_hidden_state[0, -STEPS:]
        assert torch.allclose(states[row], expected, atol=1e-5)


@pytest.mark.parametrize("embeds", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "weights"])
def test_in_bfloat16_our_step_is_as_near_the_truth_as_the_general_path(autocast: bool, embeds: torch.dtype) -> None:
    if not autocast:
        embeds = torch.bfloat16
    truth = stepped(llama(), *inputs())
    gaps = []
    for kind in (LlamaModel, Foreign):
        network = llama(kind).to(torch.float32 if autocast else torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            prefixes, later = inputs(torch.float32 if autocast else embeds)
            gaps.append((stepped(network, prefixes, later.to(embeds)).float() - truth).square().mean().sqrt())
    ours, general = gaps
    assert 1e-4 < ours < 1.2 * general


# -- which networks it fits ---------------------------------------------------------------------------------------


def wrapped(network: Any) -> nn.Module:
    linear = network.layers[1].mlp.up_proj
    linear.forward = linear.forward
    return network


def hooked(network: Any) -> nn.Module:
    network.layers[1].register_forward_hook(lambda *_: None)
    return network


def replaced(network: Any) -> nn.Module:
    class Twice(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    network.layers[1].mlp.up_proj = Twice(WIDTH, SIZES["intermediate_size"], bias=False)
    return network


NOT_OURS: dict[str, Callable[[], nn.Module]] = {
    "a wrapped layer": lambda: wrapped(llama()),
    "a hook": lambda: hooked(llama()),
    "another kind of linear layer": lambda: replaced(llama()),
    "angles that depend on the length": lambda: llama(
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    ),
    "dropout": lambda: llama(attention_dropout=0.1).train(),
    "double precision": lambda: llama().double(),
    "another device": lambda: llama().to("meta"),
    "Qwen2": lambda: random(Qwen2Model, Qwen2Config(**SIZES)),
    "Phi": lambda: random(PhiModel, PhiConfig(**SIZES)),
}


@pytest.mark.parametrize("case", NOT_OURS)
def test_what_does_not_fit_takes_the_general_path(case: str) -> None:
    assert not cpu.supports(NOT_OURS[case]())


def test_a_policy_takes_our_step_unless_it_has_adapters(make_policy: Callable[..., Janus]) -> None:
    assert cpu.supports(make_policy().network.model.language_model)
    assert not cpu.supports(make_policy(lora_rank=2).network.model.language_model)


@pytest.mark.parametrize("case", ["ours", "Qwen2", "Phi", "a hook", "another kind of linear layer"])
def test_every_decoder_replays_what_it_sampled(case: str) -> None:
    network: Any = llama() if case == "ours" else NOT_OURS[case]()
    embed, head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
    prefixes, _ = inputs()
    speaker, prompts = causal.Speaker(network, embed, head), causal.Prompts(prefixes, causal.Rows(ROWS[:3], ROWS[2:]))
    sampling = Sampling(temperature=0.8, guidance=2.0)
    ids, logp = causal.sample(speaker, prompts, sampling, uniforms(range(3), STEPS))
    with torch.no_grad():
        replayed = torch.stack(causal.score(speaker, prompts, sampling, list(ids)))
    assert len(ids.unique()) > STEPS
    assert (replayed - logp).abs().max() < 1e-4


def test_weights_are_read_anew_for_every_rollout(make_policy: Callable[..., Janus]) -> None:
    policy, context = make_policy(), [Context(("a red circle",))]
    before = policy.draw(context, Sampling(), [0])[0].logp
    with torch.no_grad():
        for weight in policy.network.model.language_model.layers.parameters():
            weight.mul_(0.7)
        drawings = policy.draw(context, Sampling(), [0])
        assert not torch.allclose(before, drawings[0].logp, atol=1e-2)
        assert (policy(context, drawings)[0] - drawings[0].logp).abs().max() < 1e-4


# -- prepacked products ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_a_joined_product_is_that_of_each_layer(kind: torch.dtype, bias: bool) -> None:
    layers = [nn.Linear(WIDTH, size, bias=bias).to(kind) for size in (16, 40)]
    x = torch.randn(5, WIDTH)
    expected = torch.cat([layer(x.to(kind)) for layer in layers], -1)
    result = product(*layers)(x)
    assert result.dtype == kind
    assert torch.allclose(result, expected, atol=1e-5 if kind != torch.bfloat16 else 2e-2)


def test_packing_ends_with_its_block_even_on_an_error() -> None:
    layer, x = nn.Linear(WIDTH, 16), torch.randn(5, WIDTH)

    def fail() -> None:
        with prepacked(layer, "no module"):
            assert torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), atol=1e-5)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "forward" not in vars(layer)
