"""Rewards that read a reply: is the answer right, is the format kept."""

from __future__ import annotations

from collections.abc import Sequence

from unison.answers import is_formatted, is_right, soft_credit
from unison.types import Trajectory


def accuracy(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the last reply's answer is right (CoRL's R_acc)."""
    return [float(is_right(t.texts[-1], t.item)) if t.texts and t.item.answer else None for t in trajectories]


def accuracy_soft(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """As `accuracy`, but an open-ended answer that is not right earns the F1 of its words against the truth's."""
    return [soft_credit(t.texts[-1], t.item) if t.texts and t.item.answer else None for t in trajectories]


def format_(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the last reply keeps the format (CoRL's R_format, strict)."""
    return [float(is_formatted(t.texts[-1])) if t.texts else None for t in trajectories]


OVERLONG = 0.2
"""Last share of the longest reply's length over which `overlong` falls, as in DAPO (4,096 of 20,480 tokens)."""


def overlong(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """0 for replies that leave room, falling to -1 for those that fill `scenario.text.max_tokens`, which are cut short.

    Source: soft overlong punishment, DAPO, arXiv 2503.14476, eq. 13. The trajectory's longest reply counts.
    """
    replies = [[turn.action for turn in t.turns if turn.action.modality == "text"] for t in trajectories]
    fills = [[len(reply) / reply.sampling.max_tokens for reply in some] for some in replies]
    return [max(min((1 - OVERLONG - max(fill)) / OVERLONG, 0.0), -1.0) if fill else None for fill in fills]
