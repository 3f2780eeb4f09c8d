"""Suites by name: what `unison eval --suite <name>` runs.

    base.py           the job of a command, options of all suites, the one runner
    ledger.py         finished records that outlive a kill
    tables.py         the rows of a prompt file
    drawings.py       N drawings of every prompt
    judged.py         the same with a judge's answers about each
    card.py           a result as it is printed, and for a model card
    world.py          drawing and answering on held-out items
    understanding.py  the questions of any data set
    think.py          riddles, drawn after a thought and without one
    editing.py        edits of pictures, and edits taken back
    geneval.py        GenEval's six tasks
    dpg.py            DPG-Bench's questions
    wise.py           WISE's marks

To add one: a file with `Options`, a `base.SuiteOptions` of its own, and `prepare(options, job)`, which checks all that
can be checked before the model is loaded and returns a `base.Run` (its protocol, how the records of some items are
made, what they come to); and a line in SUITES.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from unison.config import pick
from unison.evaluation.records import Evaluation
from unison.evaluation.suites.base import Job

DRAWING, ANSWERING, EDITING = "text-to-image", "visual-question-answering", "image-to-image"


@dataclass(frozen=True)
class Suite:
    """One way to evaluate a checkpoint."""

    name: str
    summary: str
    module: str
    title: str = ""
    """The benchmark's own name, where it has one."""
    task: str = DRAWING
    """What it measures, as the hub calls it, but for figures of replies in suites that look at both sides."""

    @property
    def options(self) -> Any:
        """The class of its options."""
        return import_module(self.module).Options

    def prepare(self, options: Any, job: Job) -> Callable[[], Evaluation | None]:
        """What evaluates; its result is None in all processes but the first.

        Raises:
            ValueError: options that cannot work.
        """
        return import_module(self.module).prepare(options, job)


SUITES = {
    suite.name: suite
    for suite in (
        Suite("world", "drawing and answering on held-out items", f"{__name__}.world"),
        Suite("geneval", "GenEval's six tasks, on its prompt file", f"{__name__}.geneval", "GenEval"),
        Suite("understanding", "the questions of any data set", f"{__name__}.understanding", task=ANSWERING),
        Suite("think", "riddles, drawn after a thought and without one", f"{__name__}.think"),
        Suite("editing", "edits of pictures, and edits taken back", f"{__name__}.editing", task=EDITING),
        Suite("dpg", "DPG-Bench's questions, on its prompt file", f"{__name__}.dpg", "DPG-Bench"),
        Suite("wise", "WISE's marks by a judge, on its prompt files", f"{__name__}.wise", "WISE"),
    )
}


def find(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ValueError: unknown name.
    """
    return pick(SUITES, name, "--suite")
