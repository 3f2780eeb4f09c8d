"""Actions: those in tokens told from others and made of ids, and what texts and pictures they stand for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor

from unison.types import Action, Modality, Part, Sampling, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

Sources: TypeAlias = Sequence[torch.Generator | None]
"""Of the randomness of each row; None is torch's global generator."""


def tokens_of(action: Action) -> Tokens:
    """The action, which must be a discrete one.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(action, Tokens):
        raise ValueError(f"this family acts in tokens, not in {type(action).__name__}")
    return action


def is_reply(part: Part) -> bool:
    """Whether a part of a context is an earlier reply of the policy's own."""
    return isinstance(part, Tokens) and part.modality == "text"


def sampled(modality: Modality, ids: Tensor, logp: Tensor, stop: int | None, sampling: Sampling) -> Tokens:
    """The action of a row sampled token by token, cut after its stop token."""
    ends = (ids == stop).nonzero() if stop is not None else ids.new_empty(0, 1)
    length = int(ends[0]) + 1 if len(ends) else len(ids)
    ids, logp = ids[:length].cpu(), logp[:length].float().cpu()
    return Tokens(modality, ids, torch.arange(length), logp, torch.ones(length, dtype=torch.bool), sampling)


def given(modality: Modality, ids: Tensor) -> Tokens:
    """An action of tokens in order that was given, not sampled."""
    return sampled(modality, ids, torch.zeros(len(ids)), None, Sampling())


def encode_each(
    targets: Sequence[str | Image | Action],
    seeds: Sequence[int] | None,
    text: Callable[[str], Action],
    pictures: Callable[[list[Image], Sources], Iterable[Action]],
) -> list[Action]:
    """The action of every target, of all pictures at once; a target that is an action stays.

    Args:
        seeds: of what is drawn for each target; None draws from torch's global generator.
    """
    rows = [row for row, t in enumerate(targets) if not isinstance(t, str | Action)]
    images = [cast("Image", targets[row]) for row in rows]
    sources = [None if seeds is None else torch.Generator().manual_seed(seeds[row]) for row in rows]
    drawn = iter(pictures(images, sources) if images else ())
    return [t if isinstance(t, Action) else text(t) if isinstance(t, str) else next(drawn) for t in targets]


def decode_each(
    actions: Sequence[Action], text: Callable[[Any], str], pictures: Callable[[list[Any]], Iterable[Image]]
) -> list[Any]:
    """The text or the picture of every action, of all pictures at once."""
    drawings = [action for action in actions if action.modality == "image"]
    painted = iter(pictures(drawings) if drawings else ())
    return [next(painted) if action.modality == "image" else text(action) for action in actions]
