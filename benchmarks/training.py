"""Runs of `unison train` for tables over seeds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from unison import chain


def folder(recipe: str, seed: int, out: Path) -> Path:
    """Where `train` puts a recipe's run or chain."""
    return out / f"{recipe.replace('/', '-')}-{seed}"


def train(recipe: str, seed: int, out: Path, options: Sequence[str] = ()) -> Path:
    """Trains a recipe as a process of its own below `out`, or goes on with what was cut short there.

    Returns:
        The folder of the run or chain; what it prints is in a log beside it.
    """
    run = folder(recipe, seed, out)
    begun = any((run / file).exists() for file in (chain.FILE, "checkpoints"))
    words = ["--resume", str(run)] if begun else [recipe, f"--seed={seed}", f"--out={run}", "--overwrite", *options]
    out.mkdir(parents=True, exist_ok=True)
    with (out / f"{run.name}.log").open("a") as log:
        subprocess.run([sys.executable, "-m", "unison", "train", *words], check=True, stdout=log, stderr=log)
    return run
