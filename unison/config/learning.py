"""What is learnt from a rollout: advantages, the objective, what a step is made of and scores, the optimiser."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Interval

from unison.config.fields import CountOrNone, NotNegative, Section, Share, require
from unison.types import Count, Modality, Positive

Scoring = Literal["rounds", "whole_canvas", "random_masks", "noised"]
COMPARISONS = ("group", "mean", "rloo", "pair")
"""Kinds of advantage that compare siblings."""


@dataclass(frozen=True)
class AdvantageConfig(Section, place="advantage"):
    """How rewards become advantages."""

    kind: Literal["group", "mean", "rloo", "pair", "constant", "reward"] = "group"
    """Compare the siblings of a group with their mean, over their standard deviation (GRPO) or without that division
    (Dr. GRPO), each with the mean of the others (RLOO), or the best with the worst (preferences); or give every
    trajectory the advantage 1 (imitation), or its own reward (imitation of what was right)."""
    clamp: NotNegative = 0.0
    """Largest absolute advantage; 0 means no limit."""


@dataclass(frozen=True)
class ObjectiveConfig(Section, place="objective"):
    """What is minimised over the decisions of a rollout."""

    name: str = "grpo"
    """grpo: clipped policy gradient; dpo: preference of the best sibling over the worst; nft: DiffusionNFT's contrast
    on the forward process; sft: negative log-likelihood times the advantage."""
    level: Literal["decision", "sequence"] = "decision"
    """What grpo takes a ratio of, and dpo a preference: every decision, or a whole action (GSPO; DPO of texts)."""
    beta: Positive = 0.1
    """How closely dpo and nft hold on to the reference."""
    reference_decay: Share = 1.0
    """After a step the reference becomes this share of itself and for the rest the trained weights; 1 keeps it as it
    was at the start. Under nft it is the policy that samples."""
    clip_low: NotNegative = 0.2
    """Importance ratio clip below 1."""
    clip_high: NotNegative = 0.2
    """Importance ratio clip above 1."""
    kl_beta: NotNegative = 0.0
    """Coefficient of the KL divergence from the reference; 0 keeps no reference."""
    image_clip: NotNegative | None = None
    """Ratio clip on both sides for image decisions; None takes `clip_low` and `clip_high`. Ratios of denoising steps,
    whose log-probabilities are means over latent dimensions, are clipped at 1e-4."""
    image_kl_beta: NotNegative | None = None
    """Coefficient of the KL divergence of image decisions; None takes `kl_beta`."""
    aggregation: Literal["sequence", "token"] | Count = "sequence"
    """Mean over a sequence's tokens and then over sequences, over all tokens, or, a number, sums over tokens divided by
    it."""

    def of(self, modality: Modality) -> ObjectiveConfig:
        """The settings for decisions of one modality."""
        if modality == "text":
            return self
        clip_low, clip_high = (
            c if self.image_clip is None else self.image_clip for c in (self.clip_low, self.clip_high)
        )
        kl_beta = self.kl_beta if self.image_kl_beta is None else self.image_kl_beta
        return dataclasses.replace(self, clip_low=clip_low, clip_high=clip_high, kl_beta=kl_beta)


@dataclass(frozen=True)
class StepConfig(Section, place="step"):
    """What a step is made of."""

    items: Count = 16
    """Items per step over all processes; each gets a group."""
    micro_batch_items: Count = 16
    """Items scored in one forward pass per process (gradient accumulation over the rest)."""
    micro_batch_images: CountOrNone = 0
    """Drawings and edits of these items scored in one pass; 0 takes all. Fewer take less memory, so that activations
    may be kept where all would be recomputed, and read their prompt more often."""
    rollout_items: CountOrNone = 0
    """Items rolled out in one go per process; 0 takes all."""
    refills: CountOrNone = 0
    """Further rollouts of a step, at most, each of as many new items, while too few groups have rewards that differ to
    fill the batch (dynamic sampling, DAPO); 0 trains on every group as it comes."""
    updates: Count = 1
    """Optimiser steps on each rollout; above 1 the items of a step are split into as many minibatches."""

    def check(self) -> None:
        rule = f"a divisor of step.items = {self.items}"
        require(self.items % self.updates == 0, "step.updates", self.updates, rule)
        one = self.items // self.updates
        holds, rule = one % min(self.micro_batch_items, one) == 0, f"a divisor of the {one} items of an update"
        require(holds, "step.micro_batch_items", self.micro_batch_items, rule)


@dataclass(frozen=True)
class ScoringConfig(Section, place="scoring"):
    """What an update scores of the actions."""

    drawings: Scoring = "rounds"
    """What is scored of a drawing: its rounds or denoising steps as they were; of masked decoding in one pass all of
    its codes from an empty canvas, or a random part of them from the rest; of denoising the finished latent, noised
    anew to the levels of its schedule, by its flow-matching loss. All but the first are surrogates."""
    rounds: CountOrNone = 0
    """Rounds of a masked decoding, denoising steps, or levels of noise that are scored for each drawing, at random and
    with shares that keep the gradient unbiased; 0 scores all."""
    least_masked: Share = 0.0
    """Smallest share of a drawing that `random_masks` scores: each drawing's share is uniform between it and 1."""
    old_logp: Literal["sampled", "recomputed"] = "sampled"
    """Log-probabilities that ratios are taken to: those that sampling gave, or, computed anew by scoring before the
    first update changes the weights, those of the same batches and types. Then the first ratio is exactly 1, which
    costs nothing with one update a rollout. `sampling_difference` in the log is how far the two are apart."""

    def check(self) -> None:
        rule, masked = f"0 with scoring.drawings = {self.drawings!r}, which scores ", self.drawings == "random_masks"
        in_rounds = self.drawings in ("rounds", "noised")
        require(not self.rounds or in_rounds, "scoring.rounds", self.rounds, f"{rule}no rounds")
        require(not self.least_masked or masked, "scoring.least_masked", self.least_masked, f"{rule}no random part")


