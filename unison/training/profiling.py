"""A trace of some steps of a run by torch's profiler, for chrome://tracing or https://ui.perfetto.dev."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule


@contextmanager
def traced(run: Path, steps: int, process: int) -> Iterator[Callable[[], None]]:
    """Traces `steps` steps after the first, to `<run>/profile/process<process>.json.gz` as soon as they are over.

    Gives what is to be called at the end of every step. The first step is left out: in it libraries set themselves up.
    A run that ends earlier writes what it has.
    """
    if not steps:
        yield lambda: None
        return
    folder = run / "profile"
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    with profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=1, active=steps, repeat=1),
        on_trace_ready=lambda p: p.export_chrome_trace(str(folder / f"process{process}.json.gz")),
    ) as profiler:
        yield profiler.step
