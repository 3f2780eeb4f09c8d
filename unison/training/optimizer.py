"""AdamW over the trained parameters, with learning rates by part and their course."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from unison.config import OptimConfig


def build_optimizer(
    named: Iterable[tuple[str, Tensor]], config: OptimConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW on the trained ones of the named parameters and its course of learning rates, one scheduler step per
    rollout.

    Raises:
        ValueError: a rate of a part that no trained parameter belongs to.
    """
    from transformers import get_scheduler

    groups = parameter_groups([(name, p) for name, p in named if p.requires_grad], config)
    optimizer = torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay)
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    schedule = get_scheduler(name, optimizer, config.warmup_steps, config.steps)
    return optimizer, schedule


def parameter_groups(named: Iterable[tuple[str, Tensor]], config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters with their learning rate, those without a rate of their own first."""
    rates = config.part_learning_rates | {"": config.learning_rate}  # the empty pattern is found in every name
    parts: dict[str, list[Tensor]] = {pattern: [] for pattern in rates}
    for name, parameter in named:
        parts[next(pattern for pattern in rates if re.search(pattern, name))].append(parameter)
    rest = parts.pop("")
    for pattern, members in parts.items():
        if not members:
            raise ValueError(
                f"optim.part_learning_rates: {pattern!r} is the first match of no trained parameter; see policy.frozen "
                "and the order of the patterns"
            )
    groups = [{"params": members, "lr": rates[pattern]} for pattern, members in parts.items()]
    return [{"params": rest, "lr": rates[""]}, *groups] if rest else groups
