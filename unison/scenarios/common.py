"""What all scenarios need: seeds, contexts and their repetition over a group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from unison.types import Action, Context, Item, Part

T = TypeVar("T")


@dataclass(frozen=True)
class Seeds:
    """Seeds of samples, derived from the run's seed, the step, the item, the sibling and the turn, and nothing else."""

    run: int
    step: int

    def of(self, items: Sequence[Item], group: int, turn: str) -> list[int]:
        """One seed per trajectory, siblings next to each other."""
        return [self._digest(f"{item.id}/{sibling}/{turn}") for item in items for sibling in range(group)]

    def _digest(self, name: str) -> int:
        digest = hashlib.blake2b(f"{self.run}/{self.step}/{name}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")


def repeat(things: Sequence[T], group: int) -> list[T]:
    """Each thing `group` times in a row; siblings share the object."""
    return [thing for thing in things for _ in range(group)]


def question_context(item: Item) -> Context:
    """The item's image, if it has one, and its question."""
    parts: tuple[Part, ...] = (item.question or "",) if item.image is None else (item.image, item.question or "")
    return Context(parts)


def own_question_context(drawing: Action, item: Item) -> Context:
    """The item's question about a drawing of the policy's own, which stays in tokens or latents."""
    return Context((drawing, item.question or ""))


def prompt_context(item: Item) -> Context:
    """The item's drawing prompt."""
    return Context((item.prompt or "",))
