"""CoRL's comparisons at tiny scale, over seeds, as tables: paradigms of training, and rewards for drawings.

    python -m benchmarks.learning.paradigms --seeds 0 1 2

trains every row once a seed (going on with what an earlier call left unfinished), scores it on held-out items and
writes docs/paradigms.md between its markers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import tyro

from benchmarks.learning.training import folder, over_seeds, side_by_side, spread, train
from benchmarks.pages import DOCS, write_section
from unison.config import EvalConfig, PolicyConfig
from unison.data import open_items
from unison.evaluation.held_out import evaluate
from unison.evaluation.records import Evaluation, by_task
from unison.policies import load_policy, locate
from unison.policies.merge import merge
from unison.recipes.corl import tiny_unified

BASE = "assets/tiny-janus"
FINAL = "checkpoints/final"
Table = Literal["paradigms", "rewards"]
Task = Literal["drawing", "multiple choice", "open ended", "mixed"]
TASKS: tuple[Task, ...] = get_args(Task)
Columns: TypeAlias = dict[str, dict[str, list[float]]]
"""Values by task type, for every column of a table."""


@dataclass(frozen=True)
class Row:
    """A line of a table: a recipe, and the checkpoint in its folder that does each task."""

    recipe: str
    checkpoints: dict[Task, str]


def one(recipe: str, checkpoint: str = FINAL) -> Row:
    """A row with one model for everything."""
    return Row(recipe, dict.fromkeys(TASKS, checkpoint))


BASELINE = one("")
TABLES: dict[Table, dict[str, Row]] = {
    "paradigms": {
        "cold-start SFT": one("corl/tiny-cold-start"),
        "drawing alone": one("corl/tiny-separate", f"draw/{FINAL}"),
        "answering alone": one("corl/tiny-separate", f"answer/{FINAL}"),
        "separate": Row(
            "corl/tiny-separate",
            {
                "drawing": f"draw/{FINAL}",
                "multiple choice": f"answer/{FINAL}",
                "open ended": f"answer/{FINAL}",
                "mixed": f"answer/{FINAL}",
            },
        ),
        "separate, merged": one("corl/tiny-separate", "merged"),
        "cycle": one("corl/tiny-cycle", f"8-answer/{FINAL}"),
        "unified": one("corl/tiny", f"unified/{FINAL}"),
        "unified, refined": Row(
            "corl/tiny",
            {
                "drawing": f"draw/{FINAL}",
                "multiple choice": f"multiple-choice/{FINAL}",
                "open ended": f"open-ended/{FINAL}",
                "mixed": "merged",
            },
        ),
    },
    "rewards": {
        "judge": one("corl/tiny", f"unified/{FINAL}"),
        "cycle": one("corl/tiny-rewards-cycle"),
        "matching": one("corl/tiny-rewards-matching"),
        "cycle and matching": one("corl/tiny-rewards-both"),
    },
}
MERGED = {  # recipe: what is merged there, and the weights that both started from
    "corl/tiny-separate": (("draw", "answer"), None),
    "corl/tiny": (("multiple-choice", "open-ended"), "unified"),
}


@dataclass(frozen=True)
class Args:
    """Train every row over seeds, score all, write the tables."""

    tables: tuple[Table, ...] = get_args(Table)
    """Which tables."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of data order and samples."""
    items: int = 600
    """Held-out items of each suite."""
    out: Path = Path("runs/paradigms")
    """Folder of the runs."""
    workers: int = 2
    """Runs side by side; the CPU cores are shared out among them."""
    options: tuple[str, ...] = ()
    """Further options of `unison train` for every run, such as --optim.steps=4; the page is then left alone."""


# -- training --------------------------------------------------------------------------------------------------------

LEAN = ("--evaluation.every=0", "--evaluation.items=12")  # the suites here stand in for each run's own evaluations


