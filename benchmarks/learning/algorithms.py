"""Every algorithm of `unison.recipes.algorithms` on a tiny model: does the reward rise on held-out items?

    python -m benchmarks.learning.algorithms --seeds 0

trains every row once a seed (going on with what an earlier call left unfinished) and writes docs/algorithms.md between
its markers. Rows of a table differ in the algorithm alone, and figures are the reward that the run was to raise, of the
runs' own evaluations before and after.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import tyro

from benchmarks.learning.seeds import ends
from benchmarks.learning.training import averaged, folder, side_by_side, train
from benchmarks.learning.unirl import signed
from benchmarks.pages import DOCS, write_section
from unison.config import RunConfig, to_json
from unison.evaluation.records import REWARD, Evaluation
from unison.evaluation.stats import task_difference, task_mean
from unison.policies import locate
from unison.recipes.algorithms import ALGORITHMS
from unison.recipes.corl import tiny_unified
from unison.recipes.unirl_zero import tiny_draw

Kind = Literal["tokens", "denoising"]
ROWS: dict[Kind, tuple[str, ...]] = {
    "tokens": ("grpo", "dr-grpo", "dapo", "gspo", "rloo", "online-dpo"),
    "denoising": ("grpo", "mixgrpo", "dancegrpo", "diffusion-nft", "diffusion-dpo"),
}
OWN: dict[tuple[Kind, str], tuple[str, ...]] = {
    ("denoising", "mixgrpo"): ("--scenario.window.every=4",),  # a short run, too, is to see the whole path
    ("denoising", "dancegrpo"): ("--scenario.image.noise-level=0.7",),  # at the authors' 0.3 siblings hardly differ
    ("denoising", "diffusion-nft"): ("--step.updates=2",),  # else the velocities never part
}
"""What a row needs besides its algorithm."""
JUDGED = {
    "world": "drawing_score",
    "world_strict": "drawing_correct",
    "accuracy": "answer_correct",
    "format": "format_ok",
}
"""Rewards that every evaluation holds, and the field of a record that each is."""
Columns: TypeAlias = dict[str, list[float]]


@dataclass(frozen=True)
class Args:
    """Train every row over seeds, write the tables."""

    tables: tuple[Kind, ...] = get_args(Kind)
    """Which tables."""
    rows: tuple[str, ...] = tuple(ALGORITHMS)
    """Which algorithms; with fewer than all the page is left alone."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of data order and samples."""
    model: str = "assets/tiny-metaquery"
    """The model that draws by denoising."""
    reward: str = ""
    """What its drawings are rewarded by, in place of the world's judge: one that random weights can earn, such as
    jpeg_incompressible; the page is then left alone."""
    out: Path = Path("runs/algorithms")
    """Folder of the runs."""
    workers: int = 2
    """Runs side by side; the CPU cores are shared out among them."""
    options: tuple[str, ...] = ()
    """Further options of `unison train` for every run, such as --optim.steps=2; the page is then left alone."""

    @property
    def whole(self) -> bool:
        """Whether the page shows what this call makes."""
        return not (self.options or self.reward) and self.rows == tuple(ALGORITHMS)


# -- runs ------------------------------------------------------------------------------------------------------------


def start_of(kind: Kind, args: Args) -> RunConfig:
    """The run that every algorithm of a table starts from, with its reward."""
    return _brief(tiny_unified(), 30) if kind == "tokens" else _brief(_denoised(args.model, args.reward), 30)


def _brief(run: RunConfig, steps: int) -> RunConfig:
    return replace(run, optim=replace(run.optim, steps=steps), evaluation=replace(run.evaluation, every=0))


def _denoised(model: str, reward: str) -> RunConfig:
    """Text to image by a MetaQuery whose language model is frozen."""
    run = tiny_draw()
    rewards = {reward: 1.0} if reward else run.rewards
    measured = tuple(name for name in rewards if name not in JUDGED)
    return replace(
        run,
        policy=replace(run.policy, path=model),
        rewards=rewards,
        evaluation=replace(run.evaluation, rewards=measured),
    )


def name_of(kind: Kind, algorithm: str) -> str:
    return f"{kind}-{algorithm}"


def run_row(kind: Kind, algorithm: str, seed: int, args: Args) -> None:
    """Trains a row once, from a configuration that is written beside its run."""
    start = args.out / f"{kind}.json"
    own = (f"--algorithm={algorithm}", *OWN.get((kind, algorithm), ()), *args.options)
    train(name_of(kind, algorithm), seed, args.out, own, start=("--config", str(start)))


# -- the table -------------------------------------------------------------------------------------------------------


def rewards_of(evaluation: Evaluation, weights: dict[str, float]) -> Columns:
    """The weighted sum of rewards of every item that has them all, by task type."""
    columns: Columns = {}
    for record in evaluation.records:
        values = [record.get(JUDGED.get(name, f"{REWARD}{name}")) for name in weights]
        known = [float(value) for value in values if value is not None]
        if len(known) == len(values):
            total = sum(weight * value for weight, value in zip(weights.values(), known, strict=True))
            columns.setdefault(record["task"], []).append(total)
    return columns


def line(label: str, before: Sequence[Columns], after: Sequence[Columns]) -> str:
    """A row: reward before and after, means over seeds, and the paired difference with its interval over items."""
    first, last = averaged(before), averaged(after)
    gains = [task_difference(b, a).value for b, a in zip(before, after, strict=True)]
    least = f"; {min(gains):+.3f} to {max(gains):+.3f}" if len(gains) > 1 else ""
    values = f"{task_mean(first).value:.3f} | {task_mean(last).value:.3f}"
    return f"| {label} | {values} | {signed(task_difference(first, last))}{least} |"


def table(kind: Kind, args: Args) -> str:
    """Rows of algorithms."""
    weights = start_of(kind, args).rewards
    lines = ["| algorithm | reward before | after | difference [95% interval] |", "|---" * 4 + "|"]
    for algorithm in rows_of(kind, args):
        pairs = [ends(folder(name_of(kind, algorithm), seed, args.out)) for seed in args.seeds]
        before, after = ([rewards_of(side, weights) for side in sides] for sides in zip(*pairs, strict=True))
        lines.append(line(algorithm, before, after))
    return "\n".join(lines)


def rows_of(kind: Kind, args: Args) -> list[str]:
    return [algorithm for algorithm in ROWS[kind] if algorithm in args.rows]


def main(args: Args) -> None:
    """Trains, then writes."""
    args.out.mkdir(parents=True, exist_ok=True)
    jobs: list[tuple[Any, ...]] = []
    for kind in args.tables:
        start = start_of(kind, args)
        locate(start.policy.path)  # a model that is not there is said before any training
        (args.out / f"{kind}.json").write_text(to_json(start))
        jobs += [(run_row, kind, algorithm, seed, args) for seed in args.seeds for algorithm in rows_of(kind, args)]
    side_by_side(jobs, args.workers)
    for kind in args.tables:
        print(f"{kind}\n{table(kind, args)}\n", flush=True)
        if args.whole:
            write_section(DOCS / "algorithms.md", kind, table(kind, args))


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
