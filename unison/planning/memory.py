"""The memory of one process of a run, from shapes alone: what lies there throughout, and what comes on top at its peak.

Weights and all that has their size are counted; what a pass makes and keeps is found by running it on tensors without
data (`policies.live`), and so follows whatever the scoring code does. Left out: what allocators waste between blocks,
libraries' own memory, and pictures of data and logs.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from unison import scenarios
from unison.config import PolicyConfig, Recompute, RunConfig, Strategy
from unison.config.checks import teams_of
from unison.policies import family_of, locate
from unison.policies.adapters import add_adapters, is_adapter, matches
from unison.policies.decisions.tokens import LOGITS_PER_CHUNK
from unison.policies.decoding.masked import POSITIONS_PER_CHUNK
from unison.policies.metaquery.diffusion import PICTURES, at_once
from unison.rewards.sizes import model_bytes

if TYPE_CHECKING:
    from unison.planning.passes import Ends
    from unison.planning.peak_memory import Program
    from unison.planning.shapes import Denoising, Sizes

FLOAT = {"float32": 4, "bfloat16": 2}
PROMPT = 64
"""Positions allowed for a prompt or a question."""


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
        ValueError: a checkpoint whose shape is not known without a download; adapters that fit nothing; a step that
            does not divide over the processes.
    """
    items = config.optim.items_per_step // teams_of(config, layout.processes)
    sizes = sizes_of(config.policy)
    network = prepared(config.policy, sizes)
    share = 1 / layout.processes if layout.strategy == "fsdp2" else 1.0
    weights, trained = _bytes(network), _bytes(network, trained=True)
    moving = config.objective.reference_decay < 1
    copied = [p for n, p in network.named_parameters() if p.requires_grad and (moving or not is_adapter(n))]
    reference = float(sum(p.numel() * p.element_size() for p in copied)) if config.needs_reference else 0.0
    rewards, unknown = model_bytes((*config.rewards, *config.evaluation.rewards))
    work = _Work(config, sizes, network, items, config.scenario.group_size // config.distributed.processes_per_group)
    lasting = {
        "parameters": share * weights,
        "optimiser (AdamW)": share * 2 * trained,
        "reference": share * reference,
        "moving average of the weights": share * trained if config.optim.ema_decay else 0.0,
        "reward models": rewards,
    }
    rolling = {"keys and values of a rollout": work.cache(), "drawings painted": work.painted()}
    updating = {"gradients": share * trained, **work.update(share * trained), **_gathered(network, layout, trained)}
    return Memory(lasting, rolling, updating, unknown)


def sizes_of(config: PolicyConfig) -> Sizes:
    """Sizes of the checkpoint: of a local folder, or of a published shape.

    Raises:
        ValueError: neither is at hand.
    """
    from unison.planning.shapes import LOCAL, PUBLISHED

    if config.path in PUBLISHED:
        return PUBLISHED[config.path].sizes()
    folder = Path(locate(config.path)).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"policy.path = {config.path!r}: a dry run downloads nothing; shapes are known of {', '.join(PUBLISHED)} "
            "and for local folders"
        )
    family = family_of(str(folder))
    if family not in LOCAL:
        raise ValueError(
            f"policy.path = {config.path!r}: a dry run knows the memory of {', '.join(LOCAL)}, not of {family!r}; try "
            "the run itself with --optim.steps 1"
        )
    return LOCAL[family](folder)


# -- weights -----------------------------------------------------------------------------------------------------------


def prepared(config: PolicyConfig, sizes: Sizes) -> nn.Module:
    """The network on the meta device with the types, adapters and frozen parts of the loaded policy."""
    network = sizes.network
    kind = getattr(torch, config.dtype)
    for name, parameter in network.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if matches(sizes.exact, name) else kind)
        parameter.requires_grad_(not matches((*config.frozen, *sizes.fixed), name))
    if config.lora_rank:
        if not any(re.fullmatch(config.lora_targets, name) for name, _ in network.named_modules()):
            raise ValueError(f"policy.lora_targets = {config.lora_targets!r} matches no module of {config.path}")
        with torch.device("meta"):
            add_adapters(network, config)
    return network


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


