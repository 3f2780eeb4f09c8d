"""All benchmarks in one command: python -m benchmarks.speed.run [--quick]

Prints the table and writes it between the markers of docs/benchmarks.md (not with --quick, whose figures say little).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import transformers
import tyro

from benchmarks.pages import publish
from benchmarks.speed import memory, rollout, scoring
from benchmarks.speed.compare import Row, interleaved
from benchmarks.speed.model import MEASURED, PUBLISHED, Drawing, build_policy, picture


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """Drawings and pictures of 36 tokens and one repetition: does everything run?"""
    threads: int = 0
    """CPU threads of both sides; 0 takes PyTorch's choice."""
    repeats: int = 5
    """Repetitions of each side, in turns."""
    group: int = 8
    """Siblings, G."""
    guidance: float = 5.0
    """Guidance of drawings."""
    reply: int = 64
    """Tokens of a reply."""


def measure(options: Options) -> Iterator[Row]:
    """The rows of the table, one after another."""
    drawing = Drawing(side=6, codes=PUBLISHED.codes) if options.quick else PUBLISHED
    group, guidance, repeats = options.group, options.guidance, _repeats(options)

    for name, kind in (("float32", torch.float32), ("bfloat16 weights", torch.bfloat16)):
        policy = build_policy(drawing=drawing).to(kind)  # not autocast: `generate` fails under it on the CPU
        seconds = interleaved(rollout.sides(policy, group, guidance), repeats)
        what = f"sample {group} drawings of {drawing.tokens} tokens, guidance {guidance:g}, {name}"
        yield Row(what, seconds["unison"], seconds["transformers"], "`generate`", "s", "2")

    policy = build_policy(drawing=drawing)
    seconds = interleaved(scoring.sides(policy, picture(drawing), group, options.reply), repeats)
    what = f"score {group} replies of {options.reply} tokens to a picture of {drawing.tokens}, forward and backward"
    yield Row(what, seconds["shared"], seconds["separate"], "not shared", "s", "3")

    problem = memory.Problem(group * drawing.tokens, MEASURED.width, drawing.codes)
    runs = [[memory.measure(side, problem, torch.get_num_threads()) for side in memory.SIDES] for _ in range(repeats)]
    chunked, whole = ([m.megabytes for m in side] for side in zip(*runs, strict=True))
    what = f"peak memory of {problem.decisions:,} log-probabilities over {problem.codes:,} codes, forward and backward"
    yield Row(what, chunked, whole, "all at once", "MB", "3")


def _repeats(options: Options) -> int:
    return 1 if options.quick else options.repeats


def main(options: Options) -> None:
    """Measures, prints, writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    model = f"language model of width {MEASURED.width} and {MEASURED.layers} layers, {MEASURED.heads} heads"
    model += f", random weights, {PUBLISHED.codes:,} codes"
    publish("benchmarks.speed.run", measure(options), _repeats(options), model, written=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
