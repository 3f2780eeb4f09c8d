"""What evaluations hold: a record for each item or drawing, the figures that records come to, and records of several
evaluations paired by item.

A run's evaluations, the results of suites, drift, comparisons and reports all read this. A figure is the mean of a
field, or a conditional share; records without the field are left out of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeAlias

from unison.evaluation.environment import describe
from unison.evaluation.stats import Estimate, Pairs, conditional, task_mean

Record: TypeAlias = dict[str, Any]
Cuts: TypeAlias = Mapping[str, Estimate]
"""A figure over all tasks and in each; a task without it is absent."""
Key: TypeAlias = tuple[str, str]
"""Task and name of an item."""

ALL = "all"
"""The cut over all tasks: the mean of theirs, or for a conditional share the share over all items."""
FIGURES = {
    "drawing": "drawing_correct",
    "drawing_partial": "drawing_score",
    "answer": "answer_correct",
    "format": "format_ok",
    "own_answer": "own_answer_correct",
    "drift": "drift",
    "probe": "probe_correct",
}
"""Figures of held-out items, and the record's field that each one averages."""
CONDITIONALS = {
    "answer_given_drawing": ("drawing_correct", "own_answer_correct"),
    "drawing_given_answer": ("own_answer_correct", "drawing_correct"),
}
"""Conditional shares, and the fields of condition and event; both are about the model's own drawing."""
REWARD = "reward/"  # begins the field of a measured reward


