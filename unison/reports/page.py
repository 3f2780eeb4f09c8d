"""The report of a run: one self-contained HTML page with results, drawings, replies, curves and commands.

Everything is read from the run folder, so a report can be written during a run, after a killed one, or years
later. Two choices keep it honest. Before and after are compared on the same items, paired by id; the verdict
is read off the interval of the difference. Curves over evaluations use only the items that every evaluation
holds, so a subset evaluated during training is never compared with the full suite.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import jinja2
import numpy as np
from PIL import Image

from unison.config import RunConfig, from_json
from unison.evaluation.drift import Drift, find_drift
from unison.evaluation.held_out import REWARD, Evaluation, is_met, measured, pairs_by_task
from unison.evaluation.stats import Estimate, conditional, conditional_difference, signed, task_difference, task_mean

Row: TypeAlias = dict[str, Any]

FIGURES = {
    "drawing_correct": "Drawing score",
    "answer_correct": "Answer accuracy",
    "format_ok": "Format rate",
    "own_answer_correct": "Answers about own drawings",
    "probe_correct": "Understanding kept",
}
SHARES = {  # conditional shares, and what they say
    "answer_given_drawing": "Answer right where the drawing is",
    "drawing_given_answer": "Drawing right where the answer is",
}
SECTIONS = {"reward": "Reward", "text": "Text policy", "image": "Image policy", "": "Optimiser"}
CAPTIONS = {  # last part of a metric's key -> (title, what it is); the order is that of the page
    "mean": ("Reward", "weighted sum; band: one standard deviation"),
    "constant_share": ("Constant groups", "share of groups with one reward throughout"),
    "entropy": ("Entropy", "per decision, in nats"),
    "logp_difference": ("|Δ log-prob|", "replayed against sampled"),
    "ratio_mean": ("Ratio", "new over old probability"),
    "clip_fraction": ("Clip fraction", "share of decisions outside the clip range"),
    "kl": ("KL", "to the frozen reference"),
    "length": ("Length", "decisions per action"),
    "format_rate": ("Format rate", "share of replies in the asked format"),
    "loss": ("Loss", ""),
    "grad_norm": ("Gradient norm", "before clipping"),
    "learning_rate": ("Learning rate", ""),
}
FIELDS = (  # of a record; any but the first two may be absent or null
    *("id", "task", "prompt", "question", "answer", "reply", "image", "question_image", "drawing_reason"),
    *("drift", *FIGURES),
)
PHASES = ("rollout", "reward", "update", "evaluation", "checkpoint")
BY_NAME = {  # statistics of each reward, all rewards in one chart
    "mean": ("Rewards by name", "mean over trajectories"),
    "abstained": ("Abstained", "what a reward could not judge"),
}
GALLERY = 24  # most drawings shown
QUESTIONS = 9  # most questions shown
LARGEST = 320  # pixels; larger pictures are scaled down before they are embedded
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 176, 44, 10, 8, 22  # of a chart and its margins
BINS = 400  # most points of a line; longer runs are averaged in bins


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


# -- reading a run folder ------------------------------------------------------------------------------------


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
            content = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError:
            unreadable.append(f"eval/{path.name}")
        else:
            records = [dict.fromkeys(FIELDS) | record for record in content["records"]]
            found.append(Evaluation(content["step"], records))
    return sorted(found, key=lambda evaluation: evaluation.step)


def before_and_after(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """First and last evaluation of the full suite (the most records); one or none where there are no two."""
    most = max((len(e.records) for e in evaluations), default=0)
    full = [e for e in evaluations if most and len(e.records) == most]
    return [full[0], full[-1]] if len(full) > 1 else full


# -- comparing -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One figure over one task, or over all: each side with its interval, and the paired difference."""

    label: str
    items: int
    sides: list[Estimate]
    difference: Estimate | None

    @property
    def is_share(self) -> bool:
        """Whether every side lies in [0, 1], the range of the plots."""
        return all(side.low >= 0 and side.high <= 1 for side in self.sides)

    @property
    def direction(self) -> str:
        """`up` or `down` where the interval of the difference excludes 0, else `flat`."""
        if self.difference is None or self.difference.low <= 0 <= self.difference.high:
            return "flat"
        return "up" if self.difference.low > 0 else "down"


