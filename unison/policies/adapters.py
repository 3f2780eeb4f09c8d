"""What of a network is trained: all but its frozen parts, or LoRA adapters as `peft` makes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from unison.config import PolicyConfig


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
