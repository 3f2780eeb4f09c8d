"""What rewards with a pretrained model share: where it runs, chunks and pairs to judge, matching, whole weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unison.config import best_device
from unison.hub import read, whole
from unison.types import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
BATCH = 64  # drawings that a judge looks at in one pass
CPU = torch.device("cpu")


def device_of(policy: Any) -> torch.device:
    """Judges run where the policy does; without one, on the best device."""
    return best_device() if policy is None else policy.device


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


def judge_pairs(
    trajectories: Sequence[Trajectory], judge: Callable[[list[Image], list[str]], Sequence[float | None]]
) -> list[float | None]:
    """What `judge` says of every last drawing and its prompt, BATCH pairs at a time; None where either is missing."""
    pairs = [(t.images[-1], t.item.prompt) if t.images and t.item.prompt else None for t in trajectories]
    return in_chunks(lambda chunk: judge([i for i, _ in chunk], [p for _, p in chunk]), pairs, BATCH)


def greedy_matches(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean over the rows of a [N, D] of the cosine to the nearest row of b [M, D], and the same from b to a."""
    cosine = normalize(a.float(), dim=-1) @ normalize(b.float(), dim=-1).T  # [N, M]
    return cosine.amax(1).mean().item(), cosine.amax(0).mean().item()


def clamp(x: float) -> float:
    """The nearest number in [0, 1]."""
    return min(1.0, max(0.0, x))


@cache
def load(
    model: Any, processor: Any, path: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """A frozen model and its processor (or tokenizer) by their `transformers` classes, kept for later calls.

    Raises:
        ValueError: the checkpoint cannot be read, or lacks weights of the class.
    """
    what = f"checkpoint {path!r} as a {model.__name__}"
    network = whole(
        what,
        lambda: model.from_pretrained(path, dtype=dtype, output_loading_info=True),
        kinds=("missing_keys", "mismatched_keys"),
        optional=".*pooler.*",  # a head that language models are published without
    )
    reader = read(f"{what}: cannot read its {processor.__name__}", lambda: processor.from_pretrained(path))
    return network.to(device).requires_grad_(False), reader