def figure_by_task(sides: Sequence[Evaluation], name: str) -> list[dict[str, list[float]]]:
    """Values of a figure by task for each side, over the items that have it on every side, in one order."""
    by_id = [{r["id"]: r for r in side.records if r.get(name) is not None} for side in sides]
    shared = [i for i in by_id[0] if all(i in records for records in by_id)]
    values: list[dict[str, list[float]]] = [{} for _ in sides]
    for i in shared:
        for side, records in zip(values, by_id, strict=True):
            side.setdefault(by_id[0][i]["task"], []).append(float(records[i][name]))
    return values


def labels_of(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Field and title of every figure: FIGURES, and the rewards that evaluations measured."""
    names = measured(record for evaluation in evaluations for record in evaluation.records)
    return FIGURES | {name: f"Measured {name.removeprefix(REWARD)}" for name in names}


def compare(sides: Sequence[Evaluation], name: str) -> list[Comparison]:
    """The figure over all tasks first, then by task; empty where no item has the figure."""
    values = figure_by_task(sides, name) if sides else [{}]
    tasks = sorted(values[0])
    cuts = [("all tasks", tasks), *((task, [task]) for task in tasks)]
    return [_compare(label, [{t: side[t] for t in kept} for side in values]) for label, kept in cuts if kept]


def compare_shares(sides: Sequence[Evaluation], name: str) -> list[Comparison]:
    """The conditional share over all tasks first, then by task, over the items that every side holds.

    A cut in which a side has no item that meets the condition is left out.
    """
    by_id = [{r["id"]: r for r in side.records} for side in sides]
    shared = [i for i in by_id[0] if all(i in records for records in by_id)] if by_id else []
    pairs = [pairs_by_task((records[i] for i in shared), name) for records in by_id]
    tasks = sorted(set.intersection(*map(set, pairs))) if pairs else []
    cuts = [("all tasks", tasks), *((task, [task]) for task in tasks)]
    chosen = [(label, [{t: side[t] for t in kept} for side in pairs]) for label, kept in cuts]
    return [
        Comparison(
            label,
            sum(map(len, kept[0].values())),
            [conditional(side) for side in kept],
            conditional_difference(kept[:1], kept[1:]) if len(kept) == 2 else None,
        )
        for label, kept in chosen
        if kept and all(map(is_met, kept))
    ]


def imbalance(sides: Sequence[Evaluation]) -> dict[str, list[Comparison]]:
    """Both conditional shares, and how often the model agrees with itself where the judge does not."""
    found = {label: compare_shares(sides, name) for name, label in SHARES.items()}
    found["Drift: answer right, drawing wrong"] = compare(sides, "drift")
    return {label: rows for label, rows in found.items() if rows}


def _compare(label: str, sides: list[dict[str, list[float]]]) -> Comparison:
    difference = task_difference(*sides) if len(sides) == 2 else None
    return Comparison(label, sum(map(len, sides[0].values())), [task_mean(side) for side in sides], difference)


def verdict(results: dict[str, list[Comparison]]) -> str:
    """One sentence that claims no more than the intervals of the differences allow; empty without any."""
    parts = []
    for label, (overall, *_) in results.items():
        if overall.difference is not None:
            size = f"{abs(overall.difference.value):.3f}"
            words = {
                "up": f"rises by {size}",
                "down": f"falls by {size}",
                "flat": "shows no change beyond noise",
            }
            parts.append(f"{label.lower()} {words[overall.direction]}")
    joined = ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
    return joined[:1].upper() + joined[1:] + "." * bool(joined)


# -- charts --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart; NaN is a gap."""

    label: str
    x: np.ndarray  # [N]
    y: np.ndarray  # [N]
    band: tuple[np.ndarray, np.ndarray] | None = None  # lower and upper edge, each [N]


def chart(title: str, caption: str, lines: Sequence[Line], dots: bool = False) -> dict[str, Any]:
    """Paths and ticks of a line chart in the units of its view box; the template draws them."""
    heights = np.concatenate([a[np.isfinite(a)] for line in lines for a in (line.y, *(line.band or ()))])
    widths = np.concatenate([line.x for line in lines])
    bottom, top = _padded(float(heights.min()), float(heights.max()))
    first, last = float(widths.min()), float(max(widths.max(), widths.min() + 1))

    def place(x: np.ndarray | float, y: np.ndarray | float) -> tuple[Any, Any]:
        across = LEFT + (np.asarray(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return across, TOP + (top - np.asarray(y)) / (top - bottom) * (HEIGHT - TOP - BOTTOM)

    drawn = []
    for line in lines:
        smooth = _smooth(line.y)
        low, high = (edge if (s := _smooth(edge)) is None else s for edge in line.band or (line.y, line.y))
        drawn.append({
            "label": line.label,
            "last": f"{line.y[np.isfinite(line.y)][-1]:.3g}",
            "raw": _path(*place(line.x, line.y)),
            "smooth": "" if smooth is None else _path(*place(line.x, smooth)),
            "band": _band(line.x, low, high, place) if line.band else "",
            "dots": np.round(np.stack(place(line.x, line.y), -1), 1).tolist() if dots else [],
        })  # fmt: skip
    across = [(round(float(place(t, 0)[0]), 1), f"{t:g}") for t in _ticks(first, last, 5) if float(t).is_integer()]
    up = [(round(float(place(0, t)[1]), 1), f"{t:.6g}") for t in _ticks(bottom, top, 4)]
    box = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT}
    return {"title": title, "caption": caption, "lines": drawn, "across": across, "up": up, "box": box}


def _padded(low: float, high: float) -> tuple[float, float]:
    constant = high - low <= 1e-9 * abs(high)  # a range within rounding has no ticks
    margin = (0.1 * abs(high) or 0.1) if constant else 0.06 * (high - low)
    return low - margin * (low != 0), high + margin  # a line that starts from 0 stands on the axis


def _ticks(low: float, high: float, count: int) -> list[float]:
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * min((m for m in (1, 2, 5, 10) if m * unit >= rough * 0.999), default=10)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _smooth(y: np.ndarray) -> np.ndarray | None:
    """Centred running mean over a twentieth of the run; None for short lines."""
    window = len(y) // 20
    if window < 2:
        return None
    known = np.isfinite(y)
    kernel = np.ones(2 * (window // 2) + 1)
    total, weight = np.convolve(np.where(known, y, 0), kernel, "same"), np.convolve(known, kernel, "same")
    return np.where(weight > 0, total / np.maximum(weight, 1), np.nan)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    parts, pen = [], "M"
    for a, b in zip(x, y, strict=True):
        if np.isfinite(b):
            parts.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L" if np.isfinite(b) else "M"
    return "".join(parts)


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray, place: Any) -> str:
    known = np.isfinite(low) & np.isfinite(high)
    there, back = (x[known], low[known]), (x[known][::-1], high[known][::-1])
    return _path(*place(*map(np.concatenate, zip(there, back, strict=True)))) + "Z" if known.any() else ""


def evaluation_charts(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Each figure over the evaluations of a run, on the items that all of them hold, with 95% bands."""
    charts = []
    steps = np.array([e.step for e in evaluations], float)
    for name, label in labels_of(evaluations).items() if len(evaluations) > 1 else ():
        values = figure_by_task(evaluations, name)
        if values[0]:
            found = [task_mean(side) for side in values]
            y, low, high = (np.array([getattr(e, part) for e in found]) for part in ("value", "low", "high"))
            caption = f"{sum(map(len, values[0].values()))} held-out items; band: 95% interval"
            charts.append(chart(label, caption, [Line(label, steps, y, (low, high))], dots=True))
    return charts


def drift_chart(drift: Drift) -> dict[str, Any]:
    """Agreement with oneself beside the judged score, over the evaluations of a run."""
    steps = np.array(drift.steps, float)
    lines = [
        Line(label, steps, np.array([e.value for e in found]), tuple(np.array([(e.low, e.high) for e in found]).T))
        for label, found in (("self-agreement", drift.agreement), (drift.judge, drift.judged))
    ]
    caption = f"{drift.items} held-out items that every evaluation holds; bands: 95% intervals"
    return chart("Self-agreement beside the judge", caption, lines, dots=True)


def metric_charts(rows: Sequence[Row]) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Charts of every metric by section, and the keys that were 0 throughout and need none."""
    x, columns = _columns(rows)
    zero = sorted(k for k, y in columns.items() if not np.nan_to_num(y).any())
    left = {k: y for k, y in columns.items() if k not in zero and k != "reward/std"}
    sections: dict[str, list[dict[str, Any]]] = {title: [] for title in SECTIONS.values()}
    for statistic, (title, caption) in BY_NAME.items():
        named = {k: m[1] for k in left if (m := re.fullmatch(rf"reward/(.+)/{statistic}", k))}
        lines = [Line(label, x, left.pop(key)) for key, label in named.items()]
        if lines:
            sections["Reward"].append(chart(title, caption, lines))
    order = list(CAPTIONS)
    for key in sorted(left, key=lambda k: (order.index(n) if (n := k.split("/")[-1]) in order else len(order), k)):
        prefix, _, name = key.rpartition("/")
        title, caption = CAPTIONS.get(name, (name.replace("_", " "), ""))
        band = None
        if key == "reward/mean" and "reward/std" in columns:
            band = (left[key] - columns["reward/std"], left[key] + columns["reward/std"])
        made = chart(title, caption, [Line(key, x, left[key], band)])
        section = SECTIONS.get("reward" if prefix == "groups" else prefix, "Other")
        sections.setdefault(section, []).insert(0 if key == "reward/mean" else len(sections.get(section, [])), made)
    return {title: charts for title, charts in sections.items() if charts}, zero


SPEEDS = (
    ("Tokens per second", "sampled and trained", ("tokens_per_second",)),
    ("Images per second", "sampled and trained", ("images_per_second",)),
    ("Model FLOP utilisation", "share of the device's peak", ("mfu",)),
)


def time_charts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Seconds of each phase over the steps, and what was done in them; phases that only some steps have are in the
    total alone."""
    x, columns = _columns(rows)
    drawn = (("Seconds per step", "by phase", PHASES[:3]), *SPEEDS)
    lines = {(title, about): [Line(k, x, columns[k]) for k in names if k in columns] for title, about, names in drawn}
    return [chart(*heads, some) for heads, some in lines.items() if some]


def _columns(rows: Sequence[Row]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps and each metric that has a number anywhere; long runs are averaged in bins. [N], {key: [N]}"""
    keys = dict.fromkeys(k for row in rows for k, v in row.items() if k != "step" and isinstance(v, int | float))
    size = max(1, math.ceil(len(rows) / BINS))
    columns = {k: _binned([v if (v := r.get(k)) is not None else math.nan for r in rows], size) for k in keys}
    kept = {k: y for k, y in columns.items() if np.isfinite(y).any()}
    return _binned([row["step"] for row in rows], size), kept


def _binned(values: Sequence[float], size: int) -> np.ndarray:
    padded = np.full(math.ceil(len(values) / size) * size, np.nan)
    padded[: len(values)] = np.where(np.isfinite(values), values, np.nan)
    bins = padded.reshape(-1, size)
    known = np.isfinite(bins).sum(-1)
    return np.where(known > 0, np.nansum(bins, -1) / np.maximum(known, 1), np.nan)


# -- the page ------------------------------------------------------------------------------------------------


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


def _pairs(sides: Sequence[Evaluation], field: str) -> Iterable[list[Row]]:
    """The records of each item that has the field on every side, in the order of the first side."""
    by_id = [{r["id"]: r for r in side.records if r[field] is not None} for side in sides]
    return ([records[i] for records in by_id] for i in (by_id[0] if by_id else ()) if all(i in r for r in by_id))


def gallery(sides: Sequence[Evaluation], folders: Sequence[Path]) -> list[Row]:
    """The first drawings that every side keeps, of the same items, with what was recorded of them.

    Args:
        folders: from where each side's records name their pictures.
    """
    pairs = list(_pairs(sides, "image"))[:GALLERY]
    return [
        {
            "records": pair,
            "source": data_uri(folders[0] / path) if (path := pair[0].get("source_image")) else None,
            "images": [data_uri(f / r["image"]) for f, r in zip(folders, pair, strict=True)],
        }
        for pair in pairs
    ]


def questions(sides: Sequence[Evaluation], folders: Sequence[Path]) -> list[Row]:
    """The first questions that every side replied to, those with a picture if there are any; `folders` as above."""
    pairs = [p for p in _pairs(sides, "reply") if p[0]["question"]]
    shown = [p for p in pairs if p[0]["question_image"]] or pairs
    return [
        {"records": p, "image": data_uri(folders[0] / path) if (path := p[0]["question_image"]) else None}
        for p in shown[:QUESTIONS]
    ]


def data_uri(path: Path) -> str | None:
    """The picture itself as a link, at most LARGEST pixels a side; None where the file is gone."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        picture = image.convert("RGB")
    form = "WEBP" if max(picture.size) > LARGEST else "PNG"
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


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
