"""Riddles of the embedded world, drawn after a thought and without one: what thinking adds.

The thought ends in an answer, which says what is meant; drawings are judged by that meaning, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from unison.config import EvalConfig
from unison.data.world import WorldItems
from unison.evaluation.held_out import evaluate_batch
from unison.evaluation.records import Evaluation, Record, means
from unison.evaluation.suites.base import Job, Run
from unison.evaluation.suites.world import SAMPLED, BothOptions, evaluate_rows

FIGURES = {
    "drawing": "drawing_correct",
    "drawing_partial": "drawing_score",
    "drawing_unthought": "unthought_correct",
    "gain": "gain",
    "answer": "answer_correct",
    "format": "format_ok",
}
"""Figures, and the record's field that each one averages; `gain` is the drawing after a thought less that without."""


@dataclass(frozen=True, kw_only=True)
class Options(BothOptions):
    """How riddles are thought about and drawn."""

    items: int = 300
    max_tokens: int = 64


def prepare(options: Options, job: Job) -> Callable[[], Evaluation | None]:
    """What evaluates.

    Raises:
        ValueError: no such checkpoint, or bad numbers.
    """
    options.check()
    job.check()
    return Think(options, job, WorldItems("eval", "open_ended", "", 0, options.items, kind="riddles"))


@dataclass(frozen=True)
class Think(Run):
    """Riddles drawn both ways; the pictures of the first way are kept."""

    name: ClassVar = "think"

    options: Options

    def make(self, keys: Sequence[int]) -> list[Record]:
        items, config = [self.items[row] for row in keys], EvalConfig(noiseless=True)
        thought = evaluate_rows(self, keys, self.options.scenario("think_then_draw"), config)
        plain = evaluate_batch(self.job.policy, items, self.options.scenario("t2i"), config, None, 0)
        return [
            one | {"unthought_correct": (bare := other["drawing_correct"]), "gain": one["drawing_correct"] - bare}
            for one, other in zip(thought, plain, strict=True)
        ]

    def result(self, records: list[Record]) -> Evaluation:
        return self.told(records, means(records, FIGURES), FIGURES)

    def protocol(self) -> dict[str, Any]:
        return self.job.protocol() | self.options.told("items", "guidance", "rounds", "steps", "max_tokens") | SAMPLED
