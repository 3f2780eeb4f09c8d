"""CoRL's comparison of paradigms at tiny scale, over seeds, as a table.

    python -m benchmarks.paradigms --seeds 0 1 2

trains every paradigm once a seed (going on with what an earlier call left unfinished) and writes docs/paradigms.md
between its markers. Every task gets as many updates in every paradigm; the refinements come on top and are an own row.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import tyro

from unison.config import EvalConfig, PolicyConfig
from unison.data import open_items
from unison.evaluate import Evaluation, by_task, evaluate
from unison.merge import merge
from unison.policies import load_policy
from unison.recipes.corl import tiny_unified
from unison.stats import Estimate, task_mean

PAGE = Path(__file__).parents[1] / "docs" / "paradigms.md"
BEGIN, END = "<!-- benchmarks.paradigms writes from here -->", "<!-- to here -->"
BASE = "assets/tiny-janus"
Task = Literal["drawing", "multiple choice", "open ended", "mixed"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Paradigm:
    """A row: the recipe that trains it and the checkpoint, below the recipe's folder, that does each task."""

    recipe: str
    checkpoints: dict[Task, str]


def one(recipe: str, folder: str = "") -> Paradigm:
    """A paradigm with one model for everything."""
    checkpoint = str(Path(folder) / "checkpoints" / "final")
    return Paradigm(recipe, dict.fromkeys(TASKS, checkpoint))


def many(recipe: str, **folders: str) -> Paradigm:
    """A paradigm with a model of its own for some tasks; `merged` models lie directly below the folder."""
    paths = {name.replace("_", " "): folder for name, folder in folders.items()}
    return Paradigm(recipe, {t: f if f == "merged" else f"{f}/checkpoints/final" for t, f in paths.items()})  # type: ignore[misc]


PARADIGMS = {
    "cold-start SFT": one("corl/tiny-cold-start"),
    "separate": many(
        "corl/tiny-separate", drawing="draw", multiple_choice="answer", open_ended="answer", mixed="answer"
    ),
    "separate, merged": many(
        "corl/tiny-separate", drawing="merged", multiple_choice="merged", open_ended="merged", mixed="merged"
    ),
    "cycle": one("corl/tiny-cycle", "8-answer"),
    "unified": one("corl/tiny", "unified"),
    "unified, refined": many(
        "corl/tiny", drawing="draw", multiple_choice="multiple-choice", open_ended="open-ended", mixed="merged"
    ),
}
MERGED = {  # recipe: what is merged there, and the weights that both started from
    "corl/tiny-separate": (("draw", "answer"), None),
    "corl/tiny": (("multiple-choice", "open-ended"), "unified"),
}


@dataclass(frozen=True)
class Args:
    """Train every paradigm over seeds, score all, write the table."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of data order and samples."""
    items: int = 600
    """Held-out items of each suite."""
    out: Path = Path("runs/paradigms")
    """Folder of the runs."""
    options: tuple[str, ...] = ()
    """Further options of `unison train` for every run, such as --optim.steps=4."""


# -- training ------------------------------------------------------------------------------------------------------


def train(recipe: str, seed: int, args: Args) -> Path:
    """Trains a recipe as its own process, or goes on with it; returns its folder."""
    out = args.out / f"{recipe.replace('/', '-')}-{seed}"
    cut = any((out / file).exists() for file in ("chain.json", "checkpoints/last"))
    if not (out / "report.html").exists():
        words = ["--resume", str(out)] if cut else [recipe, f"--seed={seed}", f"--out={out}", *_lean(args)]
        subprocess.run([sys.executable, "-m", "unison", "train", *words], check=True)
    models, start = MERGED.get(recipe, ((), None))
    if models and not (out / "merged").exists():
        final = "checkpoints/final"
        base = str(out / start / final) if start else _bundled()
        merge([str(out / model / final) for model in models], out / "merged", "gaussian", base=base)
    return out


def _lean(args: Args) -> list[str]:
    """The suites here stand in for each run's own evaluations."""
    return ["--overwrite", "--evaluation.every=0", "--evaluation.items=12", *args.options]


def _bundled() -> str:
    from unison.policies import locate

    return str(locate(BASE))


# -- scoring -------------------------------------------------------------------------------------------------------


def score(checkpoint: str, name: str, args: Args) -> dict[str, Evaluation]:
    """Evaluations of a checkpoint on both forms of question, the drawings with the first; kept for later calls."""
    folder = args.out / "scores" / name
    found = {}
    for kind in ("multiple_choice", "open_ended"):
        path = folder / kind / "000000.json"
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


def columns(found: dict[Task, dict[str, Evaluation]]) -> dict[str, dict[str, list[float]]]:
    """Values by task type of every column of the table."""
    choice, told = "multiple_choice", "open_ended"
    mixed = found["mixed"]
    return {
        "drawing": by_task(found["drawing"][choice].records, "drawing_correct"),
        "multiple choice": by_task(found["multiple choice"][choice].records, "answer_correct"),
        "open ended": by_task(found["open ended"][told].records, "answer_correct"),
        "mixed": by_task([*mixed[choice].records, *mixed[told].records], "answer_correct"),
        "format": by_task([*mixed[choice].records, *mixed[told].records], "format_ok"),
    }


# -- the table -------------------------------------------------------------------------------------------------------


def over_seeds(runs: Sequence[dict[str, list[float]]]) -> tuple[Estimate, list[float]]:
    """The mean over seeds with its interval over items, and the mean of each seed."""
    averaged = {task: np.mean([run[task] for run in runs], axis=0).tolist() for task in runs[0]}
    return task_mean(averaged), [task_mean(run).value for run in runs]


def table(rows: dict[str, list[dict[str, dict[str, list[float]]]]]) -> str:
    """Rows of paradigms: mean over seeds, its 95% interval over items, the least and the most of the seeds."""
    names = list(next(iter(rows.values()))[0])
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for label, runs in rows.items():
        cells = []
        for name in names:
            mean, seeds = over_seeds([run[name] for run in runs])
            spread = f"; {min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else ""
            cells.append(f"{mean}{spread}")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(args: Args) -> None:
    """Trains, scores, writes."""
    baseline = score(BASE, "baseline", args)
    rows = {"baseline": [columns(dict.fromkeys(one("").checkpoints, baseline))]}
    for label, paradigm in PARADIGMS.items():
        rows[label] = []
        for seed in args.seeds:
            run = train(paradigm.recipe, seed, args)
            found: dict[Task, dict[str, Evaluation]] = {
                task: score(str(run / path), f"{run.name}/{path.replace('/', '-')}", args)
                for task, path in paradigm.checkpoints.items()
            }
            rows[label].append(columns(found))
        print(table(rows), flush=True)
    if PAGE.exists() and not args.options:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
