"""Edits of scenes: an instruction, the scene before and after it, and the instruction that takes it back.

Only scenes whose shapes are all different are edited, before and after, so that `the circle` means one object. A
training edit has neither a held-out scene before nor after it, an evaluation edit has one after it.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from unison.types import Split
from unison.world import scene as scenes
from unison.world.scene import COLORS, GRID, PLACES, SHAPES, Object, Scene, Verdict, article

KINDS = ("recolor", "reshape", "move", "add", "remove")


@dataclass(frozen=True)
class Edit:
    """`instruction` leads from `before` to `after`, `reverse` back."""

    before: Scene
    after: Scene
    instruction: str
    reverse: str


def sample(rng: random.Random, split: Split, kind: str | None = None) -> Edit:
    """Draws an edit of the kind, or of any, on the given side of the split.

    Raises:
        ValueError: unknown kind.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"edit {kind!r} is not one of {', '.join(KINDS)}")
    while True:  # rejection, as in `scene.sample`
        edit = _any(rng, kind or rng.choice(KINDS))
        held_out = [scenes.is_held_out(scene) for scene in (edit.before, edit.after)]
        if held_out[1] if split == "eval" else not any(held_out):
            return edit


def _any(rng: random.Random, kind: str) -> Edit:
    shapes, colors = rng.sample(SHAPES, 3), rng.sample(COLORS, 3)
    cells = rng.sample(range(GRID * GRID), 3)
    one, two, other = (Object(s, c, *divmod(cell, GRID)) for s, c, cell in zip(shapes, colors, cells, strict=True))
    rest = (two,) if kind == "remove" or (kind != "add" and rng.random() < 0.5) else ()
    before = (one, *rest)
    match kind:
        case "recolor":
            after, said, back = (
                replace(one, color=other.color),
                *(f"make the {one.shape} {o.color}" for o in (other, one)),
            )
        case "reshape":
            after = replace(one, shape=other.shape)
            said, back = (
                f"turn the {a.shape} into {article(b.shape)} {b.shape}" for a, b in ((one, after), (after, one))
            )
        case "move":
            after = replace(one, row=other.row, column=other.column)
            said, back = (f"move the {one.shape} to the {place(o)}" for o in (after, one))
        case "add":
            return Edit(before, (one, other), addition(other), f"remove the {other.shape}")
        case _:
            return Edit(before, rest, f"remove the {one.shape}", addition(one))
    return Edit(before, (after, *rest), said, back)


def addition(thing: Object) -> str:
    """The instruction that adds an object."""
    return f"add {article(thing.color)} {thing.color} {thing.shape} at the {place(thing)}"


def place(thing: Object) -> str:
    """The name of the cell that an object is in."""
    return PLACES[round(thing.row) * GRID + round(thing.column)]


def check(seen: Scene, wanted: Scene) -> Verdict:
    """Whether a picture shows the wanted scene, every object in its cell; partial credit is the share of objects that
    both have (Dice)."""
    found, asked = (Counter((o.shape, o.color, round(o.row), round(o.column)) for o in s) for s in (seen, wanted))
    both = sum((found & asked).values())
    total = len(seen) + len(wanted)
    lacking, extra = (", ".join(f"{c} {s}" for s, c, *_ in x.elements()) for x in (asked - found, found - asked))
    reasons = [f"{what}: {names}" for what, names in (("missing", lacking), ("extra", extra)) if names]
    return Verdict(found == asked, 2 * both / total if total else 1.0, "; ".join(reasons) or "as asked")
