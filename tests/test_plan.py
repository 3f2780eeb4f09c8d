"""The dry run's memory estimate counts what a loaded policy really holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

from unison.config import ObjectiveConfig, PolicyConfig, RunConfig
from unison.plan import estimate_memory
from unison.policies import family_of, load_policy
from unison.policies.magvit import MagvitConfig
from unison.policies.shapes import LOCAL, SANA_KEPT, SANA_KEPT_GATED, showo_sizes
from unison.policies.showo import ShowO
from unison.policies.showo_net import PhiSizes, ShowOConfig, ShowONetwork
from unison.recipes import corl, unirl
from unison.types import Context, Sampling
from unison.world.pretrain import CorpusConfig
from unison.world.pretrain_showo import build_tokenizer

SHOW_O_TARGETS = r"showo\..*\.(q_proj|k_proj|v_proj|dense|fc1|fc2)"


@pytest.fixture(scope="module", params=["checkpoint", "showo", "showo_clip", "metaquery"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every family, and a Show-o that reads images through CLIP."""
    made = request.getfixturevalue(request.param)
    if isinstance(made, Path):
        return made
    folder = tmp_path_factory.mktemp(request.param)
    made.save(folder)
    return folder


def config(path: Path, kl_beta: float = 0.0, **policy: Any) -> RunConfig:
    run = corl.tiny_unified()
    policy = {"frozen": run.policy.frozen, **policy} if family_of(str(path)) == "janus" else policy
    return replace(run, policy=PolicyConfig(str(path), **policy), objective=ObjectiveConfig(kl_beta=kl_beta))


def targets(path: Path) -> str:
    return SHOW_O_TARGETS if family_of(str(path)) == "showo" else PolicyConfig.lora_targets


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_weights_and_optimiser_states_are_those_of_the_loaded_policy(folder: Path, lora_rank: int, dtype: str):
    run = config(folder, lora_rank=lora_rank, dtype=dtype, lora_targets=targets(folder))
    weights = list(load_policy(run.policy).parameters())
    trained = sum(p.numel() * p.element_size() for p in weights if p.requires_grad)
    found = estimate_memory(run)
    assert found["weights"] == sum(p.numel() * p.element_size() for p in weights)
    assert found["AdamW states"] == 2 * trained  # adapters are float32 whatever the weights are
    assert found["gradients (and their copy for per-modality norms)"] == 2 * trained


def test_a_reference_costs_a_copy_of_what_is_trained_but_for_adapters(checkpoint: Path):
    whole, adapted = (estimate_memory(config(checkpoint, kl_beta=0.02, lora_rank=rank)) for rank in (0, 4))
    assert whole["reference"] == whole["AdamW states"] / 2 > 0
    assert adapted["reference"] == 0


def test_the_sum_is_that_of_the_lines(checkpoint: Path):
    found = estimate_memory(config(checkpoint))
    assert found.pop("sum") == sum(found.values())


def test_a_family_without_an_estimate_is_refused_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(LOCAL, "janus")
    with pytest.raises(ValueError, match=r"knows the memory of .*showo.*, not of 'janus'"):
        estimate_memory(config(checkpoint))


def test_adapters_that_fit_nothing_are_refused_as_on_loading(showo: ShowO, tmp_path: Path):
    showo.save(tmp_path)
    with pytest.raises(ValueError, match=r"policy\.lora_targets = .*language_model.* matches no module"):
        estimate_memory(config(tmp_path, lora_rank=4))


def test_show_o_at_512_pixels_is_estimated_without_a_file():
    run = unirl.show_o_512_grpo()
    found = estimate_memory(run)
    decoder, painter = 1_448_176_770, 95_387_004
    assert found["weights"] == 4 * (decoder + painter)
    assert found["AdamW states"] == 2 * 4 * decoder  # the image tokenizer is never trained
    assert found["reference"] == 4 * decoder
    half = estimate_memory(replace(run, policy=replace(run.policy, dtype="bfloat16")))
    assert half["weights"] == 2 * decoder + 4 * painter


