"""The ratios that Unison is held to, in one run: python -m benchmarks.speed.targets [--quick]

A Janus of some 40 million parameters at the published token pattern: 576 tokens of 16,384 codes a drawing, a picture
read as 576 embeddings, groups of 8. Prints the table and writes it between its markers in docs/benchmarks.md (not with
--quick, whose figures say little).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import torch
import transformers
import tyro
from torch import nn

from benchmarks.pages import publish
from benchmarks.speed import denoising, replies, rollout, scoring, step
from benchmarks.speed.compare import Row, interleaved
from benchmarks.speed.model import MEASURED, PUBLISHED, Drawing, build_policy, picture
from unison.policies.janus.policy import Janus
from unison.policies.janus.shape import JanusShape
from unison.types import Context

STEPS: tuple[tuple[Literal["float32", "bfloat16"], bool], ...] = (("float32", False), ("bfloat16", True))
"""Types of the steps that are measured, and whether the conditional branch alone is scored."""
QUICK = JanusShape(64, 2, 2, 96, 512, 32, 1, 2, 32)


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """A small model, drawings of 16 tokens and one repetition: does everything run?"""
    threads: int = 0
    """CPU threads of both sides; 0 takes PyTorch's choice."""
    repeats: int = 2
    """Repetitions of each side, in turns."""
    cpu_time: bool = False
    """Count the seconds that the process computes, not those that pass: for a machine that others keep busy."""
    group: int = 8
    """Siblings, G."""
    guidance: float = 5.0
    """Guidance of drawings."""
    reply: int = 128
    """Tokens of a reply, at most."""
    matrix: int = 2048
    """Side of the matrices whose product says what the machine can do."""

    @property
    def clock(self) -> Callable[[], float]:
        return time.process_time if self.cpu_time else time.perf_counter

    @property
    def shape(self) -> JanusShape:
        return QUICK if self.quick else MEASURED

    def problem(self, dtype: Literal["float32", "bfloat16"], conditional: bool) -> step.Problem:
        side, codes = (4, 512) if self.quick else (PUBLISHED.side, PUBLISHED.codes)
        return step.Problem(side, codes, self.group, self.reply, self.guidance, conditional, dtype)


def measure(options: Options) -> Iterator[Row]:
    """The rows of the table, one after another."""
    if options.quick:
        options = replace(options, repeats=1, group=2, reply=8, matrix=256)
    yield from _sampling(options)
    yield _replies(options)
    yield _answers(options)
    with TemporaryDirectory() as folder:
        step.write_checkpoint(options.problem("float32", False), Path(folder), options.shape)
        yield from _steps(options, Path(folder))
    yield _products(options)
    yield from _denoising(options)


def _sampling(options: Options) -> Iterator[Row]:
    drawing = options.problem("float32", False).drawing
    for kind in (torch.float32, torch.bfloat16):
        policy = build_policy(options.shape, drawing).to(kind)
        seconds = interleaved(rollout.sides(policy, options.group, options.guidance), options.repeats, options.clock)
        what = f"sample {options.group} drawings of {drawing.tokens} tokens, guided, {_name(kind)}"
        yield Row(what, seconds["unison"], seconds["transformers"], "`generate`", "s", "2.5")


def _replies(options: Options) -> Row:
    policy = build_policy(options.shape, options.problem("float32", False).drawing)
    width, longest = 2 * options.group, 2 * options.reply
    sides = replies.sides(policy, 4 * width, width, longest)
    seconds = interleaved(sides, options.repeats, options.clock)
    what = f"write {4 * width} replies of 1 to {longest} tokens, {width} at a time"
    return Row(what, seconds["refilled"], seconds["batches"], "batch after batch", "s", "")


def _answers(options: Options) -> Row:
    drawing = options.problem("float32", False).drawing
    policy = build_policy(options.shape, drawing)
    sides = scoring.sides(policy, picture(drawing), options.group, options.reply)
    seconds = interleaved(sides, options.repeats, options.clock)
    what = f"score {options.group} replies of {options.reply} tokens to a picture, forward and backward"
    return Row(what, seconds["shared"], seconds["separate"], "not shared", "s", "3")


def _steps(options: Options, folder: Path) -> Iterator[Row]:
    """A whole step in float32 with guided scoring, and in bfloat16 with the CoRL authors' scoring."""
    for dtype, conditional in STEPS[: 1 if options.quick else None]:
        problem = options.problem(dtype, conditional)
        steps = step.Steps(step.open_trainer(problem, folder), problem)
        seconds = interleaved(steps.sides(), options.repeats, options.clock)
        how = f"{dtype}, {'conditional' if conditional else 'guided'} scoring"
        what = f"a step of CoRL on one item: {options.group} drawings, {options.group} replies, {how}"
        yield Row(what, seconds["unison"], seconds["plain"], "plain", "s", "3")
        threads = torch.get_num_threads()
        peaks = {side: [step.measure_memory(side, problem, threads, folder)] for side in step.SIDES}
        yield Row(f"peak memory of this step, {how}", peaks["unison"], peaks["plain"], "plain", "MB", "2")


def _denoising(options: Options) -> Iterator[Row]:
    for size, rows in denoising.MEASURED[: 1 if options.quick else None]:
        sides = denoising.sides(size, rows, denoising.SAMPLING)
        seconds = interleaved({k: sides[k] for k in ("together", "step by step")}, options.repeats, options.clock)
        what = f"score {denoising.SAMPLING.steps} steps of {rows} denoising paths, {size.describe()}"
        yield Row(what, seconds["together"], seconds["step by step"], "step by step", "s", "2")


def _products(options: Options) -> Row:
    """What scoring achieves of the machine: seconds a TFLOP of scoring and of one large product."""
    drawing = options.problem("float32", False).drawing
    policy = build_policy(options.shape, drawing)
    score = scoring.sides(policy, picture(drawing), options.group, options.reply)["shared"]
    matrix = torch.randn(options.matrix, options.matrix)
    seconds = interleaved(
        {"scoring": score, "product": lambda: [matrix @ matrix for _ in range(10)]}, options.repeats, options.clock
    )
    done = {"scoring": _operations(policy, drawing, options), "product": 10 * 2 * options.matrix**3}
    spent = {name: [s * 1e12 / done[name] for s in values] for name, values in seconds.items()}
    what = f"a TFLOP of this scoring against one of {options.matrix} x {options.matrix} products"
    return Row(what, spent["scoring"], spent["product"], "product", "s", "0.5")


def _operations(policy: Janus, drawing: Drawing, options: Options) -> float:
    """Floating-point operations of the products with weights, forward and backward, that scoring replies needs: those
    of attention, of the vision encoder and of anything computed twice do not count."""
    context = Context((picture(drawing), scoring.QUESTION))
    prefix = sum(map(policy._size, policy._pieces(context, "text")))
    linears = [m for m in policy.network.model.language_model.modules() if isinstance(m, nn.Linear)]
    body = sum(m.weight.numel() for m in linears) * (prefix + options.group * (options.reply - 1))
    return 6.0 * (body + policy.network.lm_head.weight.numel() * options.group * options.reply)


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")


def main(options: Options) -> None:
    """Measures, prints, writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    model = f"Janus with a language model of width {MEASURED.width} and {MEASURED.layers} layers, 41 million parameters"
    model += f", random weights, {PUBLISHED.codes:,} codes; SanaTransformer2DModel for the denoising rows"
    publish("benchmarks.speed.targets", measure(options), options.repeats, model, written=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
