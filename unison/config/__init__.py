"""What a run is made of: frozen dataclasses, one sentence per field. A recipe is a function returning a RunConfig."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

from unison.types import Modality, RelaxedCanvas, Sampling

T = TypeVar("T")
WorldKind = Literal["scenes", "edits", "riddles", "reflections", "puzzles", "steps"]
Strategy = Literal["ddp", "fsdp2"]
Recompute = Literal["auto", "always", "never"]
Scoring = Literal["rounds", "whole_canvas", "random_masks", "noised"]


@dataclass(frozen=True)
class PolicyConfig:
    """Which checkpoint is trained, and which part of it."""

    path: str
    """Checkpoint folder, hub id, or `assets/<name>` for a bundled tiny model."""
    frozen: tuple[str, ...] = ()
    """Regular expressions of parameter names that are not trained."""
    lora_rank: int = 0
    """Rank of LoRA adapters on the matrices named by `lora_targets`; 0 trains the weights themselves."""
    lora_alpha: float = 16.0
    """LoRA scale numerator (scale = alpha / rank)."""
    lora_targets: str = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    """Regular expression of module names that get adapters."""
    lora_beside: tuple[str, ...] = ()
    """Regular expressions of parameter names that are trained in full beside adapters, unless they are frozen."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory; LoRA adapters stay in float32."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Autocast type of matrix products in sampling and scoring."""
    rollout_dtype: Literal["float32", "bfloat16"] | None = None
    """Another autocast type for sampling, from whose tokens' states logits are then computed in the weights' own type;
    None takes `compute_dtype`. What sampling and scoring then disagree by is in the log as `logp_difference`."""
    compile_decode: bool = False
    """Sample tokens by a compiled step of static shapes, a CUDA graph on a GPU: pays where launching kernels takes
    longer than what they compute. On the CPU the step that is made for it is faster."""
    rows_writing: int = 0
    """Texts that are written at a time: finished ones make room for those that wait. 0 takes all of a rollout, until
    the longest is finished; the texts are the same."""
    attention: Literal["sdpa", "flex"] = "sdpa"
    """What scores tokens: scaled dot-product attention over rows that each have a copy of their prefix's keys and
    values, or FlexAttention over one packed sequence with each prefix once (a GPU and Janus alone)."""
    recompute: Recompute = "auto"
    """Whether scoring of tokens keeps the inputs of the decoder's layers alone and computes the rest once more in the
    backward pass (activation checkpointing); "auto" does where the rest of one pass is 0.5 GiB or more."""
    states_per_pass: int = 0
    """Noisy states that the diffusion transformer scores in one pass; those of several passes are computed once more in
    the backward pass, which bounds memory. 0 takes all at once."""


@dataclass(frozen=True)
class JoinConfig:
    """What joins a language model and a diffusion model; the defaults are UniRL-Zero's."""

    queries: int = 256
    """Learnable queries of each set."""
    layers: int = 12
    """Layers of the connector."""
    heads: int = 8
    """Its attention heads."""
    feed_forward: int = 0
    """Width of its feed-forward layers; 0 takes the language model's."""
    side: int = 0
    """Side of a drawing's latent; 0 takes the diffusion transformer's."""
    source_side: int = 672
    """Pixels of the square that the vision tower sees of an edit's source."""
    seed: int = 0
    """Seed of the new weights."""


