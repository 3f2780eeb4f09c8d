"""Puzzles: questions in words alone, and questions about pictures that take more than one step to answer.

Each has one answer that can be verified and the thought that leads to it. Puzzles in words are split by what they ask,
those about pictures by their scenes, so none is on both sides.
"""

from __future__ import annotations

import itertools
import random
import zlib
from dataclasses import dataclass

from unison.answers import NUMBERS, formatted
from unison.types import Split
from unison.world.scene import COLORS, SHAPES, Scene, caption, noun

KINDS = ("total", "order", "swap")


@dataclass(frozen=True)
class Puzzle:
    """A question, the thought that solves it and its answer."""

    text: str
    thought: str
    answer: str

    @property
    def reply(self) -> str:
        """A whole reply in the requested format."""
        return formatted(self.thought, self.answer)


def sample(rng: random.Random, split: Split, kind: str | None = None) -> Puzzle:
    """Draws a puzzle in words of the kind, or of any, on the given side of the split: a fifth of them is held out.

    Raises:
        ValueError: unknown kind.
    """
    makers = {"total": _total, "order": _order, "swap": _swap}
    if kind is not None and kind not in makers:
        raise ValueError(f"puzzle {kind!r} is not one of {', '.join(KINDS)}")
    while True:  # rejection, as in `scene.sample`
        puzzle = makers[kind or rng.choice(KINDS)](rng)
        if (zlib.crc32(puzzle.text.encode()) % 5 == 0) == (split == "eval"):
            return puzzle


def _total(rng: random.Random) -> Puzzle:
    """The sum of two or three counts."""
    counts = [rng.randint(1, 3) for _ in range(rng.choice((2, 3)))]
    shapes = rng.sample(SHAPES, len(counts))
    things = ", ".join(f"{NUMBERS[n]} {noun(shape, n)}" for n, shape in zip(counts, shapes, strict=True))
    return Puzzle(f"{things}: how many shapes?", _added(counts), NUMBERS[sum(counts)])


def _order(rng: random.Random) -> Puzzle:
    """Three shapes in a row, told by neighbours in any order."""
    row = rng.sample(SHAPES, 3)
    clues = [f"the {a} is left of the {b}" for a, b in itertools.pairwise(row)]
    place, index = rng.choice((("left", 0), ("right", 2)))
    text = f"{', '.join(rng.sample(clues, 2))}. Which shape is on the far {place}?"
    return Puzzle(text, ", ".join(row), row[index])


def _swap(rng: random.Random) -> Puzzle:
    """Two shapes that exchange their colours."""
    (one, two), (first, second) = rng.sample(SHAPES, 2), rng.sample(COLORS, 2)
    asked, answer = rng.choice(((one, second), (two, first)))
    text = f"the {one} is {first}, the {two} is {second}. They swap colors. What color is the {asked}?"
    return Puzzle(text, f"{one} {second}, {two} {first}", answer)


def about(rng: random.Random, scene: Scene) -> Puzzle:
    """A question about a picture: its objects have to be seen and then counted on, or compared."""
    seen = caption(scene)
    outer = [(name, thing) for name, thing in _outermost(scene).items() if thing]
    if len(scene) > 1 and outer and rng.random() < 0.5:
        name, thing = rng.choice(outer)
        return Puzzle(f"What color is the shape that is furthest {name}?", seen, thing)
    more = rng.randint(1, 4)
    text = f"How many shapes are there with {NUMBERS[more]} more?"
    return Puzzle(text, f"{seen}; {_added([len(scene), more])}", NUMBERS[len(scene) + more])


def _outermost(scene: Scene) -> dict[str, str]:
    """Colour of the object that is furthest to each side; none where two objects are equally far."""
    ways = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
    found = {}
    for name, (down, right) in ways.items():
        far = [round(down * o.row + right * o.column) for o in scene]
        found[name] = scene[far.index(max(far))].color if far.count(max(far)) == 1 else ""
    return found


def _added(counts: list[int]) -> str:
    return f"{' and '.join(NUMBERS[n] for n in counts)} make {NUMBERS[sum(counts)]}"
