"""What goes into a model card with an upload: the figures as `model-index` metadata, then tables and protocols.

Source: https://huggingface.co/docs/hub/model-cards, whose metadata `huggingface_hub` writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from unison.evaluation.suites.common import ALL, Job, Result

NAMES = {"geneval": "GenEval", "dpg": "DPG-Bench", "wise": "WISE"}
"""Benchmarks that have a name of their own."""
DRAWING, ANSWERING, EDITING = "text-to-image", "visual-question-answering", "image-to-image"
"""The hub's names of tasks."""
ANSWERS = ("answer", "format", "own_answer", "answer_given_drawing")
"""Figures of replies, in suites that look at both sides."""
TASKS = {"understanding": ANSWERING, "editing": EDITING}
"""Tasks of suites; others draw."""
SUBJECTS = ("checkpoint", "drawings")
"""Entries of a protocol that name what was evaluated."""


def save(result: Result, job: Job) -> None:
    """Writes the result, and the card of all results of the checkpoint in the same place.

    The card is `card.md` in the folder of results, or `<name>.card.md` beside a single JSON file.
    """
    file = job.file(result.suite)
    result.save(file)
    single = job.out is not None and job.out.suffix == ".json"
    target = file.with_suffix(".card.md") if single else file.with_name("card.md")
    target.write_text(card([result] if single else together(result, file.parent)))


def together(result: Result, folder: Path) -> list[Result]:
    """The results in a folder that are of the same checkpoint as this one, in order of their names."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            other = Result.load(path)
        except ValueError:
            continue
        if subject(other) == subject(result):
            found.append(other)
    return found


def card(results: Sequence[Result]) -> str:
    """The text to paste, of at least one result."""
    rows = [row for result in results for row in evaluations(result)]
    metadata = ModelCardData(eval_results=rows, model_name=Path(subject(results[0])[0]).name).to_yaml()
    texts = [f"## {title(result)}\n\n{result.body()}" for result in results]
    return "\n\n".join([f"---\n{metadata}\n---", *texts]) + "\n"


def evaluations(result: Result) -> list[EvalResult]:
    """The figures over all tasks; those by task are in the table."""
    return [
        EvalResult(
            task_type=task_of(result.suite, name),
            dataset_type=dataset(result),
            dataset_name=title(result),
            metric_type=name,
            metric_value=round(cuts[ALL].value, 4),
            metric_name=name.replace("_", " "),
        )
        for name, cuts in result.figures.items()
        if ALL in cuts
    ]


def task_of(suite: str, figure: str) -> str:
    """The hub's name of what a figure measures."""
    return ANSWERING if figure in ANSWERS else TASKS.get(suite, DRAWING)


def title(result: Result) -> str:
    """The name of what was evaluated on."""
    data = dataset(result)
    return NAMES.get(result.suite, result.suite if data == result.suite else f"{result.suite}: {data}")


def dataset(result: Result) -> str:
    """The data set by its hub id or the name of its file, or else the suite."""
    data = result.protocol.get("data", result.suite)
    return Path(data).name if Path(data).expanduser().exists() else data


def subject(result: Result) -> tuple[str, str]:
    """What was evaluated: its name, and the digest of its files."""
    named = next((name for name in SUBJECTS if name in result.protocol), None)
    return (result.protocol[named], result.protocol.get(f"{named}_files", "")) if named else (result.suite, "")
