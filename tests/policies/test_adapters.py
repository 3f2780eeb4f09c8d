"""Adapters that change weights in bfloat16 by little: what is left of it in checkpoints, read by plain libraries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PhiForCausalLM, Qwen2_5_VLForConditionalGeneration

from tests.policies.contract import FAMILIES
from unison.config import PolicyConfig
from unison.policies import load_policy
from unison.policies.base import Policy
from unison.policies.showo.network import read_config

SMALL = 1e-4
"""Standard deviation of the changes of a weight; the weights' own is 0.2 or 1, so that bfloat16 holds none of them."""
RANK = 4
ADAPTERS = {family.name: family.adapters for family in FAMILIES}
IDS = torch.arange(5, 25)[None]


@dataclass(frozen=True)
class Part:
    """A part of a checkpoint that a plain library loads, what it says, and where its adapters are."""

    make: str
    family: str
    load: Callable[[Path], nn.Module]
    say: Callable[[Any], Tensor]
    prefix: str = ""
    """In the names of the policy's network."""
    folder: str = ""


def phi(folder: Path) -> nn.Module:
    weights = load_file(folder / "model.safetensors")
    model = PhiForCausalLM(read_config(folder).phi_config())
    model.load_state_dict({name.removeprefix("showo."): weight for name, weight in weights.items()}, assign=True)
    return model


def sana(folder: Path) -> Any:
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

    # without a type `diffusers` takes float32, whatever is in the file
    return SanaTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)


def denoised(transformer: Any) -> Tensor:
    transformer = getattr(transformer, "base_model", transformer)
    transformer = getattr(transformer, "model", transformer)
    sizes, generator = transformer.config, torch.Generator().manual_seed(0)
    noise = torch.randn(2, sizes.in_channels, sizes.sample_size, sizes.sample_size, generator=generator)
    states = torch.randn(2, 6, sizes.caption_channels, generator=generator)
    return transformer(noise, states, torch.full((2,), 500), return_dict=False)[0]


def logits(model: Any) -> Tensor:
    return model(input_ids=IDS).logits


PARTS = [
    Part("make_policy", "janus", JanusForConditionalGeneration.from_pretrained, logits),
    Part("make_showo", "showo", phi, logits, "showo."),
    Part(
        "make_metaquery",
        "metaquery",
        lambda folder: Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "language_model"),
        logits,
        "qwen.",
        "language_model",
    ),
    Part("make_metaquery", "metaquery", sana, denoised, "transformer.", "transformer"),
]


@dataclass(frozen=True)
class Saved:
    part: Part
    base: Path
    """In bfloat16."""
    merged: Path
    changes: dict[str, Tensor]
    """By the part's own names of its weights."""

    def plain(self) -> nn.Module:
        """The base in its library, widened."""
        return self.part.load(self.base).float().eval()

    def changed(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The base with the changes added by hand, in a type."""
        model = self.plain()
        weights = dict(model.named_parameters())
        with torch.no_grad():
            for name, change in self.changes.items():
                weights[name].copy_((weights[name] + change).to(dtype))
        return model

    @torch.no_grad()
    def effect(self, model: nn.Module) -> Tensor:
        return self.part.say(model.float().eval()) - self.part.say(self.plain())

    def error(self, model: nn.Module) -> float:
        """How far the effect of the changes is off, as a share of it."""
        whole = self.effect(self.changed())
        return float((self.effect(model) - whole).norm() / whole.norm())


def changes_of(policy: Policy, prefix: str) -> dict[str, Tensor]:
    """Makes the adapters' changes small and random; 2 B A of every adapted weight of a part."""
    generator, found = torch.Generator().manual_seed(1), {}
    adapters = {name: p for name, p in policy.network.named_parameters() if ".lora_" in name}
    for name, weight in adapters.items():
        scale = 1.0 if "_A" in name else SMALL / 2 / RANK**0.5
        weight.data = scale * torch.randn(weight.shape, generator=generator)
    for name, a in adapters.items():
        if "_A" in name and name.startswith(prefix):
            b = adapters[name.replace("_A", "_B")]
            product = 2 * b.detach() @ a.detach()
            own = name.removeprefix(prefix).partition(".lora_")[0] + ".weight"
            found[own] = product.T if "embedding" in name else product
    return found


@pytest.fixture(scope="module", params=PARTS, ids=lambda part: part.family + part.folder)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    part: Part = request.param
    folder = tmp_path_factory.mktemp("adapters")
    policy = request.getfixturevalue(part.make)()
    policy.network.to(torch.bfloat16)
    policy.save(folder / "base")
    config = PolicyConfig(str(folder / "base"), dtype="bfloat16", **ADAPTERS[part.family])
    adapted = load_policy(config)
    changes = changes_of(adapted, part.prefix)
    assert changes
    adapted.save(folder / "merged")
    return Saved(part, folder / "base", folder / "merged", changes)


def test_a_small_change_of_weights_in_bfloat16_is_kept_by_a_saved_checkpoint(saved: Saved) -> None:
    assert saved.error(saved.part.load(saved.merged)) < 0.05
    assert saved.error(saved.changed(torch.bfloat16)) > 0.5  # what is lost where the sum is rounded


def test_the_saved_weights_are_float32_and_say_so(saved: Saved) -> None:
    model = saved.part.load(saved.merged)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_policy_that_is_loaded_from_it_has_the_change(saved: Saved) -> None:
    weights, base = (load_policy(PolicyConfig(str(f))).network.state_dict() for f in (saved.merged, saved.base))
    for name, change in saved.changes.items():
        own = saved.part.prefix + name
        assert torch.allclose(weights[own] - base[own], change, atol=0.02 * SMALL)


def test_the_adapters_beside_it_have_the_same_effect_on_the_base_in_peft(saved: Saved) -> None:
    folder = saved.merged / "adapter" / saved.part.folder
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    model = PeftModel.from_pretrained(saved.plain(), str(folder))  # type: ignore[arg-type]
    assert saved.error(model) < 0.01


def test_a_policy_without_adapters_writes_none(saved: Saved) -> None:
    assert not (saved.base / "adapter").exists()
