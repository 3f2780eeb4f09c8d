"""How much memory the models of rewards take, without loading them."""

from __future__ import annotations

from pathlib import Path

from unison.hub import BUILT_IN, locate
from unison.rewards import REWARDS, checkpoints, is_elsewhere

PUBLISHED = {checkpoint: size for reward in REWARDS.values() for checkpoint, size in reward.models.items() if size}
FILES = (".safetensors", ".bin", ".pt", ".pth", ".pb", ".onnx")
FLOAT32 = 4


def model_bytes(names: tuple[str, ...]) -> tuple[float, list[str]]:
    """Bytes that the models of these rewards take on each process, where each checkpoint is loaded once, and the
    checkpoints whose size is not known without a download.

    Counted in float32: language models that judge are held in half of it on a GPU.
    """
    judged_here = [name for name in names if not is_elsewhere(name)]
    wanted = {checkpoint for name in judged_here for checkpoint in checkpoints(name)} - {*BUILT_IN}
    known = {checkpoint: _size(checkpoint) for checkpoint in sorted(wanted)}
    own = sum(FLOAT32 * REWARDS[name.partition(":")[0]].parameters for name in judged_here)
    return own + sum(size or 0.0 for size in known.values()), [c for c, size in known.items() if size is None]


def _size(checkpoint: str) -> float | None:
    if checkpoint in PUBLISHED:
        return FLOAT32 * PUBLISHED[checkpoint]
    folder = Path(locate(checkpoint))
    if not folder.is_dir():
        return None
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in FILES))
