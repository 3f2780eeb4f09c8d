"""What is measured on the way, and what a model is not to forget."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unison.config.data import DataConfig, Suffix, world_kind
from unison.config.fields import CountOrNone, Section
from unison.types import Count


@dataclass(frozen=True)
class EvalConfig(Section, place="evaluation"):
    """Evaluation before, during and after training."""

    items: Count = 600
    """Held-out items."""
    every: CountOrNone = 0
    """Steps between evaluations; 0 evaluates before and after only."""
    during_items: Count = 120
    """Held-out items of an evaluation during training."""
    batch_size: Count = 120
    """Items per rollout of an evaluation."""
    own_drawings: bool = False
    """Also ask each item's question about the drawing: the imbalance of both sides, for one more reply an item."""
    rewards: tuple[str, ...] = ()
    """Rewards that measure held-out drawings, and answers about them, without training on them; first that which judges
    drawings where the world's judge cannot."""
    noiseless: bool = False
    """Denoise drawings without the noise that training explores with."""


@dataclass(frozen=True)
class RetentionConfig(Section, place="retention"):
    """What a model can do before training and is to keep: questions that it answers, figures that are not to fall."""

    source: str = "world"
    """Where the questions come from, as `data.train` says it; these items' prompts are not drawn. Those that are
    replayed are of its training split, those that are probed of its held-out one."""
    question_suffix: Suffix = ""
    """Text appended to these questions, as `data.question_suffix` says it."""
    probe_items: CountOrNone = 0
    """Held-out questions that every evaluation asks besides; 0 asks none."""
    replay_items: CountOrNone = 0
    """Training questions that every step asks besides, of which each group is trained in the step's own update, by
    whether answers are right; 0 replays none."""
    watch: tuple[str, ...] = ()
    """Figures of evaluations that are not to fall, such as probe, answer or reward/world_clean: one is fallen where the
    whole 95% interval of its paired difference from the first evaluation lies below -0.05."""
    on_fall: Literal["report", "stop", "raise_kl"] = "report"
    """What is done then: a line in health.jsonl, also the end of the run, or also twice the coefficient of the KL."""

    def check(self) -> None:
        world_kind(self.source, "retention.source")

    @property
    def data(self) -> DataConfig:
        """The questions as a data set."""
        return DataConfig(self.source, self.source, question_suffix=self.question_suffix)
