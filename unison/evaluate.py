"""Evaluation of both sides on held-out items: one drawing and one reply an item, judged and recorded."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from unison.config import EvalConfig, ScenarioConfig
from unison.policies.base import Policy
from unison.rewards.text import is_formatted, is_right
from unison.rollout import roll_out
from unison.scenarios import SCENARIOS
from unison.scenarios.common import Seeds
from unison.stats import Estimate, task_mean
from unison.types import Item, Trajectory
from unison.world.judge import judge
from unison.world.scene import parse_prompt

FIGURES = {
    "drawing": "drawing_correct",
    "drawing_partial": "drawing_score",
    "answer": "answer_correct",
    "format": "format_ok",
}
"""Figures of an evaluation, and the record's field that each one averages."""

Record = dict[str, Any]
EVAL_SEED = 20_250_517  # the same samples before and after, whatever the run's seed: differences are paired


@dataclass(frozen=True)
class Evaluation:
    """Records of every item."""

    step: int
    records: list[Record]

    def figures(self) -> dict[str, Estimate]:
        """Mean over task types of each figure that any item has, with its interval."""
        columns = {name: by_task(self.records, field) for name, field in FIGURES.items()}
        return {name: task_mean(column) for name, column in columns.items() if column}

    def save(self, folder: Path) -> Path:
        """Writes `<step>.json` into the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.step:06d}.json"
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        return path

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        return cls(**json.loads(path.read_text()))


def by_task(records: Iterable[Record], field: str) -> dict[str, list[float]]:
    """Values of a field by task type, records without it left out."""
    columns: dict[str, list[float]] = {}
    for record in records:
        if record[field] is not None:
            columns.setdefault(record["task"], []).append(float(record[field]))
    return columns


def evaluate(
    policy: Policy,
    items: Sequence[Item],
    scenario: ScenarioConfig,
    config: EvalConfig,
    step: int = 0,
    pictures: Path | None = None,
) -> Evaluation:
    """Draws every item's prompt and answers every item's question, once each, with the run's own sampling.

    Args:
        items: held-out items; what an item lacks (prompt or question) is not evaluated.
        scenario: sampling of text and drawings.
        pictures: run folder in which to keep the first `config.gallery` items' drawings and question images.
    """
    single = dataclasses.replace(scenario, group_size=1)
    seeds = Seeds(EVAL_SEED, 0)
    records = []
    with Progress(transient=True) as progress:
        task = progress.add_task(f"evaluation at step {step}", total=len(items))
        for start in range(0, len(items), config.batch_size):
            batch = [items[i] for i in range(start, min(start + config.batch_size, len(items)))]
            drawn = _roll("t2i", [i for i in batch if i.prompt and "draw" in policy.abilities], policy, single, seeds)
            asked = _roll("understanding", [i for i in batch if i.question and i.answer], policy, single, seeds)
            for number, item in enumerate(batch, start):
                record = _record(item, drawn.get(item.id), asked.get(item.id))
                if pictures and number < config.gallery:
                    _keep_pictures(record, item, drawn.get(item.id), pictures, step)
                records.append(record)
            progress.advance(task, len(batch))
    return Evaluation(step, records)


def _roll(name: str, items: list[Item], policy: Policy, config: ScenarioConfig, seeds: Seeds) -> dict[str, Trajectory]:
    if not items:
        return {}
    trajectories = roll_out(policy, SCENARIOS[name], items, config, seeds, chunk=len(items))
    return {t.item.id: t for t in trajectories}


def _record(item: Item, drawn: Trajectory | None, asked: Trajectory | None) -> Record:
    reply = asked.texts[-1] if asked else None
    record: Record = {
        "id": item.id,
        "task": item.task,
        "prompt": item.prompt,
        "question": item.question,
        "answer": item.answer,
        "kind": item.kind,
        "reply": reply,
        "answer_correct": None if reply is None else is_right(reply, item),
        "format_ok": None if reply is None else is_formatted(reply),
        "image": None,
        "question_image": None,
    }
    return record | _judged(item, drawn)


def _judged(item: Item, drawn: Trajectory | None) -> Record:
    """The judge's verdict; nothing where the prompt is not one that the world's judge can read."""
    nothing = {"drawing_correct": None, "drawing_score": None, "drawing_reason": None}
    if drawn is None or item.prompt is None:
        return nothing
    try:
        verdict = judge(drawn.images[-1], parse_prompt(item.prompt))
    except ValueError:
        return nothing
    return {
        "drawing_correct": verdict.correct,
        "drawing_score": verdict.score,
        "drawing_reason": verdict.reason,
    }


def _keep_pictures(record: Record, item: Item, drawn: Trajectory | None, run: Path, step: int) -> None:
    folder = run / "eval" / f"{step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in item.id)
    for field, image in (("image", drawn.images[-1] if drawn else None), ("question_image", item.image)):
        if image is not None:
            path = folder / f"{name}.{field}.png"
            image.save(path)
            record[field] = str(path.relative_to(run))
