"""Reading a run folder: its configuration, metrics, timings and evaluations; what a killed run cut short is told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from unison.config import RunConfig, from_json
from unison.evaluation.records import Evaluation

Row: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What a run folder holds."""

    path: Path
    config: RunConfig
    environment: Row
    metrics: list[Row]
    timings: list[Row]
    evaluations: list[Evaluation]
    unreadable: list[str]
    """Files, or lines of files, cut short by a killed run."""

    @property
    def steps(self) -> int:
        return max((row["step"] for row in self.metrics), default=0)


def read_run(run: Path) -> Run:
    """Reads a run folder; what a killed run cut short is left out and listed.

    Raises:
        ValueError: there is no such folder, or it holds no config.json.
    """
    if not (run / "config.json").is_file():
        missing = "holds no config.json" if run.is_dir() else "does not exist"
        raise ValueError(f"run folder '{run}' {missing}: give the folder that `unison train` wrote (its `out`)")
    unreadable: list[str] = []
    environment = run / "environment.json"
    return Run(
        path=run,
        config=from_json((run / "config.json").read_text(encoding="utf-8")),
        environment=json.loads(environment.read_text(encoding="utf-8")) if environment.is_file() else {},
        metrics=read_rows(run / "metrics.jsonl", unreadable),
        timings=read_rows(run / "timings.jsonl", unreadable),
        evaluations=read_evaluations(run / "eval", unreadable),
        unreadable=unreadable,
    )


def read_rows(path: Path, unreadable: list[str]) -> list[Row]:
    """Rows of a JSONL file by step; a step repeated after a resume counts once, as written last."""
    rows: dict[int, Row] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            unreadable.append(f"line {number} of {path.name}")
        else:
            rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def read_evaluations(folder: Path, unreadable: list[str]) -> list[Evaluation]:
    """The evaluations of a run in order of their step."""
    found = []
    for path in sorted(folder.glob("[0-9]*.json")):
        try:
            found.append(Evaluation.load(path))
        except ValueError:
            unreadable.append(f"eval/{path.name}")
    return sorted(found, key=lambda evaluation: evaluation.step)


def before_and_after(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """First and last evaluation of the full suite (the most records); one or none where there are no two."""
    most = max((len(e.records) for e in evaluations), default=0)
    full = [e for e in evaluations if most and len(e.records) == most]
    return [full[0], full[-1]] if len(full) > 1 else full
