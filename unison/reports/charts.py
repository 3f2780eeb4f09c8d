"""The charts of a report: lines over steps, as paths and ticks that the template draws."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unison.evaluation.drift import Drift
from unison.evaluation.records import Evaluation, columns_of
from unison.evaluation.stats import Estimate, task_mean
from unison.reports.comparison import labels_of
from unison.reports.run_folder import Row

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
PHASES = ("rollout", "reward", "update", "evaluation", "checkpoint")
BY_NAME = {  # statistics of each reward, all rewards in one chart
    "mean": ("Rewards by name", "mean over trajectories"),
    "abstained": ("Abstained", "what a reward could not judge"),
}
SPEEDS = (
    ("Tokens per second", "sampled and trained", ("tokens_per_second",)),
    ("Images per second", "sampled and trained", ("images_per_second",)),
    ("Model FLOP utilisation", "share of the device's peak", ("mfu",)),
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 340, 176, 44, 10, 8, 22  # of a chart and its margins
BINS = 400  # most points of a line; longer runs are averaged in bins


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
    charts, steps = [], [e.step for e in evaluations]
    for name, label in labels_of(evaluations).items() if len(steps) > 1 else ():
        values = columns_of(evaluations, name)
        if values[0]:
            caption = f"{sum(map(len, values[0].values()))} held-out items; band: 95% interval"
            charts.append(chart(label, caption, [_course(label, steps, map(task_mean, values))], dots=True))
    return charts


def drift_chart(drift: Drift) -> dict[str, Any]:
    """Agreement with oneself beside the judged score, over the evaluations of a run."""
    both = (("self-agreement", drift.agreement), (drift.judge, drift.judged))
    caption = f"{drift.items} held-out items that every evaluation holds; bands: 95% intervals"
    lines = [_course(label, drift.steps, found) for label, found in both]
    return chart("Self-agreement beside the judge", caption, lines, dots=True)


def _course(label: str, steps: Sequence[int], found: Iterable[Estimate]) -> Line:
    """A figure over the steps, with its intervals as the band."""
    value, low, high = np.array([(e.value, e.low, e.high) for e in found]).T
    return Line(label, np.array(steps, float), value, (low, high))


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
