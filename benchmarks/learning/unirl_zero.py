"""UniRL-Zero's six scenarios on the tiny MetaQuery over seeds, and what its paper leaves to be checked, as tables.

    python -m benchmarks.learning.unirl_zero --seeds 0 1 2
    python -m benchmarks.learning.unirl_zero --tables scenarios --rows think    # one scenario

trains every row once a seed (going on with what an earlier call left unfinished) and writes docs/unirl_zero.md between
its markers. Figures are those of the runs' own evaluations before and after, on the same held-out items.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tyro

from benchmarks.learning import seeds
from benchmarks.learning.algorithms import line
from benchmarks.learning.training import folder, side_by_side, train
from benchmarks.pages import DOCS, write_section
from unison.evaluation.records import Evaluation, by_task

Table = Literal["scenarios", "jpeg", "cold-start", "lambdas", "grpo", "forgetting"]
Figures = dict[str, str]
"""Title of a figure, and the field of an evaluation's records."""

DRAWN: Figures = {"drawing": "drawing_correct"}
EDITED: Figures = {
    "edit exact": "drawing_correct",
    "edit, share of objects": "drawing_score",
    "comes back, share of objects": "reward/world_cycle",
}
THOUGHT: Figures = {"drawing": "drawing_correct", "thought's answer": "answer_correct", "format": "format_ok"}
REFLECTED: Figures = {
    "last drawing": "drawing_correct",
    "first drawing": "reward/world_first_strict",
    "verdict right": "reward/verdict_right",
    "improvement": "reward/improvement",
}
SIZE: Figures = {"kilobytes": "reward/jpeg_kilobytes"}
ANSWERED: Figures = {"answers": "answer_correct", "format": "format_ok"}
KEPT: Figures = {"drawing": "drawing_correct", "answers about pictures": "answer_correct"}


@dataclass(frozen=True)
class Row:
    """One line of a table: a recipe, what is said otherwise than in it, and what is told of it."""

    label: str
    recipe: str
    figures: Figures
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Names the folder of its runs; rows of different tables that are the same run share it."""
        said = "".join(f"_{option.removeprefix('--')}" for option in self.options)
        return self.recipe + "".join(c if c.isalnum() or c in "-_./" else "-" for c in said)


SCENARIOS = {
    "text": Row("text understanding", "tiny-text", ANSWERED),
    "reasoning": Row("multimodal reasoning", "tiny-reasoning", ANSWERED),
    "draw": Row("text to image", "tiny-draw", DRAWN),
    "edit": Row("cycle edit", "tiny-edit", EDITED),
    "think": Row("think, then draw", "tiny-think", THOUGHT),
    "reflect": Row("reflection", "tiny-reflect", REFLECTED),
}
JPEG = {
    "compressible": Row("compressible", "tiny-jpeg-compressible", SIZE),
    "incompressible": Row("incompressible", "tiny-jpeg-incompressible", SIZE),
}
SKIP = ("--skip-cold-start",)
COLD_START = {
    "think": Row("think, then draw: with", "tiny-think", THOUGHT),
    "think-without": Row("without", "tiny-think", THOUGHT, SKIP),
    "reflect": Row("reflection: with", "tiny-reflect", REFLECTED),
    "reflect-without": Row("without", "tiny-reflect", REFLECTED, SKIP),
}


def _weighed(first: int, cycle: int, clean: int) -> tuple[str, ...]:
    names = {"world-first": first, "world-cycle": cycle, "world-clean": clean}
    return tuple(f"--rewards.{name}={weight}" for name, weight in names.items())


LAMBDAS = {
    "4-1-1": Row("4 : 1 : 1 (the recipe)", "tiny-edit", EDITED),
    "1-1-1": Row("1 : 1 : 1", "tiny-edit", EDITED, _weighed(1, 1, 1)),
    "1-4-1": Row("1 : 4 : 1", "tiny-edit", EDITED, _weighed(1, 4, 1)),
    "1-0-0": Row("1 : 0 : 0", "tiny-edit", EDITED, _weighed(1, 0, 0)),
}
TWICE = ("--step.updates=2",)  # with one, ratios are 1 and no clip binds
GRPO = {
    "recipe": Row("the recipe: G 8, beta 0, 1 update a rollout", "tiny-draw", DRAWN),
    "g4": Row("G 4, twice the prompts", "tiny-draw", DRAWN, ("--scenario.group-size=4", "--step.items=24")),
    "g16": Row("G 16, half the prompts", "tiny-draw", DRAWN, ("--scenario.group-size=16", "--step.items=6")),
    "beta-low": Row("beta 4e-3", "tiny-draw", DRAWN, ("--objective.image-kl-beta=0.004",)),
    "beta-high": Row("beta 1", "tiny-draw", DRAWN, ("--objective.image-kl-beta=1",)),
    "two": Row("2 updates a rollout, clip 1e-4", "tiny-draw", DRAWN, TWICE),
    "two-tight": Row("2 updates a rollout, clip 1e-6", "tiny-draw", DRAWN, (*TWICE, "--objective.image-clip=1e-6")),
    "two-wide": Row("2 updates a rollout, clip 1", "tiny-draw", DRAWN, (*TWICE, "--objective.image-clip=1")),
}
JOINT = ("--policy.frozen", r"\.visual\.", r"queries\.edit", "source_")
LANGUAGE_MODEL = "^qwen"
FAST = (*JOINT, "--optim.part-learning-rates", LANGUAGE_MODEL, "1e-3")
FORGETTING = {
    "frozen": Row("language model frozen", "tiny-draw", KEPT),
    "naive": Row("trained at the same rate", "tiny-draw", KEPT, JOINT),
    "low-rate": Row(
        "trained at half the rate",
        "tiny-draw",
        KEPT,
        (*JOINT, "--optim.part-learning-rates", LANGUAGE_MODEL, "5e-5"),
    ),
    "lora": Row(
        "LoRA of rank 8 on it",
        "tiny-draw",
        KEPT,
        (*JOINT, "--policy.lora-rank=8", "--policy.lora-beside", "^bridge", "^transformer"),
    ),
    "replay": Row("12 questions replayed a step", "tiny-draw", KEPT, (*JOINT, "--retention.replay-items=12")),
    "kl": Row("KL of drawings, beta 1", "tiny-draw", KEPT, (*JOINT, "--objective.image-kl-beta=1")),
    "fast": Row("trained at ten times the rate", "tiny-draw", KEPT, FAST),
    "fast-replay": Row("so, 12 questions replayed a step", "tiny-draw", KEPT, (*FAST, "--retention.replay-items=12")),
    "fast-kl": Row("so, KL of drawings, beta 1", "tiny-draw", KEPT, (*FAST, "--objective.image-kl-beta=1")),
}
TABLES: dict[Table, dict[str, Row]] = {
    "scenarios": SCENARIOS,
    "jpeg": JPEG,
    "cold-start": COLD_START,
    "lambdas": LAMBDAS,
    "grpo": GRPO,
    "forgetting": FORGETTING,
}


@dataclass(frozen=True)
class Args:
    """Train every row over seeds, write the tables."""

    tables: tuple[Table, ...] = get_args(Table)
    """Which tables."""
    rows: tuple[str, ...] = ()
    """Which of their rows; all if none is named. With some the page is left alone."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of data order and samples."""
    out: Path = Path("runs/unirl-zero")
    """Folder of the runs."""
    workers: int = 2
    """Runs side by side; the CPU cores are shared out among them."""
    options: tuple[str, ...] = ()
    """Further options of `unison train` for every run, such as --optim.steps=4; the page is then left alone."""

    def chosen(self, table: Table) -> list[Row]:
        return [row for name, row in TABLES[table].items() if not self.rows or name in self.rows]


