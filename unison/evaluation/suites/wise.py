"""WISE: prompts that need knowledge to be drawn, and a judge that gives each drawing three marks of 0 to 2.

WiScore is (0.7 consistency + 0.2 realism + 0.1 aesthetic quality) / 2, from 0 to 1. The overall score weighs the means
of six categories by their number of published prompts.

Source: Niu et al. 2025, arXiv 2503.07265. Published numbers are judged by gpt-4o-2024-05-13, on one drawing a prompt.
What the judge is asked here is in our own words; `--request` takes others, such as the authors'.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from unison.evaluation.records import Cuts, Evaluation, Record, by_task, cuts, merged
from unison.evaluation.suites.base import Job
from unison.evaluation.suites.judged import JudgedOptions, JudgedRun, fill
from unison.evaluation.suites.tables import Row, digest, read_rows
from unison.types import Item

COLUMNS = ("Prompt", "Explanation", "Subcategory", "prompt_id")
FILE = "WISE's cultural_common_sense.json, spatio-temporal_reasoning.json and natural_science.json"
WEIGHTS = {"cultural": 0.4, "time": 0.167, "space": 0.133, "biology": 0.1, "physics": 0.1, "chemistry": 0.1}
"""Categories, and what each weighs in the overall score."""
TIMES = ("Longitudinal time", "Horizontal time")  # the subcategories of spatio-temporal prompts that are about time
MARKS = {"consistency": 0.7, "realism": 0.2, "aesthetic": 0.1}
"""Marks, and what each weighs in WiScore."""
BEST = 2
PUBLISHED_IMAGES = 1
LINE = re.compile(r"(consistency|realism|aesthetic)(?:[ _]quality)?[*\"\s]*[:=]?[*\"\s]*(\d+(?:\.\d+)?)", re.IGNORECASE)
"""A mark in a reply, in bold, in JSON or plain."""
REQUEST = """Mark a picture that a model drew for a prompt. Be strict: when in doubt, give the lower mark.

Prompt: {prompt}
What it means: {explanation}

Consistency: does the picture show what the prompt means, as explained above?
0: it misses or contradicts the main thing. 1: it shows part of it, or not precisely. 2: it shows all of it, clearly.
Realism: could it be a photograph of something real?
0: impossible or plainly artificial. 1: believable with visible faults. 2: like a photograph in light, matter and space.
Aesthetic quality: how well is it composed and rendered?
0: poor. 1: acceptable. 2: outstanding.

Answer with these three lines alone, each with one mark of 0, 1 or 2:
Consistency: <mark>
Realism: <mark>
Aesthetic Quality: <mark>"""


@dataclass(frozen=True, kw_only=True)
class Options(JudgedOptions):
    """What is drawn, who judges it, and which prompts."""

    prompts: tuple[str, ...]
    """WISE's three JSON files, the folder that holds them, any tables of their fields, or hub ids."""
    images: int = PUBLISHED_IMAGES


def prepare(options: Options, job: Job) -> Callable[[], Evaluation | None]:
    """What evaluates; prompts and judge are there.

    Raises:
        ValueError: prompts that cannot be read, a judge that does not answer, bad numbers.
    """
    options.check()
    if not options.prompts:
        raise ValueError(f"prompts = (): give {FILE}")
    rows = [row for source in options.prompts for row in read_rows(source, COLUMNS, FILE)]
    items = read_prompts(rows)
    request = options.read_request(REQUEST, ["prompt", "explanation"])
    asked = {
        "prompts": list(options.prompts),
        "prompts_digest": digest(rows),
        "prompts_by_task": dict(Counter(item.task for item in items)),
        "category_weights": WEIGHTS,
        "mark_weights": MARKS,
        "request": request,
    }
    requests = [
        {"marks": fill(request, prompt=item.prompt or "", explanation=row.text("Explanation"))}
        for item, row in zip(items, rows, strict=True)
    ]
    return WISE(options, job, items, options.load_judge("text", job), requests, asked)


