"""What of a network is trained: all but its frozen parts, or LoRA adapters as `peft` makes them."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unison.config import PolicyConfig

ROOT = "base_model.model."
"""Before the name of every weight in `peft`'s files."""


def is_adapter(name: str) -> bool:
    """Whether a parameter is a LoRA adapter's, by the name that `peft` gives it."""
    return ".lora_" in name


def matches(patterns: Iterable[str], name: str) -> bool:
    """Whether any of the patterns is found in the name."""
    return any(re.search(pattern, name) for pattern in patterns)


def select_trained(network: nn.Module, frozen: Sequence[str]) -> None:
    """Freezes the parameters whose names match any of the patterns.

    Raises:
        ValueError: a pattern matches nothing, or nothing is left to train.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in frozen:
        if not any(re.search(pattern, name) for name in names):
            roots = sorted({".".join(name.split(".")[:2]) for name in names})
            raise ValueError(f"policy.frozen pattern {pattern!r} matches no parameter; modules are {', '.join(roots)}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not matches(frozen, name))
    if not any(p.requires_grad for p in network.parameters()):
        raise ValueError(f"policy.frozen = {tuple(frozen)} freezes every parameter: leave something to train")


def add_adapters(network: nn.Module, config: PolicyConfig) -> Any:
    """Adds LoRA adapters in place (Hu et al. 2021) and freezes all other weights but those of `lora_beside` that are
    trained. Returns the `peft` wrapper.

    Raises:
        ValueError: `lora_targets` matches no module.
    """
    import peft

    beside = [p for n, p in network.named_parameters() if p.requires_grad and matches(config.lora_beside, n)]
    settings = peft.LoraConfig(r=config.lora_rank, lora_alpha=2 * config.lora_rank, target_modules=config.lora_targets)
    try:
        adapted = peft.get_peft_model(network, settings)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"policy.lora_targets = {config.lora_targets!r}: {error}") from error
    for parameter in beside:
        parameter.requires_grad_(True)
    return adapted


def merged(adapted: Any) -> Any:
    """The network of a `peft` wrapper with W + alpha / r B A in place of W, as a copy of its own, whole in float32.

    A change that is small beside W is lost where the sum is rounded to bfloat16, and a library that finds weights of
    two types takes one for all: so all are widened, which loses nothing, and the copy is made on the CPU.
    """
    return copy.deepcopy(adapted).to("cpu", torch.float32).merge_and_unload()


def write_adapters(adapted: Any, config: PolicyConfig, parts: Mapping[str, str], folder: Path) -> None:
    """Writes the adapters alone, as `peft` reads them: adapter_config.json and adapter_model.safetensors for each part
    that has some, in float32. `PeftModel.from_pretrained(part, folder)` puts them on the weights they were trained on.

    Args:
        parts: a module of the network that a library loads by itself ("" is the whole) -> a folder within `folder`.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    for part, place in parts.items():
        start = f"{ROOT}{part}." if part else ROOT
        if own := {ROOT + name.removeprefix(start): w for name, w in state.items() if name.startswith(start)}:
            _write_part(own, config, folder / place)


def _write_part(state: Mapping[str, Tensor], config: PolicyConfig, folder: Path) -> None:
    import peft

    folder.mkdir(parents=True)
    targets = {name.removeprefix(ROOT).partition(".lora_")[0] for name in state}
    settings = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules=sorted(targets),
        base_model_name_or_path=config.path,
        inference_mode=True,
    )
    settings.save_pretrained(str(folder))
    weights = {name: weight.detach().cpu().contiguous() for name, weight in state.items()}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