@dataclass(frozen=True)
class DataConfig:
    """Where items come from."""

    train: str = "world"
    """`world`, `prompts` (GenEval-style, without pictures), a local JSONL / Parquet file or folder, or a hub id."""
    eval: str = "world"
    """Held-out items, same choices."""
    questions: Literal["open_ended", "multiple_choice", "mixed"] = "open_ended"
    """Form of the world's questions."""
    world: WorldKind = "scenes"
    """What the world's items are: scenes to draw and to answer about, edits of pictures, riddles to draw, pictures to
    judge and to correct, puzzles in words, or questions about pictures that take several steps."""
    asked: Literal["task", "count"] = "task"
    """What the world's questions are about: what the item's task type is about, or how many shapes there are."""
    excluded: str = ""
    """GenEval's evaluation_metadata.jsonl: `prompts` then asks for nothing that a test prompt asks for."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column of the data set for each field of an item; the CoRL names are the default."""
    question_suffix: str = ""
    """Text appended to every question on a line of its own, such as the request for a format."""
    suffixes: dict[Literal["multiple_choice", "open_ended"], str] = field(default_factory=dict)
    """Text for one kind of question in place of `question_suffix`."""
    kinds: dict[str, Literal["multiple_choice", "open_ended"]] = field(default_factory=dict)
    """What the values of the `qa_type` column mean, beyond the usual names."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read instead of stopping."""
    streaming: int = 0
    """Rows of the shuffle buffer when tables are streamed instead of loaded whole; 0 loads them."""


@dataclass(frozen=True)
class WindowConfig:
    """Which denoising steps inject noise and are trained as a run goes on, while the others are deterministic and cost
    no gradient (MixGRPO, arXiv 2507.21802). One choice a step, so siblings always share it."""

    kind: Literal["given", "sliding", "random"] = "given"
    """Those of `image.noisy_steps` throughout, a run of neighbours that moves through the path, or a random set."""
    size: int = 4
    """Noisy steps of a sliding or random choice."""
    every: int = 25
    """Training steps after which a sliding choice moves on and a random one is drawn again."""
    stride: int = 1
    """Denoising steps by which a sliding choice moves; after the last it starts over."""


@dataclass(frozen=True)
class ScenarioConfig:
    """How the policy acts on an item."""

    name: str = "unified"
    """One of the scenarios listed by `unison recipes`."""
    group_size: int = 8
    """Trajectories per item, G."""
    text: Sampling = Sampling()
    """Sampling of text actions."""
    image: Sampling = Sampling(guidance=5.0)
    """Sampling of drawings."""
    answerer: Literal["policy", "reference", "both"] = "policy"
    """Whose reply about the model's own drawing is judged: the policy's; the frozen reference's, and then drawing alone
    is trained; or of both the policy's where the reference's is right, else the reference's."""
    window: WindowConfig = WindowConfig()
    """Choice of the denoising steps that are trained."""
    relax_temperature: float = 1.0
    """Gumbel-softmax temperature where a loss is differentiated through a drawing; lower is closer to one-hot."""
    relax_canvas: RelaxedCanvas = "round"
    """What masked decoding reads in that extra pass: a random round's canvas, one masked at random, or all masked."""

    @property
    def asks_reference(self) -> bool:
        """Whether the frozen reference takes part in rollouts."""
        return self.answerer != "policy"


