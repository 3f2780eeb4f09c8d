"""The nouns of Unison: every type that crosses a module boundary.

Shape letters used throughout:

    B  batch rows            G  group size (siblings of one item)
    L  decisions of an action (tokens or denoising steps)
    S  sequence positions    D  width    V  vocabulary or codebook    H  heads

Words, as the field has them:

    guidance     classifier-free guidance (CFG)
    rollout      sampling trajectories from the policy: G of every item, a group
    score        the log-probabilities of given actions, with gradients; never a reward
    ratio        the importance ratio, new probability over that of the policy that sampled
    advantage    a reward compared with its siblings'
    reference    the frozen policy that the KL divergence is measured from
    coefficient  the factor of a reward or of a part of the loss; weights are a model's parameters
    share        what a decision counts for in the loss of a step
    pack         several sequences in one, under a block mask
    EMA          the moving average of the trained weights
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import torch
from annotated_types import Interval
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Modality = Literal["text", "image"]
MODALITIES: tuple[Modality, ...] = ("text", "image")
Split = Literal["train", "eval"]
AnswerKind = Literal["multiple_choice", "open_ended"]
Positive: TypeAlias = Annotated[float, Interval(gt=0)]
Count: TypeAlias = Annotated[int, Interval(ge=1)]
Sde = Literal["flow_grpo", "simple", "dance_grpo", "cps", "ode"]
Hides = Literal["nothing", "text", "source", "everything"]
"""What a drawing's context keeps from it: its texts, its pictures, or both."""

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""GenEval's six tasks (arXiv 2310.11513), by which prompts are made and figures are reported."""
RELATIONS = ("left of", "right of", "above", "below")
"""GenEval's relations of one object to another."""
COUNTS = (2, 3, 4)
"""Numbers of equal objects that GenEval asks for."""


@dataclass(frozen=True)
class TextSampling:
    """How a text is sampled, and therefore how it is scored."""

    temperature: Positive = 1.0
    """Softmax temperature of sampling and scoring."""
    max_tokens: Count = 512
    """Longest reply in tokens."""


@dataclass(frozen=True)
class ImageSampling:
    """How a drawing is sampled, and therefore how it is scored."""

    temperature: Positive = 1.0
    """Softmax temperature of sampling and scoring."""
    guidance: Annotated[float, Interval(ge=1)] = 1.0
    """Classifier-free guidance scale w in u + w (c - u); 1 turns it off."""
    score_conditional: bool = False
    """Score the conditional branch alone though guidance was used in sampling (the CoRL authors' code does)."""
    rounds: Count = 18
    """Rounds of masked decoding in which a drawing is decided; models that draw token by token have no use for it."""
    choice_temperature: Annotated[float, Interval(ge=0)] = 1.0
    """Coefficient of Gumbel noise in masked decoding's choice of the positions to decide; it falls from round to round,
    and 0 decides the most confident."""
    steps: Count = 10
    """Denoising steps of a drawing by flow matching; discrete drawings have no use for this and what follows."""
    shift: Positive = 3.0
    """Time shift of the noise schedule: above 1, more of the steps are taken at high noise."""
    sde: Sde = "flow_grpo"
    """Stochastic sampler (formulas: `policies.decisions.sde.spread`); "ode" is deterministic and trains nothing."""
    noise_level: Annotated[float, Interval(ge=0)] = 0.7
    """Noise that the sampler injects in each noisy step; 0.7 goes with "flow_grpo", 0.3 with "dance_grpo"."""
    noisy_steps: tuple[int, ...] = ()
    """Steps, from 0, that inject noise and are trained, while the others are deterministic; empty takes all."""
    shared_start: bool = False
    """Siblings denoise from one starting noise, so that they differ by what the noisy steps inject (DanceGRPO)."""
    source_guidance: float = 1.0
    """Scale s of the source's guidance in edits, u + s (i - u) + w (c - i), where i sees the source alone."""

    @property
    def scores_guided(self) -> bool:
        """Whether drawings are scored, and relaxed, with both branches of guidance."""
        return self.guidance != 1 and not self.score_conditional