@dataclass(frozen=True)
class _Work:
    """Rollouts and updates of a run on one of its processes, which takes so many items of a step."""

    config: RunConfig
    sizes: Sizes
    network: nn.Module
    items: int
    group: int
    """Siblings of an item that are made here."""

    @property
    def scenario(self) -> scenarios.Scenario:
        return scenarios.find(self.config.scenario.name)

    @property
    def draws(self) -> bool:
        return "draw" in self.scenario.verbs or "edit" in self.scenario.verbs

    def rows(self, items: int) -> int:
        """Trajectories of so many items, or of all there are."""
        return min(items or self.items, self.items) * self.group

    # -- samples -------------------------------------------------------------------------------------------------

    @property
    def rolled(self) -> int:
        """Trajectories rolled out at once, in training or in evaluation."""
        held_out = min(self.config.evaluation.batch_size, self.config.evaluation.items)
        return max(self.rows(self.config.optim.rollout_items), held_out)

    def cache(self) -> float:
        """Bytes of keys and values: of drawings token by token, of replies, or of masked drawings' prompts."""
        positions = self.question + self.config.scenario.text.max_tokens if "write" in self.scenario.verbs else 0
        if self.draws:
            guided = self.config.scenario.image.guidance != 1
            drawn = 0 if self.sizes.masked or self.sizes.denoising else self.sizes.image_tokens
            positions = max(positions, _branches(guided) * (drawn + PROMPT))
        values = 2.0 * self.rolled * positions * self.sizes.layers * self.sizes.width
        return values * FLOAT[self.config.policy.compute_dtype]

    def painted(self) -> float:
        """Bytes that turning the drawings of a rollout into pixels takes."""
        count = min(self.rolled, at_once(self.sizes.denoising.pixels) if self.sizes.denoising else PICTURES)
        return self._peak(lambda: self.sizes.paint(self.network, count), gradients=False) if self.draws else 0.0

    # -- updates -------------------------------------------------------------------------------------------------

    def update(self, gradients: float) -> dict[str, float]:
        """Bytes of an update beside the gradients: of texts, then, beside a copy of their gradient, of drawings."""
        optim, text, image = self.config.optim, self.replies(), self.drawings()
        relaxed, copy = self.relaxed(), gradients if optim.modality_grad_norms else 0.0
        late = copy if text and image else 0.0
        shown = late if late + image > text + relaxed else 0.0
        work = max(text, image) if not shown else image
        return {
            "copy of gradients for the norms of modalities": shown,
            "activations of a micro-batch": max(work, copy - shown),
            "drawings differentiated through": relaxed,
        }

    @property
    def question(self) -> int:
        """Positions of a question, about a picture if it may be."""
        return PROMPT + (self.sizes.image_tokens if self.scenario.reads else 0)

    @property
    def scored(self) -> int:
        """Trajectories of a micro-batch."""
        return self.rows(self.config.optim.micro_batch_items)

    @property
    def drawn(self) -> int:
        """Trajectories whose drawings are scored in one pass, at most: some have two each."""
        return min(self.scored, self.config.optim.micro_batch_images or self.scored)

    @property
    def prompts(self) -> int:
        """Different prompts among them: siblings share theirs until each has done something of its own."""
        shared = self.config.scenario.name in ("t2i", "understanding", "unified", "imitate")
        return self.scored // self.group if shared else self.scored

    def replies(self) -> float:
        """Bytes that scoring a micro-batch's replies takes; none where no reply is scored."""
        from unison.planning.passes import Continued, replies

        if "write" not in self.scenario.verbs:
            return 0.0
        length = self.config.scenario.text.max_tokens
        return self._peak(
            replies(
                self._decoder,
                self._words,
                Continued(self.prompts, self.question, self.scored, length, recompute=self._recompute),
            )
        )

    def drawings(self) -> float:
        """Bytes that scoring a pass of drawings takes; none where no drawing is scored."""
        if not self.draws or self.scenario.relaxes:
            return 0.0
        if self.sizes.denoising:
            return self._denoised(self.sizes.denoising)
        guided = self.config.scenario.image.scores_guided
        return self._canvases(guided, self.drawn) if self.sizes.masked else self._in_order(guided, self.drawn)

    def _in_order(self, guided: bool, rows: int) -> float:
        from unison.planning.passes import Continued, replies

        sizes = Continued(self._asked(rows), PROMPT, rows, self.sizes.image_tokens, guided, self._recompute)
        return self._peak(replies(self._decoder, self._codes, sizes))

    def _asked(self, rows: int) -> int:
        """Different prompts of so many drawings: those of whatever draws first are shared."""
        return rows if self.scenario.verbs[0] == "write" else math.ceil(rows / self.group)

    def _canvases(self, guided: bool, rows: int, rounds: int | None = None) -> float:
        """A chunk of the canvases of a drawing's rounds."""
        from unison.planning.passes import Continued, canvases

        optim, tokens = self.config.optim, self.sizes.image_tokens
        if rounds is None:
            most = self.config.scenario.image.rounds
            rounds = min(optim.scored_rounds or most, most) if optim.scoring == "rounds" else 1
        chunk = max(1, POSITIONS_PER_CHUNK // (tokens * _branches(guided)))
        count = min(rows * rounds, chunk)
        decided = max(1, count * tokens // rounds)
        sizes = Continued(min(self._asked(rows), count), PROMPT, count, tokens, guided)
        return self._peak(canvases(self._decoder, self._codes, sizes, decided))

    def _denoised(self, expert: Denoising) -> float:
        """What language model and bridge say of each prompt, and the noisy states."""
        from unison.planning.passes import Denoised, denoised

        guided = self.config.scenario.image.scores_guided and self.config.objective.name != "sft"
        edits, turns = "edit" in self.scenario.verbs, "draw" in self.scenario.verbs and "edit" in self.scenario.verbs
        thought = self.config.scenario.text.max_tokens if "write" in self.scenario.verbs else 0
        prompts = self._asked(self.drawn) + (self.drawn if turns else 0)
        # the branch that sees the source alone is each prompt's own; that which sees nothing is there once
        asked = prompts * (1 + (edits and guided)) + (guided and not edits)
        branches = _branches(guided) + (guided and edits and self.config.scenario.image.source_guidance != 1)
        sizes = Denoised(
            prompts=asked,
            prompt=PROMPT + thought + edits * expert.source_tokens,
            drawings=self.drawn * (1 + (edits and not turns)),
            states=self._states * (1 + (edits and not turns)),
            branches=branches,
            at_once=self.config.policy.states_per_pass,
            edits=edits,
            recompute=self._recompute,
        )
        return self._peak(denoised(self.network, sizes))  # type: ignore[arg-type]

    @property
    def _states(self) -> int:
        """Noisy states of such drawings that are scored."""
        image = self.config.scenario.image
        if self.config.objective.name == "sft":  # a given drawing is one state of itself
            return self.drawn
        steps = min(self.config.optim.scored_rounds or image.steps, image.steps)
        return self.drawn * (len(image.noisy_steps) or steps)

    def relaxed(self) -> float:
        """Bytes that the backward pass through a micro-batch's drawings keeps: another pass of the decoder with its
        noise, what paints the drawings and sees them, and a chunk of logits while it is recomputed."""
        if not self.scenario.relaxes:
            return 0.0
        guided, count, tokens = self.config.scenario.image.scores_guided, self.scored, self.sizes.image_tokens
        drawn = self._canvases(guided, count, 1) if self.sizes.masked else self._in_order(guided, count)
        noise = FLOAT["float32"] * count * tokens * self.sizes.codes
        logits = min(LOGITS_PER_CHUNK, count * tokens * self.sizes.codes)
        painted = count * FLOAT[self.config.policy.compute_dtype] * self.sizes.painted
        return noise + painted + drawn + 5.0 * FLOAT["float32"] * logits

    # -- the network ---------------------------------------------------------------------------------------------

    @property
    def _recompute(self) -> Recompute:
        return self.config.policy.recompute

    @property
    def _decoder(self) -> nn.Module:
        return self.network.get_submodule(self.sizes.decoder)

    def _words(self) -> Ends:
        return self.sizes.write(self.network)

    def _codes(self) -> Ends:
        assert self.sizes.draw, "drawings that are denoised have no tokens"
        return self.sizes.draw(self.network)

    def _peak(self, program: Program, gradients: bool = True) -> float:
        from unison.planning.peak_memory import peak_bytes

        bfloat16 = self.config.policy.compute_dtype == "bfloat16"
        return float(peak_bytes(self.network, program, bfloat16=bfloat16, gradients=gradients))


def _branches(guided: bool) -> int:
    return 2 if guided else 1
