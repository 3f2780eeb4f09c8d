"""Checkpoints of a run: what resuming needs, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from unison.policies.base import Policy
from unison.training.distributed import Processes, Weights

STATE = "state.json"
LAST = ("last", "last.old")  # where the state may lie: a kill while it is replaced leaves the old one


def save_state(weights: Weights, processes: Processes, run: Path, step: int, counters: dict[str, float]) -> None:
    """Writes model, optimiser, scheduler and counters to `checkpoints/last`, replacing the previous one atomically."""
    accelerator = processes.accelerator
    folder = run / "checkpoints"
    fresh, last = folder / "last.partial", folder / "last"
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    weights.save(fresh)
    accelerator.wait_for_everyone()  # a part that is missing would make it no whole checkpoint
    if accelerator.is_main_process:
        (fresh / STATE).write_text(json.dumps({"step": step, **counters}))
        swap_in(fresh, last)
    accelerator.wait_for_everyone()


def swap_in(fresh: Path, final: Path) -> None:
    """Renames a finished folder into place; a kill in between leaves the old or the new one readable."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        os.rename(final, old)
    os.rename(fresh, final)
    shutil.rmtree(old, ignore_errors=True)


def load_state(weights: Weights, run: Path) -> dict[str, float]:
    """Restores what `save_state` wrote; returns its counters, `step` among them.

    Raises:
        ValueError: the run has no whole checkpoint.
    """
    if folder := last_state(run):
        weights.load(folder)
        return json.loads((folder / STATE).read_text())
    raise ValueError(f"{run}: no checkpoint to resume from in {run / 'checkpoints'}; start it with `unison train`")


def last_state(run: Path) -> Path | None:
    """The folder of the run's last whole checkpoint, None where there is none."""
    folders = (run / "checkpoints" / name for name in LAST)
    return next((folder for folder in folders if (folder / STATE).is_file()), None)


def truncate_after(path: Path, step: int) -> None:
    """Drops the lines of a JSONL log that a resumed run will write again, and a line cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except json.JSONDecodeError:
            continue
    path.write_text("".join(line + "\n" for line in kept))


def export(policy: Policy, run: Path, name: str) -> Path:
    """Writes the policy as a plain checkpoint to `checkpoints/<name>`."""
    fresh = run / "checkpoints" / f"{name}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    policy.save(fresh)
    final = run / "checkpoints" / name
    swap_in(fresh, final)
    return final