@dataclass(frozen=True)
class AdvantageConfig:
    """How rewards become advantages."""

    kind: Literal["group", "rloo", "pair", "constant", "reward"] = "group"
    """Compare the siblings of a group with their mean, each with the mean of the others (RLOO), or the best with the
    worst (preferences); or give every trajectory the advantage 1 (imitation), or its own reward (imitation of what was
    right)."""
    divide_by_std: bool = True
    """Divide by the group's standard deviation (GRPO) or only subtract its mean (Dr. GRPO)."""
    epsilon: float = 1e-4
    """Added to the standard deviation."""
    clamp: float = 0.0
    """Largest absolute advantage; 0 means no limit."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """What is minimised over the decisions of a rollout."""

    name: Literal["grpo", "dpo", "nft", "sft"] = "grpo"
    """Clipped policy gradient, preference of the best sibling over the worst, DiffusionNFT's contrast on the forward
    process, or negative log-likelihood weighted by the advantage."""
    level: Literal["decision", "sequence"] = "decision"
    """What grpo takes a ratio of, and dpo a preference: every decision, or a whole action (GSPO; DPO of texts)."""
    beta: float = 0.1
    """How closely dpo and nft hold on to the reference."""
    reference_decay: float = 1.0
    """After a step the reference becomes this share of itself and for the rest the trained weights; 1 keeps it as it
    was at the start. Under nft it is the policy that samples."""
    clip_low: float = 0.2
    """Ratio clip below 1."""
    clip_high: float = 0.2
    """Ratio clip above 1."""
    kl_beta: float = 0.0
    """Weight of the KL divergence from the reference; 0 keeps no reference."""
    image_clip: float | None = None
    """Ratio clip on both sides for image decisions; None takes `clip_low` and `clip_high`. Ratios of denoising steps,
    whose log-probabilities are means over latent dimensions, are clipped at 1e-4."""
    image_kl_beta: float | None = None
    """Weight of the KL divergence of image decisions; None takes `kl_beta`."""
    aggregation: Literal["sequence", "token", "constant"] = "sequence"
    """Mean over tokens then sequences, over all tokens, or sum over tokens divided by a constant length."""
    constant_length: int = 512
    """Divisor of the `constant` aggregation, in decisions."""
    text_weight: float = 1.0
    """Weight of the loss of text decisions."""
    image_weight: float = 1.0
    """Weight of the loss of image decisions."""

    def of(self, modality: Modality) -> ObjectiveConfig:
        """The settings for decisions of one modality."""
        if modality == "text":
            return self
        clip_low, clip_high = (
            c if self.image_clip is None else self.image_clip for c in (self.clip_low, self.clip_high)
        )
        return dataclasses.replace(self, clip_low=clip_low, clip_high=clip_high, kl_beta=self._image_kl_beta)

    @property
    def _image_kl_beta(self) -> float:
        return self.kl_beta if self.image_kl_beta is None else self.image_kl_beta

    @property
    def has_penalty(self) -> bool:
        """Whether a divergence from the reference is a part of the loss."""
        return self.kl_beta > 0 or self._image_kl_beta > 0 or self.samples_reference

    @property
    def needs_distance(self) -> bool:
        """Whether the batch holds the divergence from the reference; of settings for one modality."""
        return self.kl_beta > 0 or self.samples_reference

    @property
    def from_reference(self) -> bool:
        """Whether log-probabilities are measured from the reference's, not from the policy's that sampled."""
        return self.name == "dpo"

    @property
    def samples_reference(self) -> bool:
        """Whether the reference makes the rollouts."""
        return self.name == "nft"

    @property
    def compares_states(self) -> bool:
        """Whether it is defined for noisy states of drawings alone, not for tokens."""
        return self.name == "nft" or (self.name == "dpo" and self.level == "decision")


@dataclass(frozen=True)
class OptimConfig:
    """Steps and the optimiser."""

    steps: int = 100
    """Optimiser-visible rollout steps of the run."""
    items_per_step: int = 16
    """Items per step over all processes; each gets a group."""
    micro_batch_items: int = 16
    """Items scored in one forward pass per process (gradient accumulation over the rest)."""
    micro_batch_images: int = 0
    """Drawings and edits of these items scored in one pass; 0 takes all. Fewer take less memory, so that activations
    may be kept where all would be recomputed, and read their prompt more often."""
    rollout_items: int = 0
    """Items rolled out in one go per process; 0 takes all."""
    scoring: Scoring = "rounds"
    """What is scored of a drawing: its rounds or denoising steps as they were; of masked decoding in one pass all of
    its codes from an empty canvas, or a random part of them from the rest; of denoising the finished latent, noised
    anew to the levels of its schedule, by its flow-matching loss. All but the first are surrogates."""
    scored_rounds: int = 0
    """Rounds of a masked decoding, denoising steps, or levels of noise that are scored for each drawing, at random and
    with weights that keep the gradient unbiased; 0 scores all."""
    least_masked: float = 0.0
    """Smallest share of a drawing that `random_masks` scores: each drawing's share is uniform between it and 1."""
    old_logp: Literal["sampled", "recomputed"] = "sampled"
    """Log-probabilities that ratios are taken to: those that sampling gave, or, computed anew by scoring before the
    first update changes the weights, those of the same batches and types; the log then has `sampling_difference`."""
    refills: int = 0
    """Further rollouts of a step, at most, each of as many new items, while too few groups have rewards that differ to
    fill the batch (dynamic sampling, DAPO); 0 trains on every group as it comes."""
    updates_per_rollout: int = 1
    """Optimiser steps on each rollout; above 1 the items of a step are split into as many minibatches."""
    learning_rate: float = 1e-6
    """Peak AdamW learning rate."""
    part_learning_rates: dict[str, float] = field(default_factory=dict)
    """Another rate for the parameters whose names match a regular expression; where several match, the first counts."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up."""
    weight_decay: float = 0.0
    """AdamW weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW moment decay rates."""
    max_grad_norm: float = 1.0
    """Gradient norm above which gradients are scaled down."""
    modality_grad_norms: bool = True
    """Log the gradient norm of text and image losses apart (keeps a copy of the gradient)."""
    max_norm_ratio: float = 0.0
    """Skip an update whose gradient norm is more than so many times the median of the last 64; 0 skips none."""
    max_bad_steps: int = 3
    """Consecutive skipped updates, for a loss or gradient that is not finite or too large, after which the run saves
    its state and stops."""
    ema_decay: float = 0.0
    """After a step the moving average of the trained weights becomes this share of itself and for the rest the weights;
    0 keeps no average."""
    exported: Literal["trained", "average"] = "trained"
    """Which of the two evaluations look at and the checkpoints `best` and `final` hold."""


