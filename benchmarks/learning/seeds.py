"""A recipe over several seeds, before and after, as a table.

    python -m benchmarks.learning.seeds corl/tiny-unified --seeds 0 1 2

runs the recipe once a seed (going on with what an earlier call left unfinished) and writes docs/results.md between its
markers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from benchmarks.learning.training import train
from benchmarks.pages import DOCS, write_section
from unison.evaluation.records import FIGURES, Evaluation, by_task
from unison.evaluation.stats import task_difference, task_mean
from unison.reports.run_folder import before_and_after, read_evaluations


@dataclass(frozen=True)
class Args:
    """Run a recipe over seeds and write the table."""

    recipe: tyro.conf.Positional[str]
    """Recipe name."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of data order and samples."""
    out: Path = Path("runs/seeds")
    """Folder of the runs."""


def ends(run: Path) -> tuple[Evaluation, Evaluation]:
    """The full evaluations before and after training."""
    before, after = before_and_after(read_evaluations(run / "eval", []))
    return before, after


def table(runs: list[Path], seeds: tuple[int, ...]) -> str:
    """Rows of seeds, columns of figures: before -> after, difference and its interval."""
    names = ("drawing", "answer", "format")
    lines = [
        "| seed | "
        + " | ".join(f"{name} before -> after | difference [95% interval]" for name in names)
        + " | minutes |",
        "|---" * (2 * len(names) + 2) + "|",
    ]
    differences: dict[str, list[float]] = {name: [] for name in names}
    for seed, run in zip(seeds, runs, strict=True):
        before, after = ends(run)
        cells = []
        for name in names:
            sides = [by_task(e.records, FIGURES[name]) for e in (before, after)]
            gain = task_difference(*sides)
            differences[name].append(gain.value)
            cells += [f"{task_mean(sides[0]).value:.3f} -> {task_mean(sides[1]).value:.3f}", str(gain)]
        seconds = [json.loads(line)["seconds"] for line in (run / "timings.jsonl").read_text().splitlines()]
        lines.append(f"| {seed} | " + " | ".join(cells) + f" | {sum(seconds) / 60:.1f} |")
    means = [f"{np.mean(values):+.3f} (least {min(values):+.3f})" for values in differences.values()]
    return "\n".join([*lines, "| mean | " + " | ".join(f" | {mean}" for mean in means) + " | |"])


def main() -> None:
    args = tyro.cli(Args)
    runs = [train(args.recipe, seed, args.out) for seed in args.seeds]
    written = table(runs, args.seeds)
    print(written)
    write_section(DOCS / "results.md", args.recipe, written)


if __name__ == "__main__":
    main()