@dataclass(frozen=True)
class Sampling(ImageSampling, TextSampling):
    """How an action of either kind is sampled: each has no use for what is the other's."""

    @classmethod
    def of(cls, some: TextSampling | ImageSampling) -> Sampling:
        """The settings of one kind of action."""
        return cls(**dataclasses.asdict(some))


@dataclass(frozen=True, eq=False)
class Tokens:
    """A discrete action: text, or the tokens of a drawing.

    `order[l]` is the step at which position l was decided: 0..L-1 when autoregressive, the reveal round for masked
    diffusion, whose canvas at round t is `where(order < t, ids, MASK)`.
    """

    modality: Modality
    ids: Tensor  # [L] int64
    order: Tensor  # [L] int64
    logp: Tensor  # [L] float32, as sampled
    mask: Tensor  # [L] bool, decisions that are trained
    sampling: Sampling

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, eq=False)
class Latents:
    """A denoising path of a stochastic sampler with L steps.

    `logp[s]` is the Gaussian transition log-density of step s averaged over latent dimensions, `mask[s]` is true where
    noise was injected and the step is trained. States are float32 whatever the type of the network, so that replay
    starts from what was sampled.
    """

    path: Tensor  # [L + 1, C, H, W]
    sigmas: Tensor  # [L + 1]
    logp: Tensor  # [L] float32, as sampled
    mask: Tensor  # [L] bool
    sampling: Sampling
    modality: Modality = "image"

    def __len__(self) -> int:
        return len(self.mask)


@dataclass(frozen=True, eq=False)
class Noised:
    """A given drawing in latents at L levels of noise; no sampler took it from one to the next.

    `path` holds the noise of each level and last the latent itself, so level s is the state
    (1 - sigmas[s]) path[-1] + sigmas[s] path[s]. It is scored by the velocity there (`policies.decisions.noising`).
    """

    path: Tensor  # [L + 1, C, H, W]
    sigmas: Tensor  # [L + 1], the last is 0
    logp: Tensor  # [L] zeros: nothing was sampled
    mask: Tensor  # [L] bool, levels that are trained
    hides: Hides = "nothing"
    """What is hidden of its context, so that the branches of guidance are learned too."""
    sampling: Sampling = Sampling()
    modality: Modality = "image"

    def __len__(self) -> int:
        return len(self.mask)


Action: TypeAlias = Tokens | Latents | Noised
Part: TypeAlias = "str | Image | Action | Relaxed"


@dataclass(frozen=True, eq=False)
class Context:
    """What the policy sees before it acts: text, images and earlier actions of the episode, in order.

    Siblings of a group hold the *same* object, which is how the policy knows that it may compute it once.
    """

    parts: tuple[Part, ...]
    unconditional: bool = False
    """The prompt is hidden, as in the unconditional branch of guidance (for supervised training)."""


@dataclass(frozen=True, eq=False)
class Relaxed:
    """An earlier drawing as a part of a context through which the loss of what follows is differentiated.

    It describes a pass that the policy makes whenever it reads the context: the drawing's tokens go with their own
    context through the model once more, and their one-hot rows get the gradient of a Gumbel-softmax of the logits
    (`policies.decisions.tokens.relaxed_rows`). What is read is exactly the drawing; only the gradient is relaxed.
    """

    context: Context
    """What the drawing was drawn from."""
    action: Tokens
    """The drawing; its `sampling` says which logits are meant."""
    temperature: float
    """Temperature of the Gumbel-softmax, not of the sampling."""
    seed: int
    """Seed of the Gumbel noise, and of the canvas that masked decoding reads (`masked_once_more`)."""


@dataclass(frozen=True, eq=False)
class Turn:
    """One call of the policy: the unit of training."""

    context: Context
    action: Action
    advantage: float | None = None
    """An advantage of its own; None takes the trajectory's. A given action that is imitated has 1."""


@dataclass(frozen=True)
class Clause:
    """Equal objects that a drawing must show, or must not: an entry of GenEval's `include` or `exclude`."""

    noun: str
    """One of COCO's 80 classes, under GenEval's name."""
    count: int = 1
    color: str | None = None
    position: tuple[str, int] | None = None
    """Relation of these objects to those of the clause of that number, which comes earlier in `include`."""


