"""How the cost of a step grows: python -m benchmarks.speed.growth [--quick]

Processor seconds of Unison's own step against the group's size and the tokens of drawings and replies
(`benchmarks.speed.step` without its other side), and of sampling and replaying denoising paths against their number
of steps.
A power law is fitted to each: an exponent of 1 is proportional. Prints the table and writes it between its markers in
docs/benchmarks.md (not with --quick, whose figures say little).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import transformers
import tyro

from benchmarks.pages import publish_lines
from benchmarks.speed import denoising, step
from benchmarks.speed.model import MEASURED, PUBLISHED
from benchmarks.speed.targets import QUICK
from unison.policies.janus.shape import JanusShape
from unison.types import Sampling

HEADER = "| cost of | against | seconds | exponent |\n|---|---|---|---|"


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """A small model, few tokens and steps, one repetition: does everything run?"""
    threads: int = 0
    """CPU threads; 0 takes PyTorch's choice."""
    repeats: int = 2
    """Repetitions of each point, of which the median counts."""
    groups: tuple[int, ...] = (4, 8, 16)
    """Sizes of the group."""
    sides: tuple[int, ...] = (12, 17, 24)
    """Drawings and pictures of side x side tokens."""
    replies: tuple[int, ...] = (32, 64, 128)
    """Longest replies."""
    steps: tuple[int, ...] = (5, 10, 20)
    """Denoising steps."""

    @property
    def shape(self) -> JanusShape:
        return QUICK if self.quick else MEASURED

    @property
    def base(self) -> step.Problem:
        """What stays where something else grows."""
        codes = 512 if self.quick else PUBLISHED.codes
        return step.Problem(self.sides[0], codes, self.groups[0], self.replies[0], 5.0, False, "float32")


@dataclass(frozen=True)
class Growth:
    """Seconds at growing sizes."""

    what: str
    against: str
    seconds: Mapping[int, float]

    @property
    def exponent(self) -> float:
        """Of the power law through the points, by least squares of logarithms."""
        return fit_exponent(self.seconds)

    def markdown(self) -> str:
        shown = ", ".join(f"{size}: {seconds:.3g}" for size, seconds in self.seconds.items())
        return f"| {self.what} | {self.against} | {shown} | **{self.exponent:.2f}** |"


def fit_exponent(seconds: Mapping[int, float]) -> float:
    """The slope of log seconds over log size."""
    x, y = [math.log(size) for size in seconds], [math.log(value) for value in seconds.values()]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def measure(options: Options) -> Iterator[Growth]:
    """The rows of the table, one after another."""
    if options.quick:
        options = replace(options, repeats=1, groups=(2, 4), sides=(2, 4), replies=(4, 8), steps=(2, 4))
    base = options.base
    tokens = f"{base.side**2} tokens, replies of {base.reply}"
    by_group = {group: replace(base, group=group) for group in options.groups}
    yield Growth(f"a step of CoRL, drawings of {tokens}", "group size", _steps(options, by_group))
    by_side = {side**2: replace(base, side=side) for side in options.sides}
    what = f"a step of CoRL, {base.group} drawings and replies of {base.reply} tokens"
    yield Growth(what, "tokens of a drawing", _steps(options, by_side))
    by_reply = {reply: replace(base, reply=reply) for reply in options.replies}
    what = f"a step of CoRL, {base.group} drawings of {base.side**2} tokens and replies"
    yield Growth(what, "tokens of a reply", _steps(options, by_reply))
    size, rows = denoising.MEASURED[1]
    seconds = {count: _denoise(size, rows, count, options) for count in options.steps}
    yield Growth(f"{rows} denoising paths, sampled and replayed, {size.describe()}", "denoising steps", seconds)


def _steps(options: Options, problems: Mapping[int, step.Problem]) -> dict[int, float]:
    """Seconds of one step of every problem."""
    seconds = {}
    for size, problem in problems.items():
        with TemporaryDirectory() as folder:
            step.write_checkpoint(problem, Path(folder), options.shape)
            steps = step.Steps(step.open_trainer(problem, Path(folder)), problem)
            seconds[size] = _seconds(steps.sides()["unison"], options.repeats)
    return seconds


def _denoise(size: denoising.SanaSize, rows: int, count: int, options: Options) -> float:
    """Seconds of sampling paths of so many steps and of scoring them, forward and backward."""

    def once() -> None:
        denoising.sides(size, rows, Sampling(steps=count))["together"]()

    return _seconds(once, options.repeats)


def _seconds(run: Callable[[], object], repeats: int) -> float:
    """The median of the processor's seconds, after one run for warmth."""
    run()
    spent = []
    for _ in range(repeats):
        gc.collect()
        start = time.process_time()
        run()
        spent.append(time.process_time() - start)
    return median(spent)


def main(options: Options) -> None:
    """Measures, prints, writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    model = f"Janus with a language model of width {MEASURED.width} and {MEASURED.layers} layers, random weights"
    lines = (growth.markdown() for growth in measure(options))
    how = f"processor seconds, median of {options.repeats} repetitions"
    publish_lines("benchmarks.speed.growth", HEADER, lines, how, model, written=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
