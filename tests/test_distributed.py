"""Several processes take the steps of one, whichever way the weights lie; one that fails ends the run for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from distributed_jobs import Job, run, write

from unison.policies.base import Policy

STRATEGIES = ("ddp", "fsdp2")
FAMILIES = ("janus", "showo", "metaquery")
CLOSE = 1e-5
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def checkpoints(
    policy: Policy, showo: Policy, metaquery: Policy, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Checkpoint folders of all families at toy size."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, own in zip(FAMILIES, (policy, showo, metaquery), strict=True):
        (folder / name).mkdir()
        own.save(folder / name)
    return {name: str(folder / name) for name in FAMILIES}


def together(jobs: Sequence[Job], folder: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Does the jobs on several processes."""
    file = write(jobs, folder / f"jobs-{time.monotonic_ns()}.json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
    command = [*launch, str(TESTS / "distributed_jobs.py"), str(file)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | paths, check=False, timeout=300)


def metrics(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def gradient(out: str, step: int) -> dict[str, torch.Tensor]:
    return torch.load(Path(out) / f"gradient-{step}.pt")


def assert_same_curve(one: str, other: str, steps: Sequence[int] = (1, 2, 3)) -> None:
    """Losses and whole gradients agree to a relative 1e-5."""
    rows = zip(metrics(one), metrics(other), strict=True)
    for step, (a, b) in enumerate(rows, start=1):
        assert a.keys() == b.keys()
        for name in ("loss", "grad_norm", "image/grad_norm", "text/grad_norm", "reward/mean"):
            assert b[name] == pytest.approx(a[name], rel=CLOSE, abs=1e-6), (step, name)
    for step in steps:
        a, b = gradient(one, step), gradient(other, step)
        assert a.keys() == b.keys()
        apart = sum(float((a[name] - b[name]).square().sum()) for name in a) ** 0.5
        assert apart <= CLOSE * sum(float(g.square().sum()) for g in a.values()) ** 0.5, step


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_take_the_steps_of_one(checkpoints: dict[str, str], tmp_path: Path, family: str) -> None:
    one = Job(checkpoints[family], str(tmp_path / "one"))
    run(one)
    two = {s: Job(checkpoints[family], str(tmp_path / s), s) for s in STRATEGIES}
    done = together(list(two.values()), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for job in two.values():
        assert_same_curve(one.out, job.out)
