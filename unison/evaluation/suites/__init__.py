"""Suites by name: what `unison eval --suite <name>` runs.

A suite is a module with `Options`, a frozen dataclass of its own options, and `prepare(options, job)`, which checks
everything that can be checked before the model is loaded and returns what evaluates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from unison.config import pick
from unison.evaluation.suites.common import Job, Result


@dataclass(frozen=True)
class Suite:
    """One way to evaluate a checkpoint."""

    name: str
    summary: str
    module: str

    @property
    def options(self) -> Any:
        """The class of its options."""
        return import_module(self.module).Options

    def prepare(self, options: Any, job: Job) -> Callable[[], Result | None]:
        """What evaluates; its result is None in all processes but the first.

        Raises:
            ValueError: options that cannot work.
        """
        return import_module(self.module).prepare(options, job)


SUITES = {
    suite.name: suite
    for suite in (
        Suite("world", "drawing and answering on held-out items", "unison.evaluation.suites.world"),
        Suite("geneval", "GenEval's six tasks, on its prompt file", "unison.evaluation.suites.geneval"),
        Suite("understanding", "the questions of any data set", "unison.evaluation.suites.understanding"),
        Suite("think", "riddles, drawn after a thought and without one", "unison.evaluation.suites.think"),
        Suite("editing", "edits of pictures, and edits taken back", "unison.evaluation.suites.editing"),
        Suite("dpg", "DPG-Bench's questions, on its prompt file", "unison.evaluation.suites.dpg"),
        Suite("wise", "WISE's marks by a judge, on its prompt files", "unison.evaluation.suites.wise"),
    )
}


def find(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ValueError: unknown name.
    """
    return pick(SUITES, name, "--suite")
