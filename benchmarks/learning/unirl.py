"""UniRL's ways of self-improvement at tiny scale, on both kinds of model, over seeds, as a table.

    python -m benchmarks.learning.unirl --seeds 0 1 2

trains every row once a seed (going on with what an earlier call left unfinished) and writes docs/unirl.md between its
markers. All rows of a model make as many drawings in training, and figures are those of the runs' own evaluations of
the weights they end with, on the same held-out items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import tyro

from benchmarks.learning.seeds import ends
from benchmarks.learning.training import averaged, folder, over_seeds, side_by_side, spread, train
from benchmarks.pages import DOCS, write_section
from unison.evaluation.records import CONDITIONALS, FIGURES, Evaluation, by_task, pairs_by_task
from unison.evaluation.stats import Estimate, conditional, conditional_difference, task_difference

Model = Literal["tiny-janus", "tiny-showo"]
METHODS = {"SFT, end to end": "sft", "SFT, in two parts": "sft-split", "GRPO": "grpo"}
MEANS = {"drawing": "drawing", "answers": "answer", "drift": "drift"}
SHARES = {"answer right, given drawing right": "answer_given_drawing", "the reverse": "drawing_given_answer"}


@dataclass(frozen=True)
class Args:
    """Train every row over seeds, write the tables."""

    models: tuple[Model, ...] = get_args(Model)
    """Which models."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of data order and samples."""
    out: Path = Path("runs/unirl")
    """Folder of the runs."""
    workers: int = 2
    """Runs side by side; the CPU cores are shared out among them."""
    options: tuple[str, ...] = ()
    """Further options of `unison train` for every run, such as --optim.steps=4; the page is then left alone."""


def recipe(model: Model, method: str) -> str:
    return f"unirl/{model}-{method}"


def gap(runs: Sequence[Evaluation]) -> list[dict[str, list[tuple[bool, bool]]]]:
    """Condition and event of both conditional shares of every run; 1 minus the mean of their shares is the gap."""
    return [pairs_by_task(run.records, name) for name in CONDITIONALS for run in runs]


def row(label: str, runs: Sequence[Evaluation]) -> str:
    """A line of the table: the mean over seeds with its interval over items, the least and the most of the seeds."""
    cells = []
    for name in MEANS.values():
        mean, seeds = over_seeds([by_task(run.records, FIGURES[name]) for run in runs])
        cells.append(f"{mean}{spread(seeds)}")
    for name in SHARES.values():
        pairs = [pairs_by_task(run.records, name) for run in runs]
        cells.append(f"{conditional(*pairs)}{spread([conditional(one).value for one in pairs])}")
    mean = conditional(*gap(runs))
    cells.append(str(Estimate(1 - mean.value, 1 - mean.high, 1 - mean.low)))
    return f"| {label} | " + " | ".join(cells) + " |"


def gains(label: str, before: Evaluation, runs: Sequence[Evaluation]) -> str:
    """A line of the table of differences to the model before training, paired by item."""
    cells = []
    for name in ("drawing", "answer"):
        first = by_task(before.records, FIGURES[name])
        rest = averaged([by_task(run.records, FIGURES[name]) for run in runs])
        cells.append(signed(task_difference(first, rest)))
    change = conditional_difference(gap([before]), gap(runs))
    cells.append(signed(Estimate(-change.value, -change.high, -change.low)))
    return f"| {label} | " + " | ".join(cells) + " |"


def signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def table(before: Evaluation, after: dict[str, list[Evaluation]]) -> str:
    """Both tables of a model: figures of every method, and their differences to the model before training."""
    heads = ["", *MEANS, *SHARES, "gap"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", row("before", [before])]
    lines += [row(label, runs) for label, runs in after.items()]
    changes = ["difference to before", "drawing", "answers", "gap"]
    lines += ["", "| " + " | ".join(changes) + " |", "|---" * len(changes) + "|"]
    return "\n".join([*lines, *(gains(label, before, runs) for label, runs in after.items())])


def main(args: Args) -> None:
    """Trains, then writes."""
    names = [recipe(model, method) for model in args.models for method in METHODS.values()]
    side_by_side([(train, name, seed, args.out, args.options) for seed in args.seeds for name in names], args.workers)
    for model in args.models:
        runs = {
            label: [ends(folder(recipe(model, method), seed, args.out)) for seed in args.seeds]
            for label, method in METHODS.items()
        }
        before = next(iter(runs.values()))[0][0]
        written = table(before, {label: [after for _, after in pairs] for label, pairs in runs.items()})
        print(f"{model}\n{written}\n", flush=True)
        if not args.options:
            write_section(DOCS / "unirl.md", model, written)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
