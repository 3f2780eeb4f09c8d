"""N drawings of every prompt and a judge's answers about each: what the suites share whose judge looks and answers.

A request that fails, or whose answer cannot be read, is counted and has no value: it is never taken for a No or a 0.
When the evaluation is gone on with, the drawings concerned are made again and only what failed is asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unison.evaluation.suites.batches import finish
from unison.evaluation.suites.common import Cuts, Job, Record, Result
from unison.evaluation.suites.drawings import DrawingOptions, Drawings, Key, shares
from unison.evaluation.suites.ledger import Ledger
from unison.rewards.visual_judge import Form, Request, Told, VisualJudge, load_judge
from unison.types import Item

if TYPE_CHECKING:
    from PIL.Image import Image

EXCERPT = 80  # characters of an answer that cannot be read which a record repeats
NONSENSE = "unreadable"
"""Names the failure of an answer that came and cannot be read."""


@dataclass(frozen=True, kw_only=True)
class JudgedOptions(DrawingOptions):
    """What is drawn, and who judges it."""

    judge: str
    """Who looks and answers: a folder or hub id of an image-text model of `transformers`, or the address of an
    OpenAI-compatible endpoint, http://host:port/v1#model, whose token is read from UNISON_API_KEY."""
    judge_timeout: float = 120.0
    """Seconds that an endpoint has for one attempt."""
    judge_attempts: int = 4
    """Attempts of a request at an endpoint."""
    judge_workers: int = 16
    """Requests at an endpoint at a time."""
    request: Path | None = None
    """File with other words for what the judge is asked."""

    def load_judge(self, form: Form, job: Job) -> VisualJudge:
        """The judge, tried.

        Raises:
            ValueError: there is no such judge, or its numbers make no sense.
        """
        numbers = (("judge_timeout", self.judge_timeout, 0.001), ("judge_attempts", self.judge_attempts, 1))
        for name, value, least in (*numbers, ("judge_workers", self.judge_workers, 1)):
            if value < least:
                raise ValueError(f"{name} = {value}: must be at least {least}")
        fields = {"timeout": self.judge_timeout, "attempts": self.judge_attempts, "workers": self.judge_workers}
        try:
            return load_judge(self.judge, form, job.processes.device, fields)
        except ValueError as error:
            raise ValueError(f"judge = {self.judge!r}: {error}") from error

    def read_request(self, default: str, marks: Sequence[str]) -> str:
        """What the judge is asked, with `{mark}` where a text is put.

        Raises:
            ValueError: no such file, or a mark is missing.
        """
        if self.request is None:
            return default
        if not self.request.is_file():
            raise ValueError(f"request = {str(self.request)!r}: no such file; give a text with {_listed(marks)}")
        text = self.request.read_text(encoding="utf-8").strip()
        if missing := [mark for mark in marks if f"{{{mark}}}" not in text]:
            raise ValueError(f"request = {str(self.request)!r} lacks {_listed(missing)}: write it where the text goes")
        return text


def _listed(marks: Sequence[str]) -> str:
    return " and ".join(f"{{{mark}}}" for mark in marks)


def fill(request: str, **texts: str) -> str:
    """The request with its marks replaced; what else stands in braces stays."""
    for mark, text in texts.items():
        request = request.replace(f"{{{mark}}}", text)
    return request


@dataclass(frozen=True)
class Exam:
    """What a suite asks about the drawings of each prompt, and what it makes of the answers."""

    name: str
    items: Sequence[Item]
    requests: Sequence[Mapping[str, str]]
    """For each item, what is asked about a drawing of it, by name."""
    read: Callable[[str], Any]
    """The value of a reply, JSON-able; None where it cannot be read."""
    measure: Callable[[int, Mapping[str, Any]], Record]
    """What an item's number and the values of the answers about a drawing of it come to; its fields."""
    figures: Callable[[Sequence[Record]], dict[str, Cuts]]
    notes: Callable[[Sequence[Record]], list[str]]
    protocol: Mapping[str, Any]
    """What is asked of whom about which prompts."""