def train_and_merge(recipe: str, seed: int, args: Args) -> None:
    """Trains a recipe, or goes on with it; then merges what is to be merged."""
    out = train(recipe, seed, args.out, [*LEAN, *args.options])
    models, start = MERGED.get(recipe, ((), None))
    if models and not (out / "merged").exists():
        base = out / start / FINAL if start else locate(BASE)
        merge([str(out / model / FINAL) for model in models], out / "merged", "gaussian", base=str(base))


# -- scoring ---------------------------------------------------------------------------------------------------------


def score(checkpoint: str, kept: Path, args: Args) -> dict[str, Evaluation]:
    """Evaluations of a checkpoint on both forms of question, the drawings with the first; kept for later calls."""
    found = {}
    for kind in ("multiple_choice", "open_ended"):
        path = kept / kind / "000000.json"
        if not path.exists():
            _evaluate(checkpoint, kind, args.items).save(path.parent)
        found[kind] = Evaluation.load(path)
    return found


def _evaluate(checkpoint: str, kind: Literal["multiple_choice", "open_ended"], count: int) -> Evaluation:
    run = tiny_unified()
    items = open_items("world", "eval", dataclasses.replace(run.data, questions=kind), 0, count)
    chosen = [items[i] for i in range(count)]
    if kind == "open_ended":
        chosen = [dataclasses.replace(item, prompt=None) for item in chosen]  # drawn with the other form already
    return evaluate(load_policy(PolicyConfig(checkpoint)), chosen, run.scenario, EvalConfig(items=count))


def scored(row: Row, seed: int, args: Args) -> dict[Task, dict[str, Evaluation]]:
    """The evaluations of the model that does each task."""
    found: dict[Task, dict[str, Evaluation]] = {}
    for task, path in row.checkpoints.items():
        run = folder(row.recipe, seed, args.out)
        checkpoint, name = (str(run / path), run.name) if row.recipe else (BASE, "baseline")
        found[task] = score(checkpoint, args.out / "scores" / name / path.replace("/", "-"), args)
    return found


def columns(found: dict[Task, dict[str, Evaluation]]) -> Columns:
    """Values by task type of every column of a table."""
    choice, told = "multiple_choice", "open_ended"
    mixed = found["mixed"]
    return {
        "drawing": by_task(found["drawing"][choice].records, "drawing_correct"),
        "multiple choice": by_task(found["multiple choice"][choice].records, "answer_correct"),
        "open ended": by_task(found["open ended"][told].records, "answer_correct"),
        "mixed": by_task([*mixed[choice].records, *mixed[told].records], "answer_correct"),
        "format": by_task([*mixed[choice].records, *mixed[told].records], "format_ok"),
    }


# -- the tables ------------------------------------------------------------------------------------------------------


def table(rows: dict[str, list[Columns]]) -> str:
    """Rows of paradigms: mean over seeds, its 95% interval over items, the least and the most of the seeds."""
    names = list(next(iter(rows.values()))[0])
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, runs in rows.items():
        cells = []
        for name in names:
            mean, seeds = over_seeds([run[name] for run in runs])
            cells.append(f"{mean}{spread(seeds)}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finish(recipe: str, seed: int, rows: Iterable[Row], args: Args) -> None:
    """Trains one recipe with one seed and scores all that its rows need."""
    train_and_merge(recipe, seed, args)
    for row in rows:
        scored(row, seed, args)


def main(args: Args) -> None:
    """Trains, scores, writes."""
    rows_of: dict[str, list[Row]] = {}
    for row in (row for name in args.tables for row in TABLES[name].values()):
        rows_of.setdefault(row.recipe, []).append(row)
    jobs = [(finish, recipe, seed, rows_of[recipe], args) for seed in args.seeds for recipe in rows_of]
    side_by_side(jobs, args.workers)
    for name in args.tables:
        rows = {"baseline": [columns(scored(BASELINE, 0, args))]}
        for label, row in TABLES[name].items():
            rows[label] = [columns(scored(row, seed, args)) for seed in args.seeds]
        print(f"{name}\n{table(rows)}\n", flush=True)
        if not args.options:
            write_section(DOCS / "paradigms.md", name, table(rows))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
