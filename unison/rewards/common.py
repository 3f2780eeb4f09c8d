"""What rewards with a model of their own share: where it runs, and chunks of what it is asked to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")
BATCH = 64  # drawings that a judge looks at in one pass
CPU = torch.device("cpu")


def device_of(policy: Any) -> torch.device:
    """Judges run where the policy does; without one, on the first GPU or the CPU where there is none."""
    if policy is not None:
        return policy.device
    return torch.device("cuda") if torch.cuda.is_available() else CPU


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
