"""The memory of one process of a run, from shapes alone: what lies there throughout, and what comes on top at its peak.

Weights and all that has their size are counted; what an update makes and keeps is found by letting the policy score a
rehearsed micro-batch with weights that have no data. Left out: what allocators waste between blocks, libraries' own
memory, and pictures of data and logs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from unison import scenarios
from unison.config import RunConfig, Strategy, teams_of
from unison.objectives import needs_distance, needs_reference
from unison.planning.peak_memory import Program, peak_bytes
from unison.planning.rehearsal import Rehearsed, enough, rehearse
from unison.policies.adapters import is_adapter
from unison.policies.base import Policy
from unison.policies.sizes import Shape, shape_of
from unison.rewards.sizes import model_bytes
from unison.types import Action, Context, Modality, Relaxed, Tokens

FLOAT = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Layout:
    """The processes that a run is planned for."""

    processes: int = 1
    """How many there are, each with its share of a step's items."""
    strategy: Strategy = "ddp"
    """Whether each holds all weights (ddp) or a share of weights, gradients and optimiser states (fsdp2)."""

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise ValueError(f"processes = {self.processes}: must be at least 1")


@dataclass(frozen=True)
class Memory:
    """Bytes of one process by purpose."""

    lasting: dict[str, float]
    """What lies there throughout."""
    rolling: dict[str, float]
    """What comes on top while samples are made."""
    updating: dict[str, float]
    """What comes on top in an update."""
    unknown: list[str] = field(default_factory=list)
    """Checkpoints of rewards whose size cannot be told."""

    @property
    def peak(self) -> float:
        """Rollout and update take turns."""
        return sum(self.lasting.values()) + max(sum(self.rolling.values()), sum(self.updating.values()))

    def lines(self) -> dict[str, float]:
        """All of it by purpose, and the peak."""
        return self.lasting | self.rolling | self.updating | {"peak": self.peak}


ALONE = Layout()


def estimate_memory(config: RunConfig, layout: Layout = ALONE) -> Memory:
    """What one process needs.

    Raises:
        ValueError: a checkpoint whose shape is not known without a download; what the policy itself refuses; a step
            that does not divide over the processes.
    """
    items = config.step.items // teams_of(config, layout.processes)
    group = config.scenario.group_size // config.distributed.processes_per_group
    shape = shape_of(config.policy)
    network = shape.policy.network
    share = 1 / layout.processes if layout.strategy == "fsdp2" else 1.0
    weights, trained = _bytes(network), _bytes(network, trained=True)
    moving = config.objective.reference_decay < 1
    copied = [p for n, p in network.named_parameters() if p.requires_grad and (moving or not is_adapter(n))]
    reference = float(sum(p.numel() * p.element_size() for p in copied)) if needs_reference(config) else 0.0
    rewards, unknown = model_bytes((*config.rewards, *config.evaluation.rewards))
    lasting = {
        "parameters": share * weights,
        "optimiser (AdamW)": share * 2 * trained,
        "reference": share * reference,
        "moving average of the weights": share * trained if config.optim.ema_decay else 0.0,
        "reward models": rewards,
    }
    held_out = min(config.evaluation.batch_size, config.evaluation.items)
    rows = max(min(config.step.rollout_items or items, items) * group, held_out)
    work = _Work(config, shape, rehearse(config, shape, min(config.step.micro_batch_items, items), group))
    updating = {"gradients": share * trained, **work.update(share * trained), **_gathered(network, layout, trained)}
    return Memory(lasting, work.rollout(rows), updating, unknown)


def _bytes(network: nn.Module, trained: bool = False) -> float:
    parameters = (p for p in network.parameters() if p.requires_grad or not trained)
    return float(sum(p.numel() * p.element_size() for p in parameters))


def _gathered(network: nn.Module, layout: Layout, trained: float) -> dict[str, float]:
    """What `fsdp2` gathers for an update: whole weights, and the gradients that add up before they are shared out."""
    if layout.processes == 1 or layout.strategy == "ddp":
        return {}
    rest = 1 - 1 / layout.processes
    return {"weights and gradients gathered for an update": rest * (_bytes(network) + trained)}


