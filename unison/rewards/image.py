"""Rewards that look at a drawing."""

from __future__ import annotations

from collections.abc import Sequence

from unison.types import Trajectory
from unison.world.judge import judge
from unison.world.scene import parse_prompt


def world(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Partial credit of the embedded world's exact judge for the last drawing.

    Raises:
        ValueError: a prompt is not a sentence of the world.
    """
    return [judge(t.images[-1], parse_prompt(t.item.prompt or "")).score if t.images else None for t in trajectories]


def world_strict(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the world's judge finds everything as asked."""
    return [
        float(judge(t.images[-1], parse_prompt(t.item.prompt or "")).correct) if t.images else None
        for t in trajectories
    ]