@dataclass(frozen=True)
class EvalConfig:
    """Evaluation before, during and after training."""

    items: int = 600
    """Held-out items."""
    every: int = 0
    """Steps between evaluations; 0 evaluates before and after only."""
    during_items: int = 120
    """Held-out items of an evaluation during training."""
    batch_size: int = 120
    """Items per rollout of an evaluation."""
    gallery: int = 18
    """Items whose drawings and answers the report shows."""
    own_drawings: bool = False
    """Also ask each item's question about the drawing: the imbalance of both sides, for one more reply an item."""
    rewards: tuple[str, ...] = ()
    """Rewards that measure held-out drawings, and answers about them, without training on them; first that which judges
    drawings where the world's judge cannot."""
    noiseless: bool = False
    """Denoise drawings without the noise that training explores with."""


@dataclass(frozen=True)
class RemoteConfig:
    """How rewards on servers are asked, `remote:http://host:port/<reward>`."""

    timeout: float = 120.0
    """Seconds for one request."""
    patience: float = 900.0
    """Seconds for which a request is repeated while the server is away or busy, before the reward fails."""
    requests: int = 16
    """Requests of a process at a time."""
    rows: int = 16
    """Most trajectories of a request."""


@dataclass(frozen=True)
class DistributedConfig:
    """How a run on several processes is spread over them; docs/distributed.md says when to choose what."""

    strategy: Strategy = "ddp"
    """What every process keeps between the phases of a step: all weights and optimiser states (`ddp`), or its part of
    them, gathered for a rollout or an update (`fsdp2`)."""
    processes_per_group: int = 1
    """Processes that share out the siblings of an item: more than 1 where there are fewer items than processes."""
    timeout: float = 1800.0
    """Seconds that a process waits for another before the run fails."""


@dataclass(frozen=True)
class ServeConfig:
    """What a reward server takes on."""

    batch: int = 64
    """Most trajectories judged in one call, of as many requests as wait."""
    queue: int = 128
    """Requests that one worker holds; more are told to come back (503, with Retry-After)."""
    megabytes: int = 64
    """Largest request."""


