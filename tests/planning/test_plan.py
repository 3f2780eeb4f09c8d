"""The dry run's memory estimate counts what a loaded policy really holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unison.config import ObjectiveConfig, PolicyConfig, RunConfig
from unison.planning.memory import Layout, estimate_memory
from unison.planning.peak_memory import peak_bytes
from unison.policies import FAMILIES, family_of, load_policy
from unison.policies.actions import given
from unison.policies.showo.policy import ShowO
from unison.policies.sizes import shape_of
from unison.recipes import corl, unirl, unirl_zero
from unison.rewards.sizes import model_bytes
from unison.types import Context

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
    found = estimate_memory(run).lines()
    assert found["parameters"] == sum(p.numel() * p.element_size() for p in weights)
    assert found["optimiser (AdamW)"] == 2 * trained  # adapters are float32 whatever the weights are
    assert found["gradients"] == trained


def test_a_reference_costs_a_copy_of_what_is_trained_but_for_adapters(checkpoint: Path):
    whole, adapted = (estimate_memory(config(checkpoint, kl_beta=0.02, lora_rank=rank)).lines() for rank in (0, 4))
    assert whole["reference"] == whole["optimiser (AdamW)"] / 2 > 0
    assert adapted["reference"] == 0


def test_the_peak_is_the_larger_of_rollout_and_update(checkpoint: Path):
    found = estimate_memory(config(checkpoint))
    lasting, rolling, updating = (sum(part.values()) for part in (found.lasting, found.rolling, found.updating))
    assert found.peak == lasting + max(rolling, updating)


def test_a_family_without_an_estimate_is_refused_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FAMILIES, "janus", replace(FAMILIES["janus"], shapes=""))
    with pytest.raises(ValueError, match=r"knows the memory of .*showo.*, not of 'janus'"):
        estimate_memory(config(checkpoint))


def test_adapters_that_fit_nothing_are_refused_as_on_loading(showo: ShowO, tmp_path: Path):
    showo.save(tmp_path)
    with pytest.raises(ValueError, match=r"policy\.lora_targets = .*language_model.*: Target modules .* not found"):
        estimate_memory(config(tmp_path, lora_rank=4))


def test_show_o_at_512_pixels_is_counted_without_a_file():
    policy = unirl.show_o_512_grpo().policy
    decoder, painter = 1_448_176_770, 95_387_004
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        chosen = replace(policy, dtype=dtype)
        weights = list(shape_of(chosen).policy.parameters())
        assert sum(p.numel() * p.element_size() for p in weights) == size * decoder + 4 * painter
        assert sum(p.numel() for p in weights if p.requires_grad) == decoder  # the image tokenizer is never trained


def activations(run: RunConfig) -> float:
    return estimate_memory(run).updating["activations of a micro-batch"]


def relaxed(run: RunConfig) -> float:
    return estimate_memory(run).updating["drawings differentiated through"]


def test_scoring_more_rounds_costs_no_more_memory_than_a_chunk_of_them():
    run = unirl.tiny_showo_grpo()
    by_rounds = [activations(replace(run, scoring=replace(run.scoring, rounds=rounds))) for rounds in (1, 2, 5, 0)]
    assert by_rounds[0] < by_rounds[1] <= by_rounds[2]
    assert by_rounds[2] == pytest.approx(by_rounds[3], rel=0.01)
    one_pass = replace(run.scoring, drawings="whole_canvas", rounds=0)
    assert activations(replace(run, scoring=one_pass)) == pytest.approx(by_rounds[0], rel=0.2)


@pytest.mark.parametrize("recipe", [corl.tiny_unified, unirl_zero.tiny_draw])
def test_fewer_drawings_in_a_pass_take_less_memory(recipe: Callable[[], RunConfig]):
    run = recipe()
    most = run.step.micro_batch_items * run.scenario.group_size
    sizes = (2, most // 2, most, most + 1, 0)
    two, half, *all_at_once = (
        estimate_memory(replace(run, step=replace(run.step, micro_batch_images=n))).updating for n in sizes
    )
    work = "activations of a micro-batch"
    assert two[work] <= half[work] < all_at_once[0][work]
    assert all_at_once[0] == all_at_once[1] == all_at_once[2]


def test_a_smaller_share_of_show_os_memory_is_relaxation_without_guidance():
    run = unirl.show_o_512_sft()
    guided = replace(run.scenario, image=replace(run.scenario.image, score_conditional=False))
    one, two = (relaxed(r) for r in (run, replace(run, scenario=guided)))
    assert 0 < one < two < 2 * one
    assert relaxed(unirl.tiny_showo_grpo()) == 0


def test_drawings_that_are_read_through_pixels_are_planned_too(showo_clip: ShowO, tmp_path: Path):
    showo_clip.save(tmp_path)
    run = config(tmp_path)
    for scenario in ("self_improve", "self_sft"):
        found = estimate_memory(replace(run, scenario=replace(run.scenario, name=scenario))).lines()
        assert found["activations of a micro-batch"] > 0
        assert (found["drawings differentiated through"] > 0) == (scenario == "self_sft")


# -- what a pass takes -------------------------------------------------------------------------------------------------


def test_what_is_alive_is_counted_and_what_is_freed_is_not():
    network = torch.nn.Linear(64, 64, bias=False, device="meta")

    def chain() -> list[torch.Tensor]:
        x = torch.empty(1000, 64)
        for _ in range(8):
            x = network(x)
        return [x]

    size = 4 * 1000 * 64
    assert peak_bytes(network, chain, gradients=False) == 2 * size  # what is read and what is made
    kept = peak_bytes(network, chain)
    assert 8 * size <= kept <= 12 * size  # every input is kept for the backward pass
    assert network.weight.device.type == "meta"


def test_a_pass_takes_what_autograd_keeps_and_less_than_as_much_again(showo: ShowO, tmp_path: Path):
    showo.save(tmp_path)
    policy = shape_of(config(tmp_path).policy).policy
    context = Context(("a b c d e f g h i j k l m n o p",))
    actions = [given("text", torch.zeros(41, dtype=torch.long))] * 16
    one, two = (peak_bytes(policy.network, lambda n=n: policy([context] * n, actions[:n])) for n in (8, 16))
    seen = [kept_by(showo, lambda n=n: torch.stack(showo([context] * n, actions[:n]))) for n in (8, 16)]
    assert 1 <= (two - one) / (seen[1] - seen[0]) < 2


def kept_by(network: torch.nn.Module, compute: Callable[[], torch.Tensor]) -> int:
    """Bytes that a computation keeps, other than the network's own weights."""
    own = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        assert compute().requires_grad
    return sum(storage.nbytes() for storage in saved.values())


