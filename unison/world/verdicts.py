"""Verdicts: what is to be said of a drawing of a prompt, right or wrong, and how a wrong one is put right.

A verdict names what the picture shows and then says `right`, or `wrong` with the corrections, in the words of the
world's edits.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from unison.answers import formatted
from unison.types import Split
from unison.world import edits
from unison.world import scene as scenes
from unison.world.scene import COLORS, GRID, NUMBER_WORDS, SHAPES, Clause, Description, Object, Scene


@dataclass(frozen=True)
class Verdict:
    """What is seen, and what has to be done to it for the prompt; nothing where it is right."""

    seen: str
    corrections: tuple[str, ...]

    @property
    def answer(self) -> str:
        return ", ".join(("wrong", *self.corrections)) if self.corrections else "right"

    @property
    def reply(self) -> str:
        """A whole reply in the requested format."""
        return formatted(self.seen or "nothing", self.answer)


@dataclass(frozen=True)
class Shown:
    """A prompt with a scene that it describes, and the scene that is shown for it, which may be another."""

    description: Description
    wanted: Scene
    shown: Scene


def verdict(scene: Scene, description: Description) -> Verdict:
    """The verdict on a picture of the scene as a drawing of the description."""
    return Verdict(scenes.caption(scene), tuple(_corrections(scene, description)))


def sample(rng: random.Random, split: Split, flawed: float = 0.5) -> Shown:
    """Draws a prompt with its scene and, in the given share, a flaw in what is shown: one object more, less, elsewhere
    or of another shape or colour. Training shows no held-out scene."""
    while True:
        description, wanted = scenes.sample(rng, rng.choice(scenes.TASKS), split)
        if rng.random() >= flawed:
            return Shown(description, wanted, wanted)
        shown = spoil(rng, wanted)
        wrong = not scenes.check(shown, description).correct
        if wrong and (split == "eval" or not scenes.is_held_out(shown)):
            return Shown(description, wanted, shown)


def spoil(rng: random.Random, scene: Scene) -> Scene:
    """The scene with one object changed, added or taken away."""
    index = rng.randrange(len(scene))
    one = scene[index]
    taken = {(o.row, o.column) for o in scene}
    row, column = rng.choice([c for c in (divmod(i, GRID) for i in range(GRID * GRID)) if c not in taken])
    match rng.choice(edits.KINDS):
        case "recolor":
            changed = (replace(one, color=rng.choice([c for c in COLORS if c != one.color])),)
        case "reshape":
            changed = (replace(one, shape=rng.choice([s for s in SHAPES if s != one.shape])),)
        case "move":
            changed = (replace(one, row=row, column=column),)
        case "remove" if len(scene) > 1:
            changed = ()
        case _:
            changed = (one, Object(rng.choice(SHAPES), rng.choice(COLORS), row, column))
    return (*scene[:index], *changed, *scene[index + 1 :])


def _corrections(scene: Scene, description: Description) -> list[str]:
    wanted = {clause.shape for clause in description.clauses}
    steps = [f"remove the {o.color} {o.shape}" for o in scene if o.shape not in wanted]
    for clause in description.clauses:
        same = [o for o in scene if o.shape == clause.shape]
        if len(same) != clause.count:
            steps.append(_count_correction(clause, len(same)))
        if clause.color and any(o.color != clause.color for o in same):
            steps.append(f"make the {clause.shape} {clause.color}")
    if not steps and not scenes.check(scene, description).correct:
        first, second = description.clauses
        steps.append(f"move the {first.shape} {description.relation} the {second.shape}")
    return steps


def _count_correction(clause: Clause, found: int) -> str:
    verb, count = ("add", clause.count - found) if found < clause.count else ("remove", found - clause.count)
    color = f"{clause.color} " if clause.color and verb == "add" else ""
    return f"{verb} {NUMBER_WORDS.get(count, str(count))} {color}{scenes.noun(clause.shape, count)}"
