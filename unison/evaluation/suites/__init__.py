"""Suites by name: what `unison eval --suite <name>` runs.

A suite is a module with `Options`, a `base.SuiteOptions` with its own, and `prepare(options, job)`, which checks all
that can be checked before the model is loaded and returns a `base.Run`: its protocol, how the records of some items are
made, and what they come to. A new suite is such a file, and a line in SUITES.

- base: the job of a command, options of all suites, the runner; ledger: finished records that outlive a kill
- drawings: N drawings of every prompt; judged: with a judge's answers about each; tables: their prompt files
- card: a result as it is printed, and for a model card
- world, think, understanding, editing, geneval, dpg, wise: the suites
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
