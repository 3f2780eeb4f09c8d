"""N drawings of every prompt and a judge's answers about each: what the suites share whose judge looks and answers.

A request that fails, or whose answer cannot be read, is counted and has no value: it is never taken for a No or a 0.
When the evaluation is gone on with, the drawings concerned are made again and only what failed is asked again.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unison.evaluation.records import Cuts, Evaluation, Record
from unison.evaluation.suites.base import Job
from unison.evaluation.suites.drawings import DrawingOptions, DrawingRun, Key
from unison.rewards.visual_judge import Form, Request, Told, VisualJudge, load_judge

if TYPE_CHECKING:
    pass

EXCERPT = 80  # characters of an answer that cannot be read which a record repeats
NONSENSE = "unreadable"
"""Names the failure of an answer that came and cannot be read."""


@dataclass(frozen=True, kw_only=True)
class JudgedOptions(DrawingOptions):
    """What is drawn, and who judges it."""

    least: ClassVar = {**DrawingOptions.least, "judge_timeout": 0.001, "judge_attempts": 1, "judge_workers": 1}

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
            ValueError: there is no such judge.
        """
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
class JudgedRun(DrawingRun):
    """Drawings with a judge's answers; a suite says what it makes of them."""

    options: JudgedOptions
    judge: VisualJudge
    requests: Sequence[Mapping[str, str]]
    """For each item, what is asked about a drawing of it, by name."""
    asked: Mapping[str, Any]
    """What is asked about which prompts, for the protocol."""

    @abstractmethod
    def read(self, text: str) -> Any:
        """The value of a reply, JSON-able; None where it cannot be read."""

    @abstractmethod
    def measure(self, number: int, told: Mapping[str, Any]) -> Record:
        """What an item's number and the values of the answers about a drawing of it come to; its fields."""

    @abstractmethod
    def figures(self, records: Sequence[Record]) -> Mapping[str, Cuts]:
        """What the records come to."""

    @abstractmethod
    def notes(self, records: Sequence[Record]) -> list[str]:
        """What keeps these figures from being compared with published ones."""

    def result(self, records: list[Record]) -> Evaluation:
        measured = [r | self.measure(key.prompt, r["told"]) for key, r in zip(self.keys(), records, strict=True)]
        counts = count(measured)
        notes = [*failures(counts), *self.notes(measured)]
        return replace(self.told(measured, self.figures(measured), {}, notes), counts=counts)

    def protocol(self) -> dict[str, Any]:
        """Not where an endpoint is, nor how long it may take."""
        return super().protocol() | dict(self.asked) | {"judge": self.judge.name, "judge_sees": self.judge.sees}

    def make(self, keys: Sequence[Key]) -> Iterator[Record]:
        """Draws and asks; a drawing's record comes as soon as all answers about it are there. What an earlier record
        tells is kept."""
        images, files = self.drawn(keys)
        known = [self.ledger.records.get(str(key), {"told": {}, "cost": {}}) for key in keys]
        lacking = [
            {name: text for name, text in self.requests[key.prompt].items() if old["told"].get(name) is None}
            for key, old in zip(keys, known, strict=True)
        ]
        asked = [Request(image, text) for image, some in zip(images, lacking, strict=True) for text in some.values()]
        answers = self.judge(asked)
        for key, old, some in zip(keys, known, lacking, strict=True):
            fresh = {name: next(answers) for name in some}
            yield {"key": str(key)} | self._merged(key, old, fresh) | {"image": files.get(key)}

    def _merged(self, key: Key, old: Record, fresh: Mapping[str, Told]) -> Record:
        """What is known of a drawing after its latest answers: values, failures and the cost of all attempts."""
        read = {name: (None if t.text is None else self.read(t.text)) for name, t in fresh.items()}
        told = {name: old["told"].get(name) for name in self.requests[key.prompt]} | read
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