# -- work --------------------------------------------------------------------------------------------------------------


class _SeenError(Exception):
    """Stops a pass that has told what was asked."""


@dataclass(frozen=True)
class _Work:
    """What a policy does with what was rehearsed."""

    config: RunConfig
    shape: Shape
    rehearsed: Rehearsed

    @property
    def policy(self) -> Policy:
        return self.shape.policy

    def _peak(self, program: Program, gradients: bool = True) -> float:
        return float(peak_bytes(self.policy.network, program, gradients=gradients))

    # -- samples -------------------------------------------------------------------------------------------------

    def rollout(self, rows: int) -> dict[str, float]:
        """Bytes of so many trajectories at once, in training or in evaluation."""
        drawings = [action for _, action in self.rehearsed.sampled if action.modality == "image"][:1]
        kept = max((self._kept(*one) for one in self.rehearsed.sampled), default=0.0)
        painted = self._peak(lambda: self.policy.decode(drawings * rows), gradients=False) if drawings else 0.0
        return {"keys and values of a rollout": rows * kept, "drawings painted": painted}

    def _kept(self, context: Context, action: Action) -> float:
        """Keys and values of a row: of the prompt, and of what is decided token by token."""
        if not isinstance(action, Tokens):  # the states of the prompt are enough
            return 0.0
        sizes = self.policy.decoder.config
        width = sizes.hidden_size * sizes.num_key_value_heads // sizes.num_attention_heads
        branches = 2 if action.modality == "image" and action.sampling.guidance != 1 else 1
        decided = len(action) if len(action.order.unique()) == len(action) else 0
        positions = branches * (self._prompt(context, action) + decided)
        return 2.0 * FLOAT[self.policy.config.compute_dtype] * positions * sizes.num_hidden_layers * width

    def _prompt(self, context: Context, action: Action) -> int:
        """Positions of a context: those that the decoder is given first."""

        def stop(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
            raise _SeenError(given["inputs_embeds"].shape[1])

        handle = self.policy.decoder.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self._peak(lambda: self.policy([context], [action]), gradients=False)
        except _SeenError as seen:
            return seen.args[0]
        finally:
            handle.remove()
        raise AssertionError("an action was scored without a look at its context")

    # -- updates -------------------------------------------------------------------------------------------------

    def update(self, gradients: float) -> dict[str, float]:
        """Bytes of an update beside the gradients: of texts, then, beside a copy of their gradient, of drawings."""
        text, image = self._scored("text", _realised), self._scored("image")
        relaxed = self._scored("text") - text if scenarios.find(self.config.scenario.name).relaxes else 0.0
        copy = gradients if self.config.optim.modality_grad_norms else 0.0
        late = copy if text and image else 0.0
        shown = late if late + image > text + relaxed else 0.0
        work = max(text, image) if not shown else image
        return {
            "copy of gradients for the norms of modalities": shown,
            "activations of a micro-batch": max(work, copy - shown),
            "drawings differentiated through": relaxed,
        }

    def _scored(self, modality: Modality, read: Callable[[Context], Context] = lambda context: context) -> float:
        """Bytes of the first micro-batch, forward and backward, with the reference's word on it."""
        some = [(read(context), action) for context, action in self.rehearsed.scored if action.modality == modality]
        size = self.config.step.micro_batch_images if modality == "image" else 0
        if not some:
            return 0.0
        contexts, whole = zip(*some[: size or len(some)], strict=True)
        actions = enough(self.shape, whole)
        distance = needs_distance(self.config.objective.of(modality))

        def score() -> list[Tensor]:
            return self.policy(contexts, actions, self.policy.anchors(contexts, actions) if distance else None)

        return self._peak(score)


def _realised(context: Context) -> Context:
    """With drawings in place of relaxed ones, each of which is its context's alone."""
    drawn = any(isinstance(part, Relaxed) for part in context.parts)
    parts = tuple(part.action if isinstance(part, Relaxed) else part for part in context.parts)
    return Context(parts) if drawn else context
