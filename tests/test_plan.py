"""The dry run's memory estimate counts what a loaded policy really holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unison.config import ObjectiveConfig, RunConfig
from unison.plan import estimate_memory
from unison.policies import load_policy
from unison.policies.showo import ShowO
from unison.recipes import corl


def config(path: Path, kl_beta: float = 0.0, **policy: Any) -> RunConfig:
    run = corl.tiny_unified()
    return replace(
        run, policy=replace(run.policy, path=str(path), **policy), objective=ObjectiveConfig(kl_beta=kl_beta)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_weights_and_optimiser_states_are_those_of_the_loaded_policy(checkpoint: Path, lora_rank: int, dtype: str):
    run = config(checkpoint, lora_rank=lora_rank, dtype=dtype)
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


def test_a_family_without_an_estimate_is_refused_by_name(showo: ShowO, tmp_path: Path):
    showo.save(tmp_path)
    with pytest.raises(ValueError, match="memory of the Janus family alone, not of 'showo'"):
        estimate_memory(config(tmp_path))
