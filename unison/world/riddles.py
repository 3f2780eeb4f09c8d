"""Riddles: drawing prompts that name neither shape nor colour, so that a thought is needed before the drawing."""

from __future__ import annotations

from dataclasses import dataclass

from unison.answers import formatted
from unison.world.scene import NUMBER_WORDS, Clause, Description

SIDES = {  # of one, and of several
    "circle": ("shape without corners", "shapes without corners"),
    "square": ("shape with four equal sides", "shapes with four equal sides"),
    "triangle": ("shape with three sides", "shapes with three sides"),
    "cross": ("shape like a plus sign", "shapes like plus signs"),
}
LIKE = {
    "red": "a ripe tomato",
    "yellow": "a lemon",
    "green": "grass",
    "blue": "a clear sky",
    "purple": "lavender",
    "black": "coal",
}


@dataclass(frozen=True)
class Riddle:
    """A prompt, the thought that solves it and the plain prompt that it means."""

    prompt: str
    thought: str
    answer: str

    @property
    def reply(self) -> str:
        """A whole reply in the requested format."""
        return formatted(self.thought, self.answer)


def riddle(description: Description) -> Riddle:
    """The riddle of a description: shapes by their sides, colours by things that have them."""
    joint = f" {description.relation} " if description.relation else " and "
    thoughts = [thought for clause in description.clauses for thought in _thoughts(clause)]
    prompt = joint.join(_phrase(clause) for clause in description.clauses)
    return Riddle(prompt, ", ".join(dict.fromkeys(thoughts)), description.prompt)


def _phrase(clause: Clause) -> str:
    one, several = SIDES[clause.shape]
    noun = f"a {one}" if clause.count == 1 else f"{NUMBER_WORDS[clause.count]} {several}"
    return noun + (f" coloured like {LIKE[clause.color]}" if clause.color else "")


def _thoughts(clause: Clause) -> list[str]:
    """What each hint means."""
    sides = SIDES[clause.shape][0].removeprefix("shape ").removeprefix("with ")
    color = [f"{LIKE[clause.color]} is {clause.color}"] if clause.color else []
    return [f"{sides} is {clause.shape}", *color]
