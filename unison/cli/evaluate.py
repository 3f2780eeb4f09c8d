"""The command line's `eval`: suites on a checkpoint, or two checkpoints side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import tyro

if TYPE_CHECKING:
    from accelerate import PartialState
    from rich.console import Console

    from unison.evaluation.records import Evaluation
    from unison.evaluation.suites import Suite
    from unison.evaluation.suites.base import Job

Options = TypeVar("Options")


@dataclass(frozen=True)
class EvalArgs(Generic[Options]):
    """Score a checkpoint."""

    checkpoints: tyro.conf.Positional[tuple[str, ...]]
    """Checkpoint folder, hub id or assets/<name>; with --compare two of these, or of folders of results."""
    options: Annotated[Options, tyro.conf.arg(name="")]
    compare: bool = False
    """Put two checkpoints side by side, A and B, on the same items."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    out: Path | None = None
    """Folder for the results, or the JSON file of a single suite; runs/eval/<checkpoint> if not given."""
    overwrite: bool = False
    """Start over where an interrupted evaluation would be gone on with."""


def evaluate(words: Sequence[str]) -> None:
    """`eval <checkpoint> [--suite <name>,<name>]`, `eval --compare <A> <B>`"""
    from unison.evaluation import suites
    from unison.evaluation.suites import card
    from unison.evaluation.suites.base import Job

    names, rest = _suite_names(words)
    chosen = [suites.find(name) for name in names]
    parsed = [_parse_suite(suite, names, rest) for suite in chosen]
    first = parsed[0]  # what is no suite's own option is the same for all
    if len(chosen) > 1 and first.out and first.out.suffix == ".json":
        raise ValueError(f"--out {first.out}: several suites write to a folder, not to one file")
    _check_sides(first)
    job = Job(first.checkpoints[0], first.dtype, first.out, first.overwrite, _processes())
    pairs = [(suite, args.options) for suite, args in zip(chosen, parsed, strict=True)]
    if first.compare:
        return _compare(pairs, job, first.checkpoints)
    ready = [suite.prepare(options, job) for suite, options in pairs]
    for suite, run in zip(chosen, ready, strict=True):
        if result := run():
            card.save(result, job)
            _print_result(result, job.file(suite.name))
    return None


def _check_sides(args: EvalArgs[Any]) -> None:
    wanted = 2 if args.compare else 1
    if len(args.checkpoints) != wanted:
        given = f"{len(args.checkpoints)} given: {' '.join(args.checkpoints)}" if args.checkpoints else "none given"
        raise ValueError(
            f"eval --compare takes two checkpoints or folders of results, {given}"
            if args.compare
            else f"eval takes one checkpoint, {given}; two are put side by side by --compare"
        )


def _compare(pairs: Sequence[tuple[Suite, Any]], job: Job, names: Sequence[str]) -> None:
    from unison.reports import side_by_side as compare

    jobs, where = compare.place(job, names)
    ready = [[compare.prepare(suite, options, one) for one in jobs] for suite, options in pairs]
    for (suite, _), runs in zip(pairs, ready, strict=True):
        sides = [run() for run in runs]
        if sides[0] and sides[1] and job.processes.is_main_process:
            compared = compare.side_by_side(sides[0], sides[1])
            file = where if where.suffix == ".json" else where / f"{suite.name}.json"
            compared.save(file)
            _print_table(compared.heads, compared.rows())
            _print_lines(
                *compared.notes, f"{file} and, beside it, {file.stem}.md and {file.stem}.html hold the figures"
            )


def _suite_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names that `--suite` gives, and the other words."""
    names, rest, left = "world", [], iter(words)
    for word in left:
        option, given, value = word.partition("=")
        if option == "--suite":
            names = value if given else next(left, "")
        else:
            rest.append(word)
    return names.split(","), rest


def _parse_suite(suite: Suite, names: Sequence[str], words: Sequence[str]) -> EvalArgs[Any]:
    """The command as one of its suites reads it: `--<suite>.<option>` is for that suite alone."""
    from unison.evaluation.suites import SUITES

    own, keep = [], True
    for word in words:
        if word.startswith("--"):
            owner, dot, option = word[2:].partition(".")
            known = bool(dot) and owner in names
            keep = not known or owner == suite.name
            word = f"--{option}" if known else word
        if keep:
            own.append(word)
    others = ", ".join(f"{s.name} ({s.summary})" for s in SUITES.values())
    about = f"Score a checkpoint with the suite `{suite.name}`: {suite.summary}. --suite takes another: {others}."
    return tyro.cli(EvalArgs[suite.options], args=own, prog=f"unison eval --suite {suite.name}", description=about)


def _processes() -> PartialState:
    """The processes of this launch; they may wait for one another for days."""
    from datetime import timedelta

    from accelerate import PartialState

    from unison.config import placement

    patience = {"timeout": timedelta(days=7)} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
    return PartialState(**placement(), **patience)


def _print_result(result: Evaluation, file: Path) -> None:
    """The table of all figures by task, with the protocol that they hold for."""
    from unison.evaluation.suites.card import counted, heads, one_line, rows

    _print_table(heads(result), rows(result))
    _print_lines(
        *([f"counts: {counted(result.counts)}"] if result.counts else []),
        *result.notes,
        ", ".join(f"{name}={one_line(value)}" for name, value in result.protocol.items()),
        f"{file} and {file.with_suffix('.md').name} hold the figures",
    )


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Column, Table

    table = Table(Column(heads[0], no_wrap=True), *heads[1:])
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _print_lines(*lines: str) -> None:
    for line in lines:
        _console().print(line, highlight=False, markup=False)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a file is as wide as its lines
        console.width = max(console.width, 160)
    return console
