"""The result of a suite as it is printed, and what goes into a model card with an upload: the figures as `model-index`
metadata, then tables and protocols.

Source: https://huggingface.co/docs/hub/model-cards, whose metadata `huggingface_hub` writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from unison.evaluation.records import ALL, Cuts, Evaluation
from unison.evaluation.suites import ANSWERING, SUITES, Suite
from unison.evaluation.suites.base import Job

ANSWERS = ("answer", "format", "own_answer", "answer_given_drawing")
"""Figures of replies, in suites that look at both sides."""
SUBJECTS = ("checkpoint", "drawings")
"""Entries of a protocol that name what was evaluated."""


def save(result: Evaluation, job: Job) -> None:
    """Writes the result, its page, and the card of all results of the checkpoint in the same place.

    The card is `card.md` in the folder of results, or `<name>.card.md` beside a single JSON file.
    """
    file = job.file(result.suite)
    result.save(file)
    file.with_suffix(".md").write_text(f"# {result.suite}\n\n{body(result)}\n")
    single = job.out is not None and job.out.suffix == ".json"
    target = file.with_suffix(".card.md") if single else file.with_name("card.md")
    target.write_text(card([result] if single else together(result, file.parent)))


def together(result: Evaluation, folder: Path) -> list[Evaluation]:
    """The results in a folder that are of the same checkpoint as this one, in order of their names."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            other = Evaluation.load(path)
        except ValueError:
            continue
        if subject(other) == subject(result):
            found.append(other)
    return found


def card(results: Sequence[Evaluation]) -> str:
    """The text to paste, of at least one result."""
    rows = [row for result in results for row in evaluations(result)]
    metadata = ModelCardData(eval_results=rows, model_name=Path(subject(results[0])[0]).name).to_yaml()
    texts = [f"## {title(result)}\n\n{body(result)}" for result in results]
    return "\n\n".join([f"---\n{metadata}\n---", *texts]) + "\n"


def evaluations(result: Evaluation) -> list[EvalResult]:
    """The figures over all tasks; those by task are in the table."""
    return [
        EvalResult(
            task_type=task_of(result, name),
            dataset_type=dataset(result),
            dataset_name=title(result),
            metric_type=name,
            metric_value=round(estimate.value, 4),
            metric_name=name.replace("_", " "),
        )
        for name, estimate in result.overall().items()
    ]


def task_of(result: Evaluation, figure: str) -> str:
    """The hub's name of what a figure measures."""
    return ANSWERING if figure in ANSWERS else _suite(result).task


def title(result: Evaluation) -> str:
    """The name of what was evaluated on."""
    name, data = result.suite, dataset(result)
    return _suite(result).title or (name if data == name else f"{name}: {data}")


def _suite(result: Evaluation) -> Suite:
    return SUITES.get(result.suite, Suite(result.suite, "", ""))


def dataset(result: Evaluation) -> str:
    """The data set by its hub id or the name of its file, or else the suite."""
    data = result.protocol.get("data", result.suite)
    return Path(data).name if Path(data).expanduser().exists() else data


def subject(result: Evaluation) -> tuple[str, str]:
    """What was evaluated: its name, and the digest of its files."""
    named = next((name for name in SUBJECTS if name in result.protocol), None)
    return (result.protocol[named], result.protocol.get(f"{named}_files", "")) if named else (result.suite, "")


# -- as it is printed --------------------------------------------------------------------------------------------------


def body(result: Evaluation) -> str:
    """The table, the notes and the protocol, in Markdown."""
    protocol = "\n".join(f"- {name}: {one_line(value)}" for name, value in result.protocol.items())
    told = [f"Counts: {counted(result.counts)}"] if result.counts else []
    return "\n\n".join([table(heads(result), rows(result)), *told, *result.notes, f"Protocol:\n\n{protocol}"])


def heads(result: Evaluation) -> list[str]:
    """The heads of the table."""
    return ["figure", "all tasks [95% interval]", *tasks(result)]


def rows(result: Evaluation) -> list[list[str]]:
    """Its cells: of every figure the name, then over all tasks with the interval, then for each task."""
    return [[name, *cells(cuts, tasks(result))] for name, cuts in result.figures.items()]


def tasks(result: Evaluation) -> list[str]:
    """Every task that a figure has, in the order of the figures."""
    return [cut for cut in dict.fromkeys(cut for cuts in result.figures.values() for cut in cuts) if cut != ALL]


def cells(cuts: Cuts, tasks: Sequence[str]) -> list[str]:
    """A figure as printed; a dash where a cut does not have it."""
    single = [cuts.get(task) for task in tasks]
    return [str(cuts[ALL]) if ALL in cuts else "-", *(f"{e.value:.3f}" if e else "-" for e in single)]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def one_line(value: Any) -> str:
    """A value of the protocol as printed."""
    return " ".join(str(value).split())


def counted(counts: Mapping[str, int]) -> str:
    """Counts as printed."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())
