"""DPG-Bench: N drawings of every long prompt, and yes/no questions about each, of which some depend on others.

A question counts as answered with No where one that it depends on does (Davidsonian Scene Graph, Cho et al. 2023,
arXiv 2310.18235). A drawing's score is the share of its questions that count as Yes, the overall score the mean over
prompts of the mean over their drawings. Categories are shares of plain answers, without the rule, as published.

Source: ELLA, Hu et al. 2024, arXiv 2403.05135. Left out: mPLUG-large, which answers the published numbers' questions
and which `transformers` does not have; the grid that the published program cuts four drawings out of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from unison.evaluation.records import ALL, Cuts, Evaluation, Record, by_task, merged
from unison.evaluation.stats import pooled_share, task_mean
from unison.evaluation.suites.base import Job
from unison.evaluation.suites.judged import JudgedOptions, JudgedRun, fill
from unison.evaluation.suites.tables import Row, digest, read_rows
from unison.rewards.llm_judge import read_verdict
from unison.types import Item

COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
FILE = "DPG-Bench's dpg_bench.csv"
REQUEST = "{question}\nAnswer with one word, Yes or No."
PUBLISHED_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Options(JudgedOptions):
    """What is drawn, who judges it, and which prompts."""

    prompts: str
    """DPG-Bench's dpg_bench.csv, any table of its columns, or a hub id of one."""
    skip_bad_prompts: bool = False
    """Leave out prompts with a row that cannot be read, as the published program does, and count them."""


@dataclass(frozen=True)
class Question:
    """A question about a drawing."""

    number: int
    text: str
    parents: tuple[int, ...]
    """Questions that must be answered with Yes for this one to count."""
    category: str
    """Level 1, such as `attribute`."""
    detail: str
    """Level 2 in it, such as `color`."""


@dataclass(frozen=True)
class Prompt:
    """A prompt and the questions about its drawings, in the order of the file."""

    item: Item
    questions: tuple[Question, ...]


def prepare(options: Options, job: Job) -> Callable[[], Evaluation | None]:
    """What evaluates; prompts and judge are there.

    Raises:
        ValueError: prompts that cannot be read, a judge that does not answer, bad numbers.
    """
    options.check()
    rows = read_rows(options.prompts, COLUMNS, FILE)
    prompts, bad = read_questions(rows, options.skip_bad_prompts)
    request = options.read_request(REQUEST, ["question"])
    asked = {
        "prompts": options.prompts,
        "prompts_digest": digest(rows),
        "prompts_used": len(prompts),
        "prompts_left_out": len(bad),
        "questions": sum(len(prompt.questions) for prompt in prompts),
        "request": request,
    }
    requests = [{str(q.number): fill(request, question=q.text) for q in prompt.questions} for prompt in prompts]
    items = [prompt.item for prompt in prompts]
    return DPG(options, job, items, options.load_judge("verdict", job), requests, asked, prompts, bad)


@dataclass(frozen=True)
class DPG(JudgedRun):
    """Drawings with the judge's Yes or No to each question."""

    name: ClassVar = "dpg"

    prompts: Sequence[Prompt]
    bad: Sequence[str]
    """What is wrong with the prompts left out."""

    def read(self, text: str) -> bool | None:
        verdict = read_verdict(text)
        return None if verdict is None else bool(verdict)

    def measure(self, number: int, told: Mapping[str, bool | None]) -> Record:
        item, questions = self.items[number], self.prompts[number].questions
        answers = {question.number: told[str(question.number)] for question in questions}
        return {"id": item.id, "task": ALL, "prompt": item.prompt, "score": score(questions, answers)}

    def figures(self, records: Sequence[Record]) -> Mapping[str, Cuts]:
        return figures(self.prompts, records)

    def notes(self, records: Sequence[Record]) -> list[str]:
        told = ["Published numbers are answered by mPLUG-large: compare figures of one judge and one request alone."]
        if unscored := sum(one["score"] is None for one in records):
            told.append(f"{unscored} of {len(records)} drawings have no score, since an answer that it needs failed.")
        if self.bad:
            told.append(f"{len(self.bad)} prompts are left out; the first: {self.bad[0]}.")
        if (images := self.options.images) != PUBLISHED_IMAGES:
            told.append(f"Published numbers take {PUBLISHED_IMAGES} drawings of each prompt, these {images}.")
        return told


# -- the file ----------------------------------------------------------------------------------------------------------