@dataclass(frozen=True)
class Evaluation:
    """Records and the figures that they come to: of a run at a step, or of a checkpoint by a suite."""

    step: int
    """Of the run; 0 in a suite's."""
    records: Sequence[Record]
    """What was measured, one for each item, or for each drawing of it."""
    suite: str = ""
    """Empty in a run's, which holds no more than step and records: its configuration is the protocol."""
    protocol: Mapping[str, Any] = field(default_factory=dict)
    """All that the figures depend on, JSON-able."""
    stated: Mapping[str, Cuts] = field(default_factory=dict)
    """The figures as the suite takes them."""
    notes: Sequence[str] = ()
    """What a reader of the figures must know."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was asked of a judge, what of it failed and what it cost."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """The field of records that a figure averages, where it has another name than the figure."""

    @cached_property
    def figures(self) -> Mapping[str, Cuts]:
        """A suite's own; else each one of `fields` that any record has, then the conditional shares."""
        return self.stated if self.suite else means(self.records, fields(self.records)) | shares(self.records)

    def overall(self) -> dict[str, Estimate]:
        """The figures over all tasks."""
        return {name: cuts[ALL] for name, cuts in self.figures.items() if ALL in cuts}

    def save(self, place: Path) -> None:
        """Writes the JSON file, or `<step>.json` into a folder; a suite's tells on what machine it was made."""
        told: dict[str, Any] = {"step": self.step, "records": self.records}
        if self.suite:
            figures = {name: {cut: vars(e) for cut, e in cuts.items()} for name, cuts in self.stated.items()}
            told = {"suite": self.suite, "protocol": self.protocol, "figures": figures, "records": self.records}
            told |= {"notes": self.notes, "counts": self.counts, "fields": self.fields, "environment": describe()}
        file = place if place.suffix == ".json" else place / f"{self.step:06d}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(told, indent=1))

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is no evaluation.
        """
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            if "suite" not in told:
                return cls(told["step"], told["records"])
            figures = told["figures"].items()
            stated = {name: {cut: Estimate(**e) for cut, e in cuts.items()} for name, cuts in figures}
            more = {name: told[name] for name in ("notes", "counts", "fields") if name in told}
            return cls(0, told["records"], told["suite"], told["protocol"], stated, **more)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is not the result of a suite, nor a run's evaluation ({error}): give what `unison eval` wrote"
            ) from error


def joined(parts: Sequence[Evaluation]) -> Evaluation:
    """One evaluation of items that were dealt out in turn."""
    rounds = zip_longest(*(part.records for part in parts))
    return Evaluation(parts[0].step, [record for each in rounds for record in each if record is not None])


# -- figures -----------------------------------------------------------------------------------------------------------


def fields(records: Iterable[Record]) -> dict[str, str]:
    """Every figure that records may have, and its field: FIGURES, and the measured rewards under their own names."""
    return FIGURES | {name: name for name in measured(records)}


def measured(records: Iterable[Record]) -> list[str]:
    """The fields of measured rewards, `reward/<name>`, in the order of the configuration."""
    return list(dict.fromkeys(field for record in records for field in record if field.startswith(REWARD)))


def by_task(records: Iterable[Record], field: str) -> dict[str, list[float]]:
    """Values of a field by task type, records without it left out."""
    columns: dict[str, list[float]] = {}
    for record in records:
        if record.get(field) is not None:
            columns.setdefault(record["task"], []).append(float(record[field]))
    return columns


def cuts(columns: Mapping[str, Sequence[float]], weights: Mapping[str, float] | None = None) -> Cuts:
    """A figure from its values by task: over all tasks, weighed alike or as given, and in each."""
    single = {task: task_mean({task: values}) for task, values in columns.items()}
    return {ALL: task_mean(columns, weights)} | single


def means(records: Sequence[Record], fields: Mapping[str, str]) -> dict[str, Cuts]:
    """Each figure of which any record has the field."""
    columns = {name: by_task(records, field) for name, field in fields.items()}
    return {name: cuts(column) for name, column in columns.items() if column}


def deciding(records: Sequence[Record]) -> tuple[str, ...]:
    """The figures by whose sum evaluations like this one are ranked: the first measured reward, else `drawing` and
    `answer`, else `own_answer`, as far as they have values; none where nothing has."""
    having = [name for name, field in fields(records).items() if by_task(records, field)]
    choices = (measured(records)[:1], ("drawing", "answer"), ("own_answer",))
    found = (tuple(name for name in choice if name in having) for choice in choices)
    return next((some for some in found if some), ())


def quality(records: Sequence[Record], names: Sequence[str]) -> float | None:
    """The sum of figures; None without any, or where one has no values."""
    columns = [by_task(records, fields(records).get(name, "")) for name in names]
    return sum(task_mean(column).value for column in columns) if columns and all(columns) else None


def pairs_by_task(records: Iterable[Record], name: str) -> dict[str, list[tuple[bool, bool]]]:
    """Condition and event of a conditional share by task type, records that lack either left out."""
    columns: dict[str, list[tuple[bool, bool]]] = {}
    condition, event = CONDITIONALS[name]
    for record in records:
        if record.get(condition) is not None and record.get(event) is not None:
            columns.setdefault(record["task"], []).append((record[condition], record[event]))
    return columns


def shares(records: Sequence[Record]) -> dict[str, Cuts]:
    """The conditional shares; a cut in which no record meets the condition is left out."""
    found: dict[str, Cuts] = {}
    for name in CONDITIONALS:
        pairs = pairs_by_task(records, name)
        parts: dict[str, Pairs] = {ALL: pairs, **{task: {task: rows} for task, rows in pairs.items()}}
        if met := {cut: conditional(part) for cut, part in parts.items() if is_met(part)}:
            found[name] = met
    return found


def is_met(pairs: Pairs) -> bool:
    """Whether any item meets the condition."""
    return any(condition for rows in pairs.values() for condition, _ in rows)


# -- items -------------------------------------------------------------------------------------------------------------


def key_of(record: Record) -> Key:
    """What a record is about: its task, and its `id` or the part of its `key` that the records of one item share."""
    return record["task"], record["id"] if "id" in record else record["key"].split("/")[0]


def merged(records: Iterable[Record], fields: Iterable[str]) -> list[Record]:
    """A record for each item: its first, with the mean of each field over those of its records that have it."""
    items: dict[Key, list[Record]] = {}
    for record in records:
        items.setdefault(key_of(record), []).append(record)
    return [
        some[0] | {"id": name} | {field: _mean(some, field) for field in fields} for (_, name), some in items.items()
    ]


def _mean(records: Sequence[Record], field: str) -> float | None:
    values = [float(record[field]) for record in records if record.get(field) is not None]
    return sum(values) / len(values) if values else None


def paired(sides: Sequence[Evaluation], *fields: str) -> list[list[Record]]:
    """Of each side the records of the items that all sides hold with these fields, in the order of the first."""
    found = [{key_of(r): r for r in side.records if all(r.get(f) is not None for f in fields)} for side in sides]
    shared = [key for key in (found[0] if found else ()) if all(key in records for records in found)]
    return [[records[key] for key in shared] for records in found]


def columns_of(sides: Sequence[Evaluation], field: str) -> list[dict[str, list[float]]]:
    """Values of a field by task for each side, over the items that have it on every side, in one order."""
    return [by_task(records, field) for records in paired(sides, field)]
