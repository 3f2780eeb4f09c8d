"""Two checkpoints side by side: what a suite found of each, paired by item and task, as JSON, a table and a page.

A side is a checkpoint, which is evaluated first, or a folder or file of results that is there already. Differences are
B - A on the items that both hold, with 95% bootstrap intervals that resample those items.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unison.evaluation.environment import describe
from unison.evaluation.records import ALL, CONDITIONALS, Evaluation, Record, by_task, merged, paired
from unison.evaluation.stats import signed, task_mean
from unison.evaluation.suites import Suite, card
from unison.evaluation.suites.base import RESULTS, Job, slug
from unison.evaluation.suites.card import table
from unison.reports.comparison import Comparison, compare, compare_shares, verdict
from unison.reports.gallery import gallery, questions
from unison.reports.page import render

LABELS = ("A", "B")
OWN = ("checkpoint", "checkpoint_files", "family", "drawings", "drawings_files")
"""What the protocols of two sides may differ in without a note."""
SHOWN = {"drawing_correct": "correct", "drawing_reason": "reason"}
"""Fields of the page, and what suites of drawings alone call them."""


@dataclass(frozen=True)
class Side:
    """One of the two: its name, its result, and the folder from which the result's records name pictures."""

    name: str
    result: Evaluation
    folder: Path


@dataclass(frozen=True)
class Compared:
    """The figures that both sides have."""

    suite: str
    sides: Sequence[Side]
    figures: Mapping[str, list[Comparison]]
    """Over all tasks first, then by task."""
    notes: Sequence[str]

    @property
    def heads(self) -> list[str]:
        return ["figure", "task", "items", *LABELS, "B - A [95% interval]"]

    def rows(self) -> list[list[str]]:
        """The cells of the table."""
        return [
            [name, row.label, str(row.items), *(f"{e.value:.3f}" for e in row.sides), row.difference.with_signs]
            for name, rows in self.figures.items()
            for row in rows
            if row.difference  # there are two sides
        ]

    def markdown(self) -> str:
        sides = "\n".join(f"- {label}: {side.name}" for label, side in zip(LABELS, self.sides, strict=True))
        return "\n\n".join([f"# {self.suite}: B against A", sides, table(self.heads, self.rows()), *self.notes]) + "\n"

    def save(self, path: Path) -> None:
        """Writes the JSON file, and the Markdown table and the HTML page beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._json(), indent=1))
        path.with_suffix(".md").write_text(self.markdown())
        path.with_suffix(".html").write_text(render("compare.html.jinja", self._view()), encoding="utf-8")

    def _json(self) -> dict[str, Any]:
        figures: dict[str, dict[str, Any]] = {}
        for name, rows in self.figures.items():
            for row in rows:
                told = dataclasses.asdict(row)
                cut = ALL if row is rows[0] else told["label"]
                figures.setdefault(name, {})[cut] = {part: told[part] for part in ("items", "sides", "difference")}
        sides = [{"name": side.name, "protocol": side.result.protocol} for side in self.sides]
        told = {"suite": self.suite, "sides": sides, "figures": figures, "notes": self.notes}
        return told | {"environment": describe()}

    def _view(self) -> dict[str, Any]:
        """What the page shows."""
        shown = [Evaluation(0, list(map(_shown, side.result.records))) for side in self.sides]
        folders = [side.folder for side in self.sides]
        titled = {name.replace("_", " "): rows for name, rows in self.figures.items()}
        common, differing = _protocols(self.sides)
        return {
            "suite": self.suite,
            "names": dict(zip(LABELS, (side.name for side in self.sides), strict=True)),
            "labels": LABELS,
            "sides": self.sides,
            "results": titled,
            "verdict": verdict(titled),
            "notes": self.notes,
            "gallery": gallery(shown, folders),
            "questions": questions(shown, folders),
            "protocol": common,
            "differing": differing,
            "signed": signed,
        }


def place(job: Job, names: Sequence[str]) -> tuple[list[Job], Path]:
    """The job of each side, and the folder or file of the comparison.

    Without `--out` a side's results are where an evaluation of it alone puts them, so that what is finished counts.
    """
    if job.out is None:
        outs, where = [None, None], RESULTS / "-against-".join(slug(name) for name in reversed(names))
    else:
        folder = job.out.parent if job.out.suffix == ".json" else job.out
        outs, where = [folder / slug(name) for name in names], job.out
    return [dataclasses.replace(job, checkpoint=name, out=out) for name, out in zip(names, outs, strict=True)], where


def prepare(suite: Suite, options: Any, job: Job) -> Callable[[], Side | None]:
    """What gives a side: an evaluation that saves its result, or the reading of a finished one.

    Raises:
        ValueError: options that cannot work, no such checkpoint, results that cannot be read.
    """
    if found := _finished(Path(job.checkpoint), suite.name):
        side = Side(job.checkpoint, Evaluation.load(found), found.parent)
        if (name := side.result.suite) != suite.name:
            told = f"the suite {name}" if name else "a run"
            raise ValueError(f"{found} is a result of {told}, not of the suite {suite.name}")
        return lambda: side
    run = suite.prepare(options, job)

    def evaluate() -> Side | None:
        result = run()
        if result is None:
            return None
        card.save(result, job)
        return Side(job.checkpoint, result, job.file(suite.name).parent)

    return evaluate


def _finished(path: Path, suite: str) -> Path | None:
    """The result that a path names instead of a checkpoint: a JSON file, or the suite's in a folder of results."""
    if path.suffix == ".json":
        return path
    inside = path / f"{suite}.json"
    return inside if inside.is_file() and not (path / "config.json").is_file() else None


