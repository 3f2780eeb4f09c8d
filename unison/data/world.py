"""The world's items: what its scenes, edits, riddles, verdicts and puzzles give a scenario to work on."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from unison.config import Suffix, WorldKind
from unison.data.rows import check_index, join
from unison.types import TASKS, AnswerKind, Item, Split
from unison.world import edits, puzzles, riddles, verdicts
from unison.world.render import render
from unison.world.scene import ask, ask_count, caption, sample


@dataclass(frozen=True)
class WorldItems:
    """`size` items of the synthetic world, the kinds of task in turn; item i depends on (split, seed, i) and the kind
    of item alone.

    `questions` changes the form of a question, never the scene: item i shows the same picture in all forms.
    """

    split: Split
    questions: str
    suffix: Suffix
    seed: int
    size: int
    kind: WorldKind = "scenes"
    skipped: int = field(default=0, init=False)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Item:
        check_index(index, self.size)
        name = self.split if self.kind in ("scenes", "counts") else f"{self.kind}-{self.split}"
        item = MAKERS[self.kind](self, random.Random(f"{self.split}:{self.seed}:{index}"), index)
        return replace(item, id=f"world-{name}-{self.seed}-{index}")


def _scene(items: WorldItems, rng: random.Random, index: int) -> Item:
    """A prompt with its picture, and a question about that."""
    task = TASKS[index % len(TASKS)]
    description, scene = sample(rng, task, items.split)
    image = render(scene)
    question = ask_count(rng, scene) if items.kind == "counts" else ask(rng, description, scene)
    choice = {"open_ended": False, "multiple_choice": True, "mixed": rng.random() < 0.5}[items.questions]
    kind: AnswerKind = "multiple_choice" if choice else "open_ended"
    return Item(
        id="",
        prompt=description.prompt,
        image=image,
        question=join(question.asked(choice), items.suffix, kind),
        answer=question.letter if choice else question.answer,
        reply=question.reply(scene),
        kind=kind,
        task=task,
    )


def _edit(items: WorldItems, rng: random.Random, index: int) -> Item:
    """A picture, an instruction that changes it and the one that takes the change back."""
    kind = edits.KINDS[index % len(edits.KINDS)]
    edit = edits.sample(rng, items.split, kind)
    return Item(
        id="",
        prompt=edit.instruction,
        reverse=edit.reverse,
        image=render(edit.before),
        target_image=render(edit.after),
        source_caption=caption(edit.before),
        target_caption=caption(edit.after),
        task=kind,
    )


def _riddle(items: WorldItems, rng: random.Random, index: int) -> Item:
    """A prompt that needs a thought, the thought, and a picture of what is meant."""
    task = TASKS[index % len(TASKS)]
    description, scene = sample(rng, task, items.split)
    riddle = riddles.riddle(description)
    return Item(
        id="",
        prompt=riddle.prompt,
        image=render(scene),
        answer=riddle.answer,
        reply=riddle.reply,
        target_caption=riddle.answer,
        task=task,
    )


def _reflection(items: WorldItems, rng: random.Random, index: int) -> Item:
    """A prompt, a picture that half of the time shows something else, the verdict on it and the right picture."""
    shown = verdicts.sample(rng, items.split)
    return Item(
        id="",
        prompt=shown.description.prompt,
        image=render(shown.shown),
        reply=verdicts.verdict(shown.shown, shown.description).reply,
        target_image=render(shown.wanted),
        task=shown.description.task,
    )


def _puzzle(items: WorldItems, rng: random.Random, index: int) -> Item:
    """A question in words alone."""
    kind = puzzles.KINDS[index % len(puzzles.KINDS)]
    return _asked(puzzles.sample(rng, items.split, kind), items, kind)


def _steps(items: WorldItems, rng: random.Random, index: int) -> Item:
    """A question about a picture that takes more than one step to answer."""
    task = TASKS[index % len(TASKS)]
    _, scene = sample(rng, task, items.split)
    return replace(_asked(puzzles.about(rng, scene), items, task), image=render(scene))


def _asked(puzzle: puzzles.Puzzle, items: WorldItems, task: str) -> Item:
    question = join(puzzle.text, items.suffix, "open_ended")
    return Item(id="", question=question, answer=puzzle.answer, reply=puzzle.reply, task=task)


MAKERS: dict[WorldKind, Callable[[WorldItems, random.Random, int], Item]] = {
    "scenes": _scene,
    "counts": _scene,
    "edits": _edit,
    "riddles": _riddle,
    "reflections": _reflection,
    "puzzles": _puzzle,
    "steps": _steps,
}