@dataclass(frozen=True)
class WISE(JudgedRun):
    """Drawings with the judge's three marks."""

    name: ClassVar = "wise"

    def read(self, text: str) -> dict[str, int] | None:
        return read_marks(text)

    def measure(self, number: int, told: Mapping[str, dict[str, int] | None]) -> Record:
        item, marks = self.items[number], told["marks"]
        known = dict.fromkeys(["wiscore", *MARKS]) if marks is None else {"wiscore": wiscore(marks), **marks}
        return {"id": item.id, "task": item.task, "prompt": item.prompt, **known}

    def figures(self, records: Sequence[Record]) -> Mapping[str, Cuts]:
        return figures(records)

    def notes(self, records: Sequence[Record]) -> list[str]:
        request, images = self.options.request, self.options.images
        words = "in our words, not the authors'" if request is None else f"as {request} says"
        told = [
            "Published numbers are judged by gpt-4o-2024-05-13, asked in its authors' words; this judge is asked "
            f"{words}: compare figures of one judge and one request alone."
        ]
        if absent := [task for task in WEIGHTS if task not in by_task(records, "wiscore")]:
            told.append(f"There is no score in {', '.join(absent)}: the others' weights make up the overall score.")
        if images != PUBLISHED_IMAGES:
            told.append(f"Published numbers take {PUBLISHED_IMAGES} drawing of each prompt, these {images}.")
        if len(self.items) != 1000:
            told.append(f"WISE has 1000 prompts, these are {len(self.items)}.")
        return told


def read_prompts(rows: Sequence[Row]) -> list[Item]:
    """The prompts, with their category as task.

    Raises:
        ValueError: a row that cannot be read, or a number that occurs twice.
    """
    items: dict[str, Item] = {}
    for row in rows:
        number = row.number("prompt_id")
        row.text("Explanation")
        if str(number) in items:
            raise ValueError(f"{row.where}: prompt_id = {number} occurs twice; give every prompt a number of its own")
        items[str(number)] = Item(id=str(number), prompt=row.text("Prompt"), task=category(number, row))
    return list(items.values())


def category(number: int, row: Row) -> str:
    """The category that the published programs put a prompt into: by its number, time and space by subcategory.

    Raises:
        ValueError: a number that is none of WISE's.
    """
    if 1 <= number <= 400:
        return "cultural"
    if number <= 700 and number:
        return "time" if row.text("Subcategory") in TIMES else "space"
    if 701 <= number <= 1000:
        return ("biology", "physics", "chemistry")[(number - 701) // 100]
    raise ValueError(f"{row.where}: prompt_id = {number} is not from 1 to 1000, by which WISE tells categories apart")


# -- the score ---------------------------------------------------------------------------------------------------------


def read_marks(text: str) -> dict[str, int] | None:
    """The three marks of a reply, its thoughts left out and the last of each; None unless all are 0, 1 or 2."""
    marks = {name.lower(): float(mark) for name, mark in LINE.findall(text.rpartition("</think>")[2])}
    if marks.keys() != MARKS.keys() or not set(marks.values()) <= {0.0, 1.0, 2.0}:
        return None
    return {name: int(mark) for name, mark in marks.items()}


def wiscore(marks: Mapping[str, int]) -> float:
    """The weighted mean of the marks, from 0 to 1."""
    return sum(weight * marks[name] for name, weight in MARKS.items()) / BEST


def figures(records: Sequence[Record]) -> dict[str, Cuts]:
    """WiScore and the means of the marks, in each category and over all as weighted; prompts are resampled."""
    found, names = {}, ("wiscore", *MARKS)
    prompts = merged(records, names)
    for name in names:
        some = by_task(prompts, name)
        if columns := {task: some[task] for task in WEIGHTS if task in some}:
            found[name] = cuts(columns, WEIGHTS)
    return found