@dataclass(frozen=True)
class Wanted:
    """What a drawing is judged by, as GenEval's prompt file states it (arXiv 2310.11513)."""

    tag: str
    """One of the six tasks."""
    include: tuple[Clause, ...]
    """All must hold."""
    exclude: tuple[Clause, ...] = ()
    """Nouns of which there must be fewer than `count`."""


@dataclass(frozen=True, eq=False)
class Selected:
    """The decisions of an action that an update scores."""

    action: Action
    """The action itself, or what stands in for it: fewer decisions in its mask, other rounds."""
    share: Tensor  # [L] what each decision counts for, 0 where it is not scored
    old_logp: Tensor | None  # [L] of the policy that sampled; None where no sampling gave it
    counted: Tensor  # [L] bool, decisions that share the update's loss, scored or not


@dataclass(frozen=True, eq=False)
class Item:
    """One row of a data set. Fields a scenario does not need may be None."""

    id: str
    prompt: str | None = None
    """What to draw, or how to change the picture."""
    image: Image | None = None
    """The real image that the question is about, or that is edited."""
    question: str | None = None
    answer: str | None = None
    reply: str | None = None
    """A whole reply to imitate: the thought and the answer in the requested format."""
    source_caption: str | None = None
    """What the image shows."""
    target_caption: str | None = None
    """What an edit of it is to show, or what a prompt that is a riddle means."""
    target_image: Image | None = None
    """What the edited or corrected image is to look like, where that is imitated."""
    reverse: str | None = None
    """The instruction that takes an edit back."""
    kind: AnswerKind = "open_ended"
    task: str = "all"
    """Category under which evaluation reports the item."""
    wanted: Wanted | None = None
    """What the drawing must show, for judges that detect objects."""


@dataclass(eq=False)
class Trajectory:
    """The turns that answered one item once, with what each reward said of them (None: cannot judge)."""

    item: Item
    turns: tuple[Turn, ...]
    texts: tuple[str, ...] = ()
    """Decoded text actions, in order."""
    images: tuple[Image, ...] = ()
    """Decoded image actions, in order."""
    rewards: dict[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    """Weighted sum of `rewards`, set by `rewards.weigh`."""


Metrics: TypeAlias = dict[str, float]
RewardFn: TypeAlias = Callable[..., list[float | None]]  # (trajectories, policy)


@dataclass(frozen=True, eq=False)
class TurnBatch:
    """Turns of one modality, padded to the longest action, as an objective sees them."""

    logp: Tensor  # [B, L] of the policy being trained; carries the gradient
    old_logp: Tensor  # [B, L] of the policy that sampled, or of the reference where the objective measures from that
    kl: Tensor | None  # [B, L] divergence from the reference, if the objective asks for it; carries the gradient
    advantage: Tensor  # [B]
    mask: Tensor  # [B, L] bool
    share: Tensor  # [B, L] of each decision in the loss of the whole step; 0 where masked
    group: Tensor  # [B] int64, equal for siblings: numbers from 0 without a gap
    weight: Tensor | None = None  # [B, L] how many of its action's decisions each scored one stands for; None: itself

    def of_actions(self, values: Tensor) -> Tensor:
        """Values of decisions so weighted that their sum is that of the whole action, of which only some may be
        scored; an unbiased estimate. [B, L]"""
        return values if self.weight is None else values * self.weight


def pad_stack(rows: Sequence[Tensor], value: float = 0) -> Tensor:
    """Stacks 1-D tensors of unequal length, padded on the right. [B, L]"""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=value)


def group_rows(trajectories: Sequence[Trajectory]) -> Mapping[str, list[int]]:
    """Row numbers of each item's siblings, keyed by item id."""
    return rows_by_item([trajectory.item.id for trajectory in trajectories])


def rows_by_item(ids: Sequence[str]) -> Mapping[str, list[int]]:
    """Row numbers of each item id."""
    groups: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        groups.setdefault(name, []).append(row)
    return groups
