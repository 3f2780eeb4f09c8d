"""Riddles of the embedded world, drawn after a thought and without one: what thinking adds.

The thought ends in an answer, which says what is meant; drawings are judged by that meaning, exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unison.config import EvalConfig, ScenarioConfig, check_sampling
from unison.data import Items
from unison.data.world import WorldItems
from unison.evaluation.held_out import by_task, evaluate_batch
from unison.evaluation.suites.batches import finish_rows
from unison.evaluation.suites.common import Cuts, Job, Record, Result, cuts
from unison.evaluation.suites.ledger import Ledger
from unison.evaluation.suites.world import SAMPLED, evaluate_rows
from unison.types import Sampling

NAME = "think"
FIGURES = {
    "drawing": "drawing_correct",
    "drawing_partial": "drawing_score",
    "drawing_unthought": "unthought_correct",
    "gain": "gain",
    "answer": "answer_correct",
    "format": "format_ok",
}
"""Figures, and the record's field that each one averages; `gain` is the drawing after a thought less that without."""


@dataclass(frozen=True)
class Options:
    """How riddles are thought about and drawn."""

    items: int = 300
    """Held-out riddles."""
    guidance: float = 1.75
    """Guidance scale of drawings."""
    rounds: int = 18
    """Rounds of masked decoding, in models that draw by it."""
    steps: int = 10
    """Denoising steps without noise, in models that draw by flow matching."""
    max_tokens: int = 64
    """Longest thought."""
    batch_size: int = 120
    """Riddles drawn at a time."""


def prepare(options: Options, job: Job) -> Callable[[], Result | None]:
    """What evaluates.

    Raises:
        ValueError: no such checkpoint, or bad numbers.
    """
    check_sampling(_image(options))
    for name in ("items", "steps", "max_tokens", "batch_size"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} = {getattr(options, name)}: must be at least 1")
    job.check()
    items = WorldItems("eval", "open_ended", "", 0, options.items, kind="riddles")
    return _Run(options, job, items)


def _image(options: Options) -> Sampling:
    return Sampling(guidance=options.guidance, rounds=options.rounds, steps=options.steps)


@dataclass(frozen=True)
class _Run:
    """One evaluation, ready to be run or gone on with."""

    options: Options
    job: Job
    items: Items

    def __call__(self) -> Result | None:
        ledger = Ledger(self.job.file(NAME), self.protocol(), self.job)
        rows = range(self.options.items)
        records = finish_rows(rows, self._make, self.options.batch_size, ledger, self.job, "riddles")
        if records is None:
            return None
        return Result(NAME, ledger.protocol, figures(records), records, fields=FIGURES)

    def _make(self, rows: Sequence[int]) -> list[Record]:
        """Riddles drawn both ways; the pictures of the first are kept."""
        items, config = [self.items[row] for row in rows], EvalConfig(noiseless=True)
        thought = evaluate_rows(self.job, NAME, rows, items, self._scenario("think_then_draw"), config)
        plain = evaluate_batch(self.job.policy, items, self._scenario("t2i"), config, None, 0)
        return [
            one | {"unthought_correct": (bare := other["drawing_correct"]), "gain": one["drawing_correct"] - bare}
            for one, other in zip(thought, plain, strict=True)
        ]

    def _scenario(self, name: str) -> ScenarioConfig:
        return ScenarioConfig(name, text=Sampling(max_tokens=self.options.max_tokens), image=_image(self.options))

    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on."""
        told = {name: value for name, value in dataclasses.asdict(self.options).items() if name != "batch_size"}
        return self.job.protocol() | told | SAMPLED


def figures(records: Sequence[Record]) -> dict[str, Cuts]:
    """Every figure over all tasks and in each."""
    return {name: cuts(by_task(records, field)) for name, field in FIGURES.items()}