@dataclass(frozen=True)
class RetentionConfig:
    """What a model can do before training and is to keep: questions that it answers, figures that are not to fall."""

    data: DataConfig = DataConfig()
    """Where the questions come from; these items' prompts are not drawn."""
    probe_items: int = 0
    """Held-out questions that every evaluation asks besides; 0 asks none."""
    replay_items: int = 0
    """Training questions that every step asks besides, of which each group is trained in the step's own update; 0
    replays none."""
    replay_rewards: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0})
    """Weight of each reward of replayed answers by name."""
    watch: tuple[str, ...] = ()
    """Figures of evaluations that are not to fall, such as probe, answer or reward/world_clean."""
    fall: float = 0.05
    """How far a watched figure may lie below the first evaluation's; it is fallen where the whole 95% interval of the
    paired difference lies further below."""
    on_fall: Literal["report", "stop", "raise_kl"] = "report"
    """What is done then: a line in health.jsonl, also the end of the run, or also a higher weight of the KL."""
    kl_factor: float = 2.0
    """What `raise_kl` multiplies the weights of the KL divergence by, each time."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run. `unison recipes` lists the functions that return one."""

    recipe: str
    """Name of the recipe this configuration started from."""
    policy: PolicyConfig
    data: DataConfig = DataConfig()
    scenario: ScenarioConfig = ScenarioConfig()
    rewards: dict[str, float] = field(default_factory=dict)
    """Weight of each reward by name; `name:checkpoint` gives it another model than its default, and
    `remote:http://host:port/name` is one that `unison serve-reward` serves."""
    remote: RemoteConfig = RemoteConfig()
    distributed: DistributedConfig = DistributedConfig()
    reward_normalisation: Literal["none", "group", "running"] = "none"
    """Standardise each reward within its group, or over the run so far, before the weighted sum."""
    abstain_on_error: tuple[str, ...] = ()
    """Rewards whose exceptions count as 'cannot judge' instead of stopping the run."""
    advantage: AdvantageConfig = AdvantageConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    optim: OptimConfig = OptimConfig()
    evaluation: EvalConfig = EvalConfig()
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    out: Path = Path("runs/unnamed")
    """Run folder."""
    seed: int = 0
    """Seed of data order and of every sample."""
    checkpoint_every: int = 25
    """Steps between checkpoints."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """`accelerate` trackers to log to; metrics.jsonl is always written."""
    peak_flops: float = 0.0
    """Most FLOP/s of a process's device, which model FLOP utilisation is a share of; 0 measures a large matrix product
    at the start."""
    profile: int = 0
    """Steps after the first that torch's profiler traces into the run folder; 0 traces none."""

    def __post_init__(self) -> None:
        from unison.config.checks import check  # which imports this module

        check(self)

    @property
    def rolls_out_reference(self) -> bool:
        """Whether the reference takes part in rollouts."""
        return self.objective.samples_reference or self.scenario.asks_reference

    @property
    def needs_reference(self) -> bool:
        """Whether the run keeps the weights that it starts from."""
        return self.objective.has_penalty or self.objective.from_reference or self.scenario.asks_reference


COLD_START = "cold-start"
"""Name of the stage of a chain that may be left out."""


@dataclass(frozen=True)
class Stage:
    """One run of a chain."""

    name: str
    """Folder inside the chain's folder."""
    config: RunConfig
    start: str = ""
    """Earlier stage whose final checkpoint this one starts from; empty starts from its own `policy.path`."""


Chain: TypeAlias = tuple[Stage, ...]


def pick(table: Mapping[str, T], name: str, field: str) -> T:
    """The entry of that name.

    Raises:
        ValueError: unknown name; says the field, the nearest name and all choices.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{field} = {name!r} is unknown; {hint}choices: {', '.join(table)}")
    return table[name]


def to_json(config: RunConfig) -> str:
    """The resolved configuration as JSON; `from_json` reads it back."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str)


def from_json(text: str) -> RunConfig:
    """Reads a saved configuration.

    Raises:
        ValueError: an unknown field (with the nearest known one), a missing field or a value of the wrong type.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the configuration is not valid JSON: {error}") from error
    _reject_unknown(values, RunConfig, "")
    try:
        return TypeAdapter(RunConfig).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(x) for x in first["loc"]) or "configuration"
        raise ValueError(f"{where} = {first['input']!r}: {first['msg']}") from error


def _reject_unknown(values: Any, kind: type, where: str) -> None:
    import typing

    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(hints)}"
            raise ValueError(f"unknown field {where}{name} = {value!r}; {remedy}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            _reject_unknown(value, hints[name], f"{where}{name}.")  # type: ignore[arg-type]