@dataclass(frozen=True)
class Run:
    """One evaluation, ready to be run or gone on with."""

    exam: Exam
    options: JudgedOptions
    job: Job
    judge: VisualJudge

    def __call__(self) -> Result | None:
        processes, exam = self.job.processes, self.exam
        ledger = Ledger(self.job.file(exam.name), self.protocol(), self.job)
        keys, own = shares(len(exam.items), self.options.images, processes)
        make = partial(self._make, ledger)
        found = finish(keys, own, make, self.options.batch_size, ledger, processes, exam.name)
        if found is None:
            return None
        records = [line | exam.measure(key.prompt, line["told"]) for key, line in zip(keys, found, strict=True)]
        counts = count(records)
        notes = [*failures(counts), *exam.notes(records)]
        return Result(exam.name, ledger.protocol, exam.figures(records), records, notes, counts)

    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on; not where an endpoint is, nor how long it may take."""
        judge = {"judge": self.judge.name, "judge_sees": self.judge.sees}
        return self.options.protocol(self.job) | dict(self.exam.protocol) | judge

    def _make(self, ledger: Ledger, keys: Sequence[Key]) -> Iterator[Record]:
        """Draws and asks; a drawing's record comes as soon as all answers about it are there."""
        images = self._drawings(keys)
        files = self.options.keep(self.job, self.exam.name, keys, images, self.exam.items)
        for key, record in zip(keys, self._ask(keys, images, ledger.records), strict=True):
            yield record | {"image": files.get(key)}

    @cached_property
    def _drawings(self) -> Drawings:
        return self.options.drawings(self.job, self.exam.items)

    def _ask(self, keys: Sequence[Key], images: Sequence[Image], known: Mapping[str, Record]) -> Iterator[Record]:
        """The answers about each drawing, as soon as they are all there; what an earlier record tells is kept."""
        before = [known.get(str(key), {"told": {}, "cost": {}}) for key in keys]
        names = [
            [name for name in self.exam.requests[key.prompt] if old["told"].get(name) is None]
            for key, old in zip(keys, before, strict=True)
        ]
        answers = self.judge(
            [
                Request(image, self.exam.requests[key.prompt][name])
                for key, image, some in zip(keys, images, names, strict=True)
                for name in some
            ]
        )
        for key, old, some in zip(keys, before, names, strict=True):
            fresh = {name: next(answers) for name in some}
            yield {"key": str(key)} | self._merged(key, old, fresh)

    def _merged(self, key: Key, old: Record, fresh: Mapping[str, Told]) -> Record:
        """What is known of a drawing after its latest answers: values, failures and the cost of all attempts."""
        read = {name: (None if t.text is None else self.exam.read(t.text)) for name, t in fresh.items()}
        told = {name: old["told"].get(name) for name in self.exam.requests[key.prompt]} | read
        failed = {name: _why(fresh[name]) for name, value in read.items() if value is None}
        cost = Counter(old["cost"])
        for answer in fresh.values():
            cost.update(answer.cost)
        return {"told": told, "failed": failed, "cost": dict(cost)}


def _why(told: Told) -> str:
    return told.failure or f"{NONSENSE}: {(told.text or '')[:EXCERPT]!r}"


def count(records: Sequence[Record]) -> dict[str, int]:
    """Drawings, answers wanted, what of them failed and why, and what all of it cost."""
    kinds = Counter(why.partition(":")[0] for one in records for why in one["failed"].values())
    cost: Counter[str] = Counter()
    for one in records:
        cost.update(one["cost"])
    asked = {"drawings": len(records), "answers": sum(len(one["told"]) for one in records), "failed": kinds.total()}
    return asked | {f"failed: {kind}": n for kind, n in sorted(kinds.items())} | dict(sorted(cost.items()))


def failures(counts: Mapping[str, int]) -> list[str]:
    """What a reader must know of answers that failed."""
    if not counts["failed"]:
        return []
    kinds = [f"{n} {name.partition(': ')[2]}" for name, n in counts.items() if name.startswith("failed: ")]
    return [
        f"{counts['failed']} of {counts['answers']} answers failed ({', '.join(kinds)}). They and the scores that need "
        "them are left out of the figures. The same command asks them again."
    ]
