"""Objectives by name: pure functions from a batch to a loss and its metrics."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from unison.config import ObjectiveConfig
from unison.objectives.grpo import grpo
from unison.objectives.sft import sft
from unison.types import Metrics, TurnBatch

OBJECTIVES: dict[str, Callable[[TurnBatch, ObjectiveConfig], tuple[Tensor, Metrics]]] = {"grpo": grpo, "sft": sft}
