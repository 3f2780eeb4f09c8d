"""The report of a run: one self-contained HTML page with results, drawings, replies, curves and commands.

Everything is read from the run folder, so a report can be written during a run, after a killed one, or years
later. Two choices keep it honest. Before and after are compared on the same items, paired by id; the verdict
is read off the interval of the difference. Curves over evaluations use only the items that every evaluation
holds, so a subset evaluated during training is never compared with the full suite.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from unison.evaluation.drift import find_drift
from unison.evaluation.records import Evaluation
from unison.evaluation.stats import signed
from unison.reports.charts import BINS, PHASES, drift_chart, evaluation_charts, metric_charts, time_charts
from unison.reports.comparison import SHARES, compare, imbalance, labels_of, verdict
from unison.reports.gallery import gallery, questions
from unison.reports.run_folder import Row, Run, before_and_after, read_run


def write_report(run: Path) -> Path:
    """Writes `report.html` into the run folder and returns its path.

    Raises:
        ValueError: `run` is not a run folder.
    """
    path = run / "report.html"
    path.write_text(render("report.html.jinja", _view(read_run(run))), encoding="utf-8")
    return path


def render(template: str, view: Mapping[str, Any]) -> str:
    """A page from a template beside this file; pages share the pieces of report_pieces.html.jinja."""
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template(template).render(view)


def _view(run: Run) -> dict[str, Any]:
    sides = before_and_after(run.evaluations)
    results = {label: rows for name, label in labels_of(sides).items() if (rows := compare(sides, name))}
    drift = find_drift(run.evaluations)
    sections, zero = metric_charts(run.metrics)
    return {
        "run": run,
        "config": run.config,
        "labels": [f"step {e.step}" for e in sides] if len(sides) < 2 else ["before", "after"],
        "sides": sides,
        "results": results,
        "missing": _why_no_comparison(run, sides),
        "verdict": verdict(results),
        "imbalance": imbalance(sides),
        "drift": drift,
        "drift_chart": drift_chart(drift) if drift else None,
        "has_gap": set(SHARES.values()),
        "signed": signed,
        "gallery": gallery(sides, [run.path] * len(sides)),
        "questions": questions(sides, [run.path] * len(sides)),
        "evaluation_charts": evaluation_charts(run.evaluations),
        "sections": sections,
        "zero": zero,
        "bin": math.ceil(len(run.metrics) / BINS),
        "time_charts": time_charts(run.timings),
        "phases": _phases(run.timings),
        "seconds": duration(sum(row["seconds"] for row in run.timings)) if run.timings else "",
        "config_json": json.dumps(json.loads((run.path / "config.json").read_text(encoding="utf-8")), indent=2),
        "folder": shlex.quote(str(run.path)),
    }


def _why_no_comparison(run: Run, sides: Sequence[Evaluation]) -> str:
    if len(sides) == 2:
        return ""
    if not sides:
        return "The run folder holds no evaluation, so there is nothing to compare."
    progress = f"the run is at step {run.steps} of {run.config.optim.steps}"
    return f"The full suite was evaluated once, at step {sides[0].step} ({progress}): no before and after yet."


def _phases(timings: Sequence[Row]) -> list[tuple[str, float, str]]:
    """Name, share and total of each phase over the run."""
    totals = {phase: sum(row.get(phase) or 0.0 for row in timings) for phase in PHASES}
    spent = sum(totals.values())
    return [(phase, total / spent, duration(total)) for phase, total in totals.items() if total > 0]


def duration(seconds: float) -> str:
    """A time to read, to two units."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