def read_questions(rows: Sequence[Row], skip_bad: bool = False) -> tuple[list[Prompt], list[str]]:
    """The prompts of a table with a question a row, and what is wrong with those left out.

    Raises:
        ValueError: a row that cannot be read and is not to be left out, or nothing is left.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.text("item_id"), []).append(row)
    prompts, bad = [], []
    for name, group in groups.items():
        try:
            prompts.append(_read_prompt(name, group))
        except ValueError as error:
            if not skip_bad:
                raise ValueError(f"{error}. --skip-bad-prompts leaves such prompts out and counts them") from error
            bad.append(str(error))
    if not prompts:
        raise ValueError(f"no prompt can be read; the first: {bad[0]}")
    return prompts, bad


def _read_prompt(name: str, rows: Sequence[Row]) -> Prompt:
    text = rows[0].text("text")
    if other := [row for row in rows if row.text("text") != text]:
        raise ValueError(f"{other[0].where}: text is another than in the item's first row; give each prompt an item_id")
    questions = [_read_question(row) for row in rows]
    known = {question.number for question in questions}
    if len(known) < len(questions):
        raise ValueError(f"{rows[0].where}: item_id {name!r} has two rows of one proposition_id; number them apart")
    for row, question in zip(rows, questions, strict=True):
        if absent := [n for n in question.parents if n not in known - {question.number}]:
            raise ValueError(
                f"{row.where}: dependency = {row.text('dependency')!r}, but {absent[0]} is no other proposition_id of "
                f"item {name!r}; add its row, or write 0 for none"
            )
    return Prompt(Item(id=name, prompt=text), tuple(questions))


def _read_question(row: Row) -> Question:
    parts = row.text("dependency").removesuffix(".0").split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise ValueError(
            f"{row.where}: dependency = {row.text('dependency')!r} is no list of proposition_ids; write such as 1,2, "
            "or 0 for none"
        )
    parents = tuple(n for part in parts if (n := int(part)))
    category, _, detail = row.text("tuple").partition("(")[0].partition("-")
    if not category.strip():
        raise ValueError(
            f"{row.where}: tuple = {row.text('tuple')!r} names no category; write such as entity - whole (x)"
        )
    question = row.text("question_natural_language")
    return Question(row.number("proposition_id"), question, parents, category.strip(), detail.strip() or "(none)")


# -- the score ---------------------------------------------------------------------------------------------------------


def settle(questions: Sequence[Question], answers: Mapping[int, bool | None]) -> dict[int, bool | None]:
    """What each question counts as: False where its answer or a parent is False, None where that is not known.

    Questions are taken in the order of the file, as the published program does: a parent counts as what it has come to
    so far, so that a No reaches grandchildren that stand below their parents.
    """
    held = dict(answers)
    for question in questions:
        values = [held[question.number], *(held[parent] for parent in question.parents)]
        held[question.number] = False if False in values else None if None in values else True
    return held


def score(questions: Sequence[Question], answers: Mapping[int, bool | None]) -> float | None:
    """The share of questions that count as Yes; None while one of them is not known."""
    held = settle(questions, answers)
    if None in held.values():
        return None
    return sum(map(bool, held.values())) / len(held)


def figures(prompts: Sequence[Prompt], records: Sequence[Record]) -> dict[str, Cuts]:
    """The score; shares of Yes among plain answers by category, and in its details; the same in the last drawings.

    The published program takes categories from the last of a prompt's drawings alone: `answers_last`. What is resampled
    for the intervals is prompts.
    """
    scores = by_task(merged(records, ["score"]), "score")
    found: dict[str, Cuts] = {"score": {ALL: task_mean(scores)} if scores else {}}
    questions = {prompt.item.id: prompt.questions for prompt in prompts}
    last = {one["id"]: one for one in records}
    found["answers"] = _by_category(questions, records)
    found["answers_last"] = _by_category(questions, last.values())
    details = dict.fromkeys(q.detail for prompt in prompts for q in prompt.questions)
    for detail in details:
        some = {name: [q for q in asked if q.detail == detail] for name, asked in questions.items()}
        found[f"answers/{detail}"] = _by_category(some, records)
    return {name: cuts for name, cuts in found.items() if cuts}


def _by_category(questions: Mapping[str, Sequence[Question]], records: Iterable[Record]) -> Cuts:
    """The share of Yes among answers to these questions: of all and of each category that has any."""
    counts: dict[str, dict[str, list[int]]] = {}  # cut -> item -> Yes, answers
    for one in records:
        for question in questions[one["id"]]:
            if (answer := one["told"][str(question.number)]) is not None:
                for cut in (ALL, question.category):
                    row = counts.setdefault(cut, {}).setdefault(one["id"], [0, 0])
                    row[0], row[1] = row[0] + answer, row[1] + 1
    return {cut: pooled_share([(yes, n) for yes, n in rows.values()]) for cut, rows in counts.items()}