# -- what came of a row ----------------------------------------------------------------------------------------------


def stages(run: Path) -> list[Path]:
    """The run folders of a run or of a chain, in order."""
    chain = run / "chain.json"
    return [run / Path(stage["out"]).name for stage in json.loads(chain.read_text())] if chain.is_file() else [run]


def ends(run: Path) -> tuple[Evaluation, Evaluation]:
    """The full evaluations before and after the last stage, whose items a cold start's are not always."""
    return seeds.ends(stages(run)[-1])


def minutes(run: Path) -> float:
    """Time of all training steps, without evaluations."""
    lines = [line for stage in stages(run) for line in (stage / "timings.jsonl").read_text().splitlines()]
    return sum(json.loads(line)["seconds"] for line in lines) / 60


def lines_of(row: Row, runs: Sequence[Path]) -> list[str]:
    """A line for every figure of a row: before and after as means over seeds, and the paired difference with its
    interval over items and the least and most of the seeds."""
    pairs = [ends(run) for run in runs]
    time = f"{np.mean([minutes(run) for run in runs]):.1f}"
    lines = []
    for title, field in row.figures.items():
        before, after = ([by_task(side.records, field) for side in sides] for sides in zip(*pairs, strict=True))
        told = line(f"{'' if lines else row.label} | {title}", before, after)
        lines.append(f"{told} {'' if lines else time} |")
    return lines


def compared(rows: Sequence[Row], args: Args) -> str:
    """A table of rows, each with its figures below one another."""
    heads = ["", "figure", "before", "after", "difference [95% interval]; over seeds", "minutes"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in rows:
        lines += lines_of(row, [folder(row.name, seed, args.out) for seed in args.seeds])
    return "\n".join(lines)


PER_MEAN = 10  # steps


def sizes(rows: Sequence[Row], args: Args) -> str:
    """The table of file sizes, with their means over every ten training steps and whether these only rise or fall."""
    lines = [
        compared(rows, args),
        "",
        "| | seed | means of 10 training steps each, kilobytes | change | monotone |",
        "|---" * 5 + "|",
    ]
    for row in rows:
        for seed in args.seeds:
            means = means_of(folder(row.name, seed, args.out) / "metrics.jsonl", "reward/jpeg_kilobytes/mean")
            steps = [b - a for a, b in pairwise(means)]
            same = "yes" if all(s > 0 for s in steps) or all(s < 0 for s in steps) else "no"
            told = ", ".join(f"{mean:.3f}" for mean in means)
            lines.append(f"| {row.label} | {seed} | {told} | {means[-1] / means[0] - 1:+.0%} | {same} |")
    return "\n".join(lines)


def means_of(metrics: Path, name: str) -> list[float]:
    """The means of a metric over every ten steps."""
    values = [json.loads(line)[name] for line in metrics.read_text().splitlines()]
    return [float(np.mean(values[i : i + PER_MEAN])) for i in range(0, len(values) - PER_MEAN + 1, PER_MEAN)]


WRITE: dict[Table, Callable[[Sequence[Row], Args], str]] = {"jpeg": sizes}
"""How a table is written; the others by `compared`."""


def main(args: Args) -> None:
    """Trains, then writes."""
    rows = {row.name: row for table in args.tables for row in args.chosen(table)}
    jobs = [
        (train, row.name, seed, args.out, (*row.options, *args.options), (f"unirl-zero/{row.recipe}",))
        for seed in args.seeds
        for row in rows.values()
    ]
    side_by_side(jobs, args.workers)
    for table in args.tables:
        if chosen := args.chosen(table):
            written = WRITE.get(table, compared)(chosen, args)
            print(f"{table}\n{written}\n", flush=True)
            if not args.options and not args.rows:
                write_section(DOCS / "unirl_zero.md", table, written)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
