"""The files and the progress line of a run.

metrics.jsonl holds what is a function of the configuration alone, so that a resumed run repeats it to the bit; times go
to timings.jsonl.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unison.config import RunConfig
from unison.evaluation.records import Evaluation
from unison.rewards import mean_of
from unison.training.checkpoint import truncate_after
from unison.training.guards import Gap
from unison.training.retention import Fall
from unison.training.throughput import Throughput
from unison.types import Metrics, Trajectory

FILES = ("metrics.jsonl", "timings.jsonl", "health.jsonl")
console = Console()


class RunLog:
    """Writes metrics.jsonl, timings.jsonl and the trackers, and shows progress on the main process."""

    def __init__(self, run: Path, accelerator: Accelerator, steps: int, throughput: Throughput) -> None:
        self.run, self.accelerator, self.steps, self.throughput = run, accelerator, steps, throughput
        self.phases: dict[str, float] = {}
        self.bar: Progress | None = None
        run.mkdir(parents=True, exist_ok=True)
        accelerator.init_trackers("unison")

    def clear(self) -> None:
        for name in FILES:
            (self.run / name).unlink(missing_ok=True)

    def rewind(self, step: int) -> None:
        """Forgets what a resumed run will write again."""
        for name in FILES:
            truncate_after(self.run / name, step)
        console.print(f"resuming {self.run} after step {step} of {self.steps}")

    def arithmetic(self, config: RunConfig, processes: int) -> None:
        """Prints the batch arithmetic."""
        items, group = config.step.items, config.scenario.group_size
        if self.accelerator.is_main_process:
            console.print(
                f"{config.recipe}: {items} items x {group} trajectories = {items * group} a step on {processes} "
                f"process{'es' if processes > 1 else ''}, {config.step.updates} update(s) a step, "
                f"{config.optim.steps} steps -> {self.run}"
            )
            if config.scoring.drawings != "rounds":
                console.print(
                    f"drawings are scored by {config.scoring.drawings}: the ratio, logp_difference, clip_fraction, kl "
                    "and entropy of images are those of a surrogate, not of the drawings' own log-probabilities"
                )

    def spent(self, phase: str, seconds: float) -> None:
        self.phases[phase] = self.phases.get(phase, 0.0) + seconds

    @contextmanager
    def progress(self, step: int) -> Iterator[None]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not self.accelerator.is_main_process) as self.bar:
            self.bar.add_task("training", total=self.steps, completed=step)
            yield

    def step(
        self,
        step: int,
        rewards: Metrics,
        spread: Metrics,
        update: Metrics,
        trajectories: Sequence[Trajectory],
    ) -> None:
        """Writes one step's line; all figures are those of all processes already, but of the trajectories, which are
        this one's."""
        metrics = {
            "reward/mean": spread["mean"],
            "reward/std": spread["std"],
            "reward/abstained": spread["abstained"],
            "groups/constant_share": spread["constant_share"],
            "groups/discarded": spread["discarded"],
            **{f"reward/{name}": value for name, value in rewards.items()},
            **self._lengths(trajectories),
            **update,
        }
        if self.accelerator.is_main_process:
            line = {"step": step} | {name: _plain(value) for name, value in metrics.items()}
            _append(self.run / "metrics.jsonl", line)
            speed = self.throughput.of_step(trajectories, self.phases)
            seconds = sum(self.phases.values())
            _append(self.run / "timings.jsonl", {"step": step, "seconds": seconds, **self.phases, **speed})
            self.accelerator.log(metrics | speed | {"seconds": seconds}, step=step)
            self._show(step, metrics)
        self.phases = {}

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Prints and tracks the figures of an evaluation."""
        figures = result.overall()
        self.accelerator.log({f"eval/{name}": e.value for name, e in figures.items()}, step=step)
        printed = ", ".join(f"{name} {estimate}" for name, estimate in figures.items())
        console.print(f"step {step}: held-out {printed} ({len(result.records)} items)")

    def deciding(self, figures: Sequence[str], items: int) -> None:
        """Prints by what the checkpoint `best` is chosen."""
        if self.accelerator.is_main_process:
            how = f"the highest {' + '.join(figures)} on the first {items} held-out items"
            console.print(f"checkpoint best: {how if figures else 'none, for evaluations measure nothing'}")

    def apart(self, step: int, gaps: Sequence[Gap]) -> None:
        """Says where sampling and scoring disagree by too much."""
        for gap in gaps if self.accelerator.is_main_process else ():
            _append(self.run / "health.jsonl", {"step": step, **gap._asdict()})

    def fallen(self, step: int, falls: Sequence[Fall], action: str) -> None:
        """Says which watched figures have fallen, and what is done about it."""
        for fall in falls if self.accelerator.is_main_process else ():
            change = fall.change
            line = {"step": step, "figure": fall.name, "change": change.value, "low": change.low, "high": change.high}
            _append(self.run / "health.jsonl", line | {"action": action})
            console.print(f"step {step}: held-out {fall.name} has fallen by {-change.value:.3f}: {action}")

    def close(self) -> None:
        console.print(f"report: {self.run / 'report.html'}")

    def _show(self, step: int, metrics: Metrics) -> None:
        if self.bar is not None:
            shown = [("reward", "reward/mean"), ("accuracy", "reward/accuracy/mean")]
            text = " ".join(f"{label} {metrics[name]:.3f}" for label, name in shown if name in metrics)
            self.bar.update(self.bar.task_ids[0], completed=step, description=text)

    def _lengths(self, trajectories: Sequence[Trajectory]) -> Metrics:
        """The mean length of actions of each modality on all processes, of which some may have none."""
        lengths: dict[str, list[int]] = {}
        for trajectory in trajectories:
            for turn in trajectory.turns:
                lengths.setdefault(f"{turn.action.modality}/length", []).append(len(turn.action))
        own = {name: (sum(values) / len(values), len(values)) for name, values in lengths.items()}
        every = gather_object([own]) if self.accelerator.num_processes > 1 else [own]
        names = dict.fromkeys(name for part in every for name in part)
        return {name: mean_of(part[name] for part in every if name in part) for name in names}


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _append(path: Path, line: Mapping[str, object]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