# -- layouts -----------------------------------------------------------------------------------------------------------


def test_shards_are_shares_and_copies_are_not(checkpoint: Path):
    run = config(checkpoint, kl_beta=0.02)
    alone, copies, shards = (
        estimate_memory(run, layout).lines() for layout in (Layout(), Layout(4, "ddp"), Layout(4, "fsdp2"))
    )
    for name in ("parameters", "gradients", "optimiser (AdamW)", "reference"):
        assert copies[name] == alone[name]
        assert shards[name] == alone[name] / 4
    assert copies["activations of a micro-batch"] <= alone["activations of a micro-batch"]
    whole = alone["parameters"] + alone["gradients"]
    assert shards["weights and gradients gathered for an update"] == whole * 3 / 4
    assert "weights and gradients gathered for an update" not in copies


def test_a_step_that_does_not_divide_over_the_processes_is_refused(checkpoint: Path):
    with pytest.raises(ValueError, match=r"step\.items = 12: must be a multiple of the 5 processes"):
        estimate_memory(config(checkpoint), Layout(5))


def test_the_models_of_rewards_are_counted_once_and_those_elsewhere_not(tmp_path: Path):
    assert model_bytes(("accuracy", "remote:http://h:1/clip", "llm_judge:http://h:1/v1#m")) == (0, [])
    one, unknown = model_bytes(("clip", "clip_direction"))
    assert one == pytest.approx(4 * 151e6, rel=0.01)
    assert unknown == []
    (tmp_path / "model.safetensors").write_bytes(b"0" * 1000)
    assert model_bytes((f"clip:{tmp_path}", "pickscore:somebody/unheard-of")) == (1000, ["somebody/unheard-of"])
