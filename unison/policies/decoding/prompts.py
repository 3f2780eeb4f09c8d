"""Prompts of ids and pictures: embedded in few passes, and read for their hidden states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def embedded(
    rows: Sequence[Sequence[Any]],
    look_up: Callable[[Tensor], Tensor],
    see: Callable[[list[Any]], Iterable[Tensor]],
    device: torch.device,
) -> list[Tensor]:
    """Embeddings of rows of pieces, lists of ids or pictures, all ids in one look-up. each [S, D]

    Args:
        look_up: ids [N] -> embeddings [N, D].
        see: all pictures in order -> embeddings [tokens, D] of each.
    """
    pieces = [piece for row in rows for piece in row]
    runs = [piece for piece in pieces if isinstance(piece, list)]
    pictures = [piece for piece in pieces if not isinstance(piece, list)]
    ids = torch.tensor([i for run in runs for i in run], device=device)
    words, seen = iter(look_up(ids).split([len(run) for run in runs])), iter(see(pictures) if pictures else ())
    return [torch.cat([next(words if isinstance(piece, list) else seen) for piece in row]) for row in rows]


def own_states(
    states: Sequence[Tensor], starts: Sequence[int], lengths: Sequence[int], own: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """States at a picture, and at the tokens after it that `own` names, of every row. each [I, D] and [T, D]

    Args:
        states: each [S, D].
        starts: of each row's picture.
        lengths: of the pictures.
        own: bool, of the last tokens of each row.
    """
    rows = zip(states, starts, lengths, own, strict=True)
    return [(row[start : start + length], row[-len(mask) :][mask.to(row.device)]) for row, start, length, mask in rows]


def own_tokens(tokenizer: Any, segment: str, text: str) -> Tensor:
    """Which tokens of a segment of a chat are those of the text in it, not the template's. bool"""
    start = segment.index(text.strip())  # the template may cut space at the ends
    end = start + len(text.strip())
    spans = tokenizer(segment, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return torch.tensor([a < end and b > start for a, b in spans])
