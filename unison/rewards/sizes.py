"""How much memory the models of rewards take, without loading them."""

from __future__ import annotations

from pathlib import Path

from unison.rewards import CHECKPOINTS, is_elsewhere
from unison.rewards.models import BUILT_IN, locate

PARAMETERS = {
    "Salesforce/blip-image-captioning-base": 247.4e6,
    "FacebookAI/roberta-large": 355.4e6,
    "facebook/mask2former-swin-small-coco-instance": 68.7e6,
    "openai/clip-vit-large-patch14": 427.6e6,
    "openai/clip-vit-base-patch32": 151.3e6,
    "Qwen/Qwen2.5-1.5B-Instruct": 1543.7e6,
    "yuvalkirstain/PickScore_v1": 986.1e6,
    "adams-story/HPSv2-hf": 986.1e6,
    "ttj/sac-logos-ava1-l14-linearMSE": 0.9e6,
}
"""Weights of the default checkpoints, as published."""
WITHIN = {"lpips_vgg": 14.7e6, "lpips_alex": 2.5e6}
"""Weights of judges that a package brings."""
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pb", ".onnx")
FLOAT32 = 4


def model_bytes(names: tuple[str, ...]) -> tuple[float, list[str]]:
    """Bytes that the models of these rewards take on each process, where each checkpoint is loaded once, and the
    checkpoints whose size is not known without a download.

    Counted in float32: language models that judge are held in half of it on a GPU.
    """
    judged_here = [name for name in names if not is_elsewhere(name)]
    wanted = {checkpoint for name in judged_here for checkpoint in _checkpoints(name)}
    known = {checkpoint: _size(checkpoint) for checkpoint in sorted(wanted)}
    own = sum(FLOAT32 * WITHIN.get(name, 0.0) for name in judged_here)
    return own + sum(size or 0.0 for size in known.values()), [c for c, size in known.items() if size is None]


def _checkpoints(spec: str) -> list[str]:
    """Those of a reward that may name others after colons, what is left out being the default."""
    name, *given = spec.split(":")
    defaults = CHECKPOINTS.get(name, ())
    return [one for one in [*given, *defaults[len(given) :]] if one and one not in BUILT_IN]


def _size(checkpoint: str) -> float | None:
    if checkpoint in PARAMETERS:
        return FLOAT32 * PARAMETERS[checkpoint]
    folder = Path(locate(checkpoint))
    if not folder.is_dir():
        return None
    return float(sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in WEIGHTS))