@dataclass(frozen=True)
class OptimConfig(Section, place="optim"):
    """How long a run is, and its optimiser, with a guard and an average."""

    steps: Count = 100
    """Optimiser-visible rollout steps of the run."""
    learning_rate: Positive = 1e-6
    """Peak AdamW learning rate."""
    part_learning_rates: dict[str, float] = field(default_factory=dict)
    """Another rate for the parameters whose names match a regular expression; where several match, the first counts."""
    warmup_steps: CountOrNone = 0
    """Steps of linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Course of the learning rate after warm-up."""
    weight_decay: NotNegative = 0.0
    """AdamW weight decay."""
    betas: tuple[Share, Share] = (0.9, 0.999)
    """AdamW moment decay rates."""
    max_grad_norm: Positive = 1.0
    """Gradient norm above which gradients are scaled down."""
    max_norm_ratio: float = 0.0
    """Skip an update whose gradient norm is more than so many times the median of the last 64; 0 skips none."""
    modality_grad_norms: bool = True
    """Log the gradient norm of text and image losses apart (keeps a copy of the gradient)."""
    ema_decay: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    """After a step the moving average (EMA) of the trained weights becomes this share of itself and for the rest the
    weights, and is what evaluations look at and the checkpoints `best` and `final` hold; 0 keeps no average."""

    def check(self) -> None:
        off = self.max_norm_ratio == 0
        require(off or self.max_norm_ratio > 1, "optim.max_norm_ratio", self.max_norm_ratio, "above 1, or 0 (0 is off)")
        for pattern, rate in self.part_learning_rates.items():
            require(_is_regular(pattern), "optim.part_learning_rates: the name", pattern, "a regular expression")
            place, rule = f"optim.part_learning_rates[{pattern!r}]", "above 0 (freeze with policy.frozen)"
            require(rate > 0, place, rate, rule)


def _is_regular(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
