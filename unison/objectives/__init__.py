"""Objectives by name: pure functions from a batch to a loss and its metrics; and what settings ask of a model."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from unison.config import ObjectiveConfig, RunConfig
from unison.objectives.dpo import dpo
from unison.objectives.grpo import grpo
from unison.objectives.nft import nft
from unison.objectives.sft import sft
from unison.types import ImageSampling, Metrics, TurnBatch

OBJECTIVES: dict[str, Callable[[TurnBatch, ObjectiveConfig], tuple[Tensor, Metrics]]] = {
    "grpo": grpo,
    "dpo": dpo,
    "nft": nft,
    "sft": sft,
}


def demands(config: RunConfig) -> dict[str, str]:
    """What a policy must be able to do for the settings to have a meaning: the setting, in words, and the verb."""
    scoring, width, sde = config.scoring.drawings, config.scenario.window.width, config.scenario.image.sde
    asked = {
        f"scoring.drawings = {scoring!r}": {"rounds": "", "noised": "denoise drawings"}.get(
            scoring, "mask drawings anew"
        ),
        f"scenario.window.width = {width}": "denoise drawings" if width else "",
        f"scenario.image.sde = {sde!r}": "" if sde == ImageSampling().sde else "denoise drawings",
        f"objective.name = {config.objective.name!r} at level {config.objective.level!r}": (
            "denoise drawings" if config.objective.compares_states else ""
        ),
    }
    return {setting: verb for setting, verb in asked.items() if verb}


def require_states(config: RunConfig, verbs: tuple[str, ...]) -> None:
    """Checks that an objective of noisy states meets no text, by the verbs of the scenario.

    Raises:
        ValueError: it would.
    """
    if config.objective.compares_states and "write" in verbs:
        raise ValueError(
            f"objective.name = {config.objective.name!r} at level {config.objective.level!r} compares noisy states of "
            f"drawings, but scenario.name = {config.scenario.name!r} writes: choose a scenario that draws alone, such "
            "as 't2i', or another objective"
        )
