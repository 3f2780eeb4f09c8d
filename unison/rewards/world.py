"""Rewards of the embedded world's exact judge, and of its palette.

What a drawing is to show is said by the item's target caption, where it has one, as edits and riddles have, or else by
its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unison.types import Item, Trajectory
from unison.world.judge import judge_asked
from unison.world.render import BACKGROUND, PALETTE
from unison.world.scene import Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

STAIN = 4.0  # RGB distance from all that the world is painted in, above which a pixel is dirt


def world(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Partial credit of the embedded world's exact judge for the last drawing.

    Raises:
        ValueError: what is asked for is not a sentence of the world.
    """
    return [_verdict(t.images[-1], t.item).score if t.images else None for t in trajectories]


def world_strict(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the world's judge finds everything as asked."""
    return [float(_verdict(t.images[-1], t.item).correct) if t.images else None for t in trajectories]


def world_first(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """As `world`, of the first drawing: an edit that is then taken back, an attempt that is then corrected."""
    return world(first_drawings(trajectories), policy)


def world_first_strict(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """As `world_strict`, of the first drawing."""
    return world_strict(first_drawings(trajectories), policy)


def world_cycle(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Share of objects that the last drawing has in common with the picture that was edited; None without its caption.

    Source: the cycle edit of UniRL-Zero, arXiv 2510.17937, whose similarity of embeddings this stands in for.
    """
    return [
        judge_asked(t.images[-1], t.item.source_caption).score if t.images and t.item.source_caption else None
        for t in trajectories
    ]


def world_clean(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Share of pixels, over all drawings, that the world could be painted in: background, a colour, or a mixture of the
    two as at edges. It says nothing of what is drawn, and is no part of the judge."""
    return [float(np.mean([_clean(image) for image in t.images])) if t.images else None for t in trajectories]


def first_drawings(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories as if they had ended with their first drawing."""
    return [Trajectory(t.item, t.turns, t.texts, t.images[:1]) for t in trajectories]


def _verdict(image: Image, item: Item) -> Verdict:
    return judge_asked(image, item.target_caption or item.prompt or "")


def _clean(image: Image) -> float:
    offset = np.asarray(image.convert("RGB"), np.float32).reshape(-1, 1, 3) - BACKGROUND  # [pixels, 1, 3]
    ways = np.array([*PALETTE.values()], np.float32) - BACKGROUND  # [colours, 3]
    share = ((offset * ways).sum(-1) / (ways**2).sum(-1)).clip(0, 1)  # of each colour in the nearest mixture
    distance = np.linalg.norm(offset - share[..., None] * ways, axis=-1).min(-1)
    return float((distance < STAIN).mean())
