"""What `unison train <recipe> --help` shows: the command's own options and the common ones of a run."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache, reduce
from itertools import pairwise
from typing import Any

from rich.console import Console
from rich.table import Table

from unison.config import RunConfig

COMMON = (
    *("policy.path", "data.train", "data.eval", "scenario.name", "scenario.group_size", "scenario.text.max_tokens"),
    *("scenario.image.guidance", "rewards", "objective.name", "objective.kl_beta", "step.items"),
    *("step.micro_batch_items", "step.rollout_items", "optim.steps", "optim.learning_rate", "evaluation.items"),
    *("evaluation.every", "evaluation.rewards", "distributed.strategy", "checkpoint_every", "out", "seed"),
)
"""Fields of a run that most runs set."""


def show_common(command: type, run: RunConfig) -> None:
    """Prints the options of the command, and the common fields of a run with its values and their sentences."""
    table = Table("option", "here", "")
    for name, sentence in sentences(command).items():
        table.add_row(f"--{name.replace('_', '-')}", "", sentence)
    table.add_section()
    for path in COMMON:
        value, sentence = field(run, path)
        table.add_row(f"--{path.replace('_', '-')}", str(value), sentence)
    console = Console()
    console.print(f"usage: unison train {run.recipe} [--option value ...]", table, markup=False)
    console.print(
        "--help-all lists every field of a run, with its choices; rewards are given as --rewards.<name> <coefficient>"
    )


def field(run: Any, path: str) -> tuple[Any, str]:
    """The value and the sentence of a field."""
    *places, name = path.split(".")
    section = reduce(lambda part, place: vars(part)[place], places, run)
    return vars(section)[name], sentences(type(section))[name]


@cache
def sentences(section: type) -> dict[str, str]:
    """What stands below each field of a dataclass in its source."""
    body = ast.parse(inspect.getsource(section)).body[0]
    assert isinstance(body, ast.ClassDef)
    return dict(_documented(body))


def _documented(body: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for one, after in pairwise(body.body):
        match one, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, " ".join(text.split())
