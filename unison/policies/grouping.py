"""What can be computed together: siblings share one context, and actions of one kind one pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from unison.types import Action, Context, Modality, Relaxed, Sampling

T = TypeVar("T")
R = TypeVar("R")
K = TypeVar("K", bound=Hashable)
Kind: TypeAlias = tuple[type[Action], Modality, Sampling]


def distinct(contexts: Sequence[Context]) -> tuple[list[Context], list[int]]:
    """The different context objects, and for each row the number of its own: siblings share one object."""
    different = list({id(context): context for context in contexts}.values())
    numbers = {id(context): number for number, context in enumerate(different)}
    return different, [numbers[id(context)] for context in contexts]


def pick(rows: Sequence[int], things: Sequence[T]) -> list[T]:
    """Some of the things."""
    return [things[row] for row in rows]


def in_kinds(
    kinds: Sequence[K], of_kind: Callable[[K, list[int]], Sequence[R]], order: Callable[[K], int] = lambda _: 0
) -> list[R]:
    """What `of_kind` gives of a kind and its rows, one kind after another.

    Args:
        kinds: that of each row.
        order: kinds with smaller numbers go first, of equal ones that which is met first.

    Returns:
        in the order of the rows.
    """
    rows_of: dict[K, list[int]] = {}
    for row, kind in enumerate(kinds):
        rows_of.setdefault(kind, []).append(row)
    found: dict[int, R] = {}
    for kind in sorted(rows_of, key=order):
        found |= dict(zip(rows_of[kind], of_kind(kind, rows_of[kind]), strict=True))
    return [found[row] for row in range(len(kinds))]


def kind_of(action: Action) -> Kind:
    """Equal for actions that can be scored in one pass: same type, same modality, same sampling."""
    return type(action), action.modality, action.sampling


def relax_alike(drawings: Sequence[Relaxed], relax: Callable[[list[Relaxed], Sampling, float], Tensor]) -> Tensor:
    """What `relax` makes of drawings of one sampling and one temperature, for drawings of any. [I, ...]"""
    kinds = [(drawing.action.sampling, drawing.temperature) for drawing in drawings]
    return torch.stack(in_kinds(kinds, lambda kind, rows: list(relax(pick(rows, drawings), *kind))))
