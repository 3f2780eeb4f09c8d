"""What rewards with a model of their own share: where it runs, and chunks of what it is asked to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

T = TypeVar("T")


def device() -> torch.device:
    """Where judges run: this process's GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def in_chunks(
    judge: Callable[[list[T]], Iterable[float | None]], inputs: Sequence[T | None], size: int
) -> list[float | None]:
    """The judge's values of the inputs, at most `size` of them a call and without gradients; None stays None."""
    known = [(row, x) for row, x in enumerate(inputs) if x is not None]
    values: list[float | None] = [None] * len(inputs)
    for start in range(0, len(known), size):
        rows, chunk = zip(*known[start : start + size], strict=True)
        with torch.no_grad():
            for row, value in zip(rows, judge(list(chunk)), strict=True):
                values[row] = value
    return values
