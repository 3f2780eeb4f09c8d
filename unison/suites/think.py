"""Riddles of the embedded world, drawn after a thought and without one: what thinking adds, in one process.

The thought ends in an answer, which says what is meant; drawings are judged by that meaning, exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from unison.config import EvalConfig, ScenarioConfig
from unison.config_checks import check_sampling
from unison.data import WorldItems
from unison.evaluate import EVAL_SEED, Pictures, by_task, evaluate
from unison.suites.common import Cuts, Job, Record, Result, cuts
from unison.types import Item, Sampling

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
    return partial(_run, options, job, [items[i] for i in range(options.items)])


def _image(options: Options) -> Sampling:
    return Sampling(guidance=options.guidance, rounds=options.rounds, steps=options.steps)


def _run(options: Options, job: Job, items: Sequence[Item]) -> Result | None:
    if not job.processes.is_main_process:
        return None
    config = EvalConfig(items=len(items), batch_size=options.batch_size, noiseless=True)
    folder = job.pictures(NAME)
    pictures = Pictures(folder.parent, folder.name)

    def draw(scenario: str, kept: Pictures | None) -> list[Record]:
        how = ScenarioConfig(scenario, text=Sampling(max_tokens=options.max_tokens), image=_image(options))
        return evaluate(job.policy, items, how, config, pictures=kept).records

    thought, plain = draw("think_then_draw", pictures), draw("t2i", None)
    records = [
        one | {"unthought_correct": (bare := other["drawing_correct"]), "gain": one["drawing_correct"] - bare}
        for one, other in zip(thought, plain, strict=True)
    ]
    return Result(NAME, _protocol(options, job), figures(records), records, fields=FIGURES)


def figures(records: Sequence[Record]) -> dict[str, Cuts]:
    """Every figure over all tasks and in each."""
    return {name: cuts(by_task(records, field)) for name, field in FIGURES.items()}


def _protocol(options: Options, job: Job) -> dict[str, Any]:
    told = {name: value for name, value in dataclasses.asdict(options).items() if name != "batch_size"}
    sampled = {"samples_an_item": 1, "temperature": 1.0, "seed": EVAL_SEED}
    return job.protocol() | told | sampled
