"""Runs of `unison train` for tables over seeds, side by side, and what the seeds have in common."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unison.evaluation.stats import Estimate, task_mean
from unison.training import chain


def folder(recipe: str, seed: int, out: Path) -> Path:
    """Where `train` puts a recipe's run or chain."""
    return out / f"{recipe.replace('/', '-')}-{seed}"


def train(recipe: str, seed: int, out: Path, options: Sequence[str] = (), start: Sequence[str] = ()) -> Path:
    """Trains a recipe as a process of its own below `out`, or goes on with what was cut short there.

    Args:
        recipe: names the folder, too.
        start: what `unison train` is to start from in place of a recipe of that name.

    Returns:
        The folder of the run or chain; what it prints is in a log beside it.
    """
    run = folder(recipe, seed, out)
    begun = any((run / file).exists() for file in (chain.FILE, "checkpoints"))
    words = (
        ["--resume", str(run)]
        if begun
        else [*(start or [recipe]), f"--seed={seed}", f"--out={run}", "--overwrite", *options]
    )
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{run.name}.log").open("a") as log:
        subprocess.run([sys.executable, "-m", "unison", "train", *words], check=True, stdout=log, stderr=log)
    return run


def side_by_side(jobs: Sequence[tuple[Any, ...]], workers: int) -> None:
    """Calls (function, arguments ...) jobs in as many processes, which share out the CPU cores."""
    with ProcessPoolExecutor(workers, initializer=_share_cores, initargs=(workers,)) as pool:
        for job in [pool.submit(*job) for job in jobs]:
            job.result()


def _share_cores(workers: int) -> None:
    threads = max(1, (os.cpu_count() or 1) // workers)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the runs, which are processes of their own
    torch.set_num_threads(threads)


def over_seeds(runs: Sequence[dict[str, list[float]]]) -> tuple[Estimate, list[float]]:
    """The mean over seeds with its interval over items, and the mean of each seed."""
    return task_mean(averaged(runs)), [task_mean(run).value for run in runs]


def averaged(runs: Sequence[dict[str, list[float]]]) -> dict[str, list[float]]:
    """Every item's mean over seeds, by task."""
    return {task: np.mean([run[task] for run in runs], axis=0).tolist() for task in runs[0]}


def spread(seeds: Sequence[float]) -> str:
    """The least and the most of the seeds, behind a mean."""
    return f"; {min(seeds):.3f} to {max(seeds):.3f}" if len(seeds) > 1 else ""