def test_scoring_more_rounds_costs_no_more_memory_than_a_chunk_of_them():
    run = unirl.show_o_256_grpo()
    by_rounds = [
        estimate_memory(replace(run, optim=replace(run.optim, scored_rounds=rounds)))["activations of a micro-batch"]
        for rounds in (1, 2, 5, 0)
    ]
    assert by_rounds[0] < by_rounds[1] <= by_rounds[2] == by_rounds[3]
    one_pass = replace(run.optim, scoring="whole_canvas", scored_rounds=0)
    assert estimate_memory(replace(run, optim=one_pass))["activations of a micro-batch"] == by_rounds[0]


def test_a_smaller_share_of_show_os_memory_is_relaxation_without_guidance():
    run = unirl.show_o_512_sft()
    guided = replace(run.scenario, image=replace(run.scenario.image, score_conditional=False))
    one, two = (estimate_memory(r)["drawings differentiated through"] for r in (run, replace(run, scenario=guided)))
    assert 0 < one < two < 2 * one
    assert estimate_memory(unirl.show_o_512_grpo())["drawings differentiated through"] == 0


PAINTER = MagvitConfig(8, 4, 6, (1, 1), (1, 1), (1, 1), (1, 1))


def kept_for_the_backward_pass(layers: int, side: int) -> int:
    """Values that scoring a drawing of side x side tokens in one round keeps."""
    tokenizer = build_tokenizer(CorpusConfig())
    sizes = ShowOConfig(False, len(tokenizer), 64, side**2, max_seq_length=16, phi=PhiSizes(256, 1024, layers, 4))
    network = ShowONetwork(sizes, PAINTER)
    policy = ShowO(network, tokenizer, PolicyConfig("small", compute_dtype="bfloat16"))
    context = Context(("a",))
    drawing = policy.draw([context], Sampling(rounds=1), [0])
    kept = kept_by(policy, lambda: policy([context], drawing)[0])
    copies = sum(p.numel() for p in network.showo.model.layers.parameters() if p.ndim == 2)  # autocast's
    return kept - copies


def kept_by(network: torch.nn.Module, compute: Callable[[], torch.Tensor]) -> int:
    """Values of two bytes that a computation keeps, other than the network's own weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        assert compute().requires_grad
    return sum(storage.nbytes() for storage in saved.values()) // 2


def test_a_layer_of_show_o_keeps_about_what_is_estimated():
    side = 16
    found = (kept_for_the_backward_pass(4, side) - kept_for_the_backward_pass(2, side)) / 2 / side**2
    sizes = ShowOConfig(False, 400, 64, side**2, phi=PhiSizes(256, 1024, 2, 4))
    assert found == pytest.approx(showo_sizes(sizes, PAINTER, None).kept, rel=0.25)


def kept_for_a_noisy_state(layers: int, ratio: float, width: int = 128, side: int = 16) -> int:
    """Values that a SANA of so many blocks keeps for one state."""
    heads = width // 32
    network: Any = SanaTransformer2DModel(
        num_attention_heads=heads,
        num_layers=layers,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=32,
        cross_attention_dim=width,
        caption_channels=64,
        mlp_ratio=ratio,
        sample_size=side,
    )
    inputs = {"encoder_hidden_states": torch.randn(1, 4, 64), "timestep": torch.ones(1)}

    def compute() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return network(torch.randn(1, 32, side, side), **inputs, return_dict=False)[0]

    copies = sum(p.numel() for p in network.transformer_blocks.parameters() if p.ndim >= 2)  # autocast's
    return kept_by(network, compute) - copies


@pytest.mark.parametrize("ratio", [1.0, 2.5])
def test_a_block_of_sana_keeps_about_what_is_estimated(ratio: float):
    found = (kept_for_a_noisy_state(4, ratio) - kept_for_a_noisy_state(2, ratio)) / 2 / 16**2
    assert found == pytest.approx(128 * (SANA_KEPT + SANA_KEPT_GATED * ratio), rel=0.1)
