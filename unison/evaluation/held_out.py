"""Evaluation of both sides on held-out items: one drawing and one reply an item, judged and recorded.

With `own_drawings` each item's question is also asked about the drawing. How often an answer is right where the drawing
is, and the reverse, is what UniRL (arXiv 2505.23380) measures the imbalance of a unified model by: the gaps to 1.

Scenarios that think before they draw, or go on after it, draw held-out items as they draw in training.

The world's judge reads the world's prompts alone. Other drawings, and answers about them, are measured by rewards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.progress import Progress

from unison.answers import is_formatted, is_right
from unison.config import EvalConfig, ScenarioConfig
from unison.evaluation.records import REWARD, Evaluation, Record
from unison.policies.base import Policy
from unison.rewards import judge
from unison.scenarios import SCENARIOS
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds
from unison.scenarios.rollout import roll_out
from unison.types import Item, RewardFn, Trajectory
from unison.world.judge import judge_asked

if TYPE_CHECKING:
    from PIL.Image import Image

EVAL_SEED = 20_250_517  # the same samples before and after, whatever the run's seed: differences are paired


GALLERY = 18  # items whose drawings and answers the report shows


class Pictures(NamedTuple):
    """Where pictures are kept: `folder` inside `root`, from which records name them."""

    root: Path
    folder: str
    most: int = GALLERY
    """Items that keep theirs."""

    def keep(self, name: str, image: Image) -> str:
        """Saves a picture; returns its place, seen from the root."""
        path = self.root / self.folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return f"{self.folder}/{name}.png"


def evaluate(
    policy: Policy,
    items: Sequence[Item],
    scenario: ScenarioConfig,
    config: EvalConfig,
    step: int = 0,
    pictures: Pictures | None = None,
    rewards: Mapping[str, RewardFn] | None = None,
    probe: Sequence[Item] = (),
) -> Evaluation:
    """Draws every item's prompt and answers every item's question, once each, with the run's own sampling; drawings are
    made as the scenario's `held_out` says.

    With `config.own_drawings` the question is asked about the drawing as well.

    Args:
        items: held-out items; what an item lacks (prompt or question) is not evaluated.
        scenario: sampling of text and drawings.
        pictures: where to keep the first items' drawings and question images.
        rewards: what measures every drawing, with the answer about it where there is one.
        probe: items of which the questions alone are asked, for a figure of their own.

    Raises:
        RuntimeError: a reward failed.
    """
    records = []
    with Progress(transient=True) as progress:
        task = progress.add_task(f"evaluation at step {step}", total=len(items))
        for start in range(0, len(items), config.batch_size):
            batch = [items[i] for i in range(start, min(start + config.batch_size, len(items)))]
            kept = pictures.most - start if pictures else 0
            records += evaluate_batch(policy, batch, scenario, config, pictures, kept, rewards)
            progress.advance(task, len(batch))
    for start in range(0, len(probe), config.batch_size):
        records += _probe(probe[start : start + config.batch_size], policy, _single(scenario, config))
    return Evaluation(step, records)


def evaluate_batch(
    policy: Policy,
    items: Sequence[Item],
    scenario: ScenarioConfig,
    config: EvalConfig,
    pictures: Pictures | None,
    kept: int,
    rewards: Mapping[str, RewardFn] | None = None,
) -> list[Record]:
    """The records of items that are drawn and asked about at once, as `evaluate` does; the first `kept` keep their
    pictures."""
    single, how = _single(scenario, config), SCENARIOS[SCENARIOS[scenario.name].held_out]
    drawn = _draw(items, policy, how, single, config.own_drawings)
    if rewards and drawn:
        judge(list(drawn.values()), rewards, policy)
    asked = _roll(SCENARIOS["understanding"], _asked(items, config.own_drawings), policy, single)
    records = []
    for number, item in enumerate(items):
        result, about_own = drawn.get(item.id), _is_asked(item) and config.own_drawings
        image = result.images[how.judged] if result else None
        record = _record(item, result, image, asked.get(item.id), about_own)
        records.append(record | (_kept(item, image, pictures) if pictures and number < kept else {}))
    return records


def _single(scenario: ScenarioConfig, config: EvalConfig) -> ScenarioConfig:
    """One sample an item, answered by the policy itself, whoever judges in training."""
    single = dataclasses.replace(scenario, group_size=1, answerer="policy")
    if not config.noiseless:
        return single
    return dataclasses.replace(single, image=dataclasses.replace(single.image, sde="ode"))


def _probe(items: Sequence[Item], policy: Policy, config: ScenarioConfig) -> list[Record]:
    """Records of questions whose answers count for `probe` alone."""
    asked = [dataclasses.replace(item, id=f"probe-{item.id}", prompt=None) for item in items if _is_asked(item)]
    told = _roll(SCENARIOS["understanding"], asked, policy, config)
    records = [_record(item, None, None, told[item.id], about_own=False) for item in asked]
    return [r | {"probe_correct": r["answer_correct"], "answer_correct": None, "format_ok": None} for r in records]


def _asked(items: Sequence[Item], own_drawings: bool) -> list[Item]:
    """The items whose question is asked by itself: not those that have no picture but the one to be drawn."""
    with_question = [item for item in items if _is_asked(item)]
    return [item for item in with_question if item.image is not None or not (own_drawings and item.prompt)]


def _is_asked(item: Item) -> bool:
    return bool(item.question and item.answer)


def _draw(
    items: Sequence[Item], policy: Policy, how: Scenario, config: ScenarioConfig, ask: bool
) -> dict[str, Trajectory]:
    """A drawing of every item that has a prompt, by the scenario; with `ask`, where the item has a question, a plain
    drawing and the answer about it."""
    drawable = [item for item in items if item.prompt and "draw" in policy.abilities]
    asked = [item for item in drawable if ask and _is_asked(item)]
    known = {item.id for item in asked}
    rest = [item for item in drawable if item.id not in known and all(getattr(item, name) for name in how.fields)]
    own = _roll(SCENARIOS["self_improve"], asked, policy, config)
    return own | _roll(how, rest, policy, config)


def _roll(scenario: Scenario, items: list[Item], policy: Policy, config: ScenarioConfig) -> dict[str, Trajectory]:
    if not items:
        return {}
    return {t.item.id: t for t in roll_out(policy, scenario, items, config, Seeds(EVAL_SEED, 0), chunk=len(items))}


def _record(
    item: Item, drawn: Trajectory | None, image: Image | None, asked: Trajectory | None, about_own: bool
) -> Record:
    """What came of an item: its drawing, of which `image` is judged, and its reply, or what was said along the way."""
    said = [*(asked.texts if asked else ()), *(drawn.texts if drawn and not about_own else ())]
    reply = said[0] if said else None
    record: Record = {
        "id": item.id,
        "task": item.task,
        "prompt": item.prompt,
        "question": item.question,
        "answer": item.answer,
        "kind": item.kind,
        "reply": reply,
        "answer_correct": None if reply is None or not item.answer else is_right(reply, item),
        "format_ok": None if reply is None else is_formatted(reply),
        "image": None,
        "question_image": None,
    }
    judged = _judged(item, image)
    measures = {f"{REWARD}{name}": value for name, value in (drawn.rewards if drawn else {}).items()}
    own = _about_own(item, drawn if about_own else None, judged["drawing_correct"])
    return record | judged | own | measures


def _about_own(item: Item, drawn: Trajectory | None, drawing_correct: bool | None) -> Record:
    """The answer about the item's own drawing; `drift` is where the model agrees with itself and the judge does not."""
    if drawn is None or not drawn.texts:
        return {"own_reply": None, "own_answer_correct": None, "drift": None}
    right = is_right(drawn.texts[-1], item)
    drift = None if drawing_correct is None else right and not drawing_correct
    return {"own_reply": drawn.texts[-1], "own_answer_correct": right, "drift": drift}


def _judged(item: Item, image: Image | None) -> Record:
    """The judge's verdict; nothing where what is asked for is not said in words that the world's judge can read."""
    told = None, None, None
    if image is not None:
        with suppress(ValueError):
            verdict = judge_asked(image, item.target_caption or item.prompt or "")
            told = verdict.correct, verdict.score, verdict.reason
    return dict(zip(("drawing_correct", "drawing_score", "drawing_reason"), told, strict=True))


def _kept(item: Item, drawing: Image | None, pictures: Pictures) -> dict[str, str]:
    """Where the drawing and the picture asked about are kept, as far as there are any."""
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in item.id)
    shown = (("image", drawing), ("question_image", item.image))
    return {field: pictures.keep(f"{name}.{field}", image) for field, image in shown if image is not None}