def side_by_side(a: Side, b: Side) -> Compared:
    """Compares two results of one suite.

    Raises:
        ValueError: they hold no item in common, or items of one id that ask for different things.
    """
    sides, results = (a, b), (a.result, b.result)
    fields = {name: a.result.fields.get(name, name) for name in a.result.figures if name in b.result.figures}
    fields = {n: f for n, f in fields.items() if n in CONDITIONALS or all(_is_measured(f, r.records) for r in results)}
    whole = [replace(result, records=merged(result.records, fields.values())) for result in results]
    left = _check_asked(whole, sides)
    figures, notes = {}, _notes(sides, left)
    for name, field in fields.items():
        rows = (compare_shares if name in CONDITIONALS else compare)(whole, field)
        if all(_is_plain(name, field, result) for result in whole):
            figures |= {name: rows} if rows else {}
        else:
            figures |= {f"{name}: {row.label}": [row] for row in rows[1:]}
            notes.append(f"`{name}` over all tasks is weighed by its suite: it is compared task by task.")
    return Compared(a.result.suite, sides, figures, notes)


def _is_plain(name: str, field: str, result: Evaluation) -> bool:
    """Whether the figure over all tasks is the mean over tasks of the mean over items, as it is compared."""
    stated = result.figures[name].get(ALL)
    if name in CONDITIONALS or stated is None:
        return True
    values = by_task(result.records, field)
    return not values or math.isclose(task_mean(values).value, stated.value, abs_tol=1e-6)


def _is_measured(field: str, records: Sequence[Record]) -> bool:
    """Whether records have numbers in the field, or nothing."""
    return all((value := record.get(field)) is None or isinstance(value, int | float) for record in records)


def _check_asked(whole: Sequence[Evaluation], sides: Sequence[Side]) -> list[int]:
    """How many items of each side the other lacks, those of both being the same.

    Raises:
        ValueError: there are none in common, or some are not the same.
    """
    names, pairs = " and ".join(side.name for side in sides), list(zip(*paired(whole), strict=True))
    if not pairs:
        raise ValueError(f"{names} hold no item in common: evaluate both with the same options")
    for one, other in pairs:
        for field in ("prompt", "question"):
            if one.get(field) != other.get(field):
                raise ValueError(
                    f"{names} hold different items of one name, {one['id']!r}: {field} {one.get(field)!r} and "
                    f"{other.get(field)!r}; evaluate both with the same options"
                )
    return [len(result.records) - len(pairs) for result in whole]


def _notes(sides: Sequence[Side], left: Sequence[int]) -> list[str]:
    """What a reader of the differences must know."""
    notes = []
    if differing := _protocols(sides)[1]:
        told = ", ".join(f"{name} ({a} and {b})" for name, (a, b) in differing.items())
        notes.append(f"The protocols differ in {told}: the differences are not those of the checkpoints alone.")
    if any(left):
        notes.append(f"{left[0]} items of A and {left[1]} of B are not on both sides, and are left out.")
    return notes + list(dict.fromkeys(note for side in sides for note in side.result.notes))


def _protocols(sides: Sequence[Side]) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """What holds for both sides, and what does not, the sides themselves apart."""
    a, b = (side.result.protocol for side in sides)
    names = [name for name in {**a, **b} if name not in OWN]
    common = {name: a[name] for name in names if name in a and name in b and a[name] == b[name]}
    return common, {name: (a.get(name), b.get(name)) for name in names if name not in common}


def _shown(record: Record) -> Record:
    """A record as the page's pieces read it; drawings of one item are told apart by their key."""
    named = {field: record.get(other) for field, other in SHOWN.items() if record.get(field) is None}
    return record | named | {"id": record.get("key", record.get("id"))}
