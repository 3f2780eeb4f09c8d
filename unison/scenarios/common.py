"""What all scenarios need: seeds, contexts and their repetition over a group."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.types import Action, Context, Item, Part, Sampling, Trajectory, Turn

T = TypeVar("T")


@dataclass(frozen=True)
class Seeds:
    """Seeds of samples, derived from the run's seed, the step, the item, the sibling and the turn, and nothing else."""

    run: int
    step: int
    first: int = 0
    """Number of the first sibling, where those before it are elsewhere."""

    def of(self, items: Sequence[Item], group: int, turn: str) -> list[int]:
        """One seed per trajectory, siblings next to each other."""
        siblings = range(self.first, self.first + group)
        return [self._digest(f"{item.id}/{sibling}/{turn}") for item in items for sibling in siblings]

    def once(self, items: Sequence[Item], turn: str) -> list[int]:
        """One seed per item, the same for all its siblings."""
        return [self._digest(f"{item.id}/{turn}") for item in items]

    def _digest(self, name: str) -> int:
        digest = hashlib.blake2b(f"{self.run}/{self.step}/{name}".encode(), digest_size=7).digest()
        return int.from_bytes(digest, "big")


def windowed(config: ScenarioConfig, seeds: Seeds) -> ScenarioConfig:
    """The configuration with the denoising steps that are trained at this step of the run, counted from 1.

    They depend on the run's seed and the step alone, so all siblings share them, whatever their contexts.
    """
    width, steps = config.window.width, range(config.image.steps)
    if not width:
        return config
    first = (seeds.step - 1) // config.window.every % (len(steps) - width + 1)
    return replace(config, image=replace(config.image, noisy_steps=tuple(steps[first : first + width])))


def repeat(things: Sequence[T], group: int) -> list[T]:
    """Each thing `group` times in a row; siblings share the object."""
    return [thing for thing in things for _ in range(group)]


def begin(items: Sequence[Item], group: int) -> list[Trajectory]:
    """Trajectories without a turn, siblings next to each other; each is an object of its own, for its own rewards."""
    return [Trajectory(item, ()) for item in repeat(items, group)]


def then_write(
    policy: Policy,
    begun: Sequence[Trajectory],
    contexts: Sequence[Context],
    config: ScenarioConfig,
    noise: Sequence[int],
) -> list[Trajectory]:
    """The trajectories with one more turn, a reply to their context."""
    replies = policy.write(contexts, Sampling.of(config.text), noise)
    return [
        replace(t, turns=(*t.turns, Turn(context, reply)), texts=(*t.texts, text))
        for t, context, reply, text in zip(begun, contexts, replies, policy.decode(replies), strict=True)
    ]


def then_draw(
    policy: Policy,
    begun: Sequence[Trajectory],
    contexts: Sequence[Context],
    config: ScenarioConfig,
    noise: Sequence[int],
) -> list[Trajectory]:
    """The trajectories with one more turn, a drawing from their context."""
    drawings = policy.draw(contexts, Sampling.of(config.image), noise)
    return [
        replace(t, turns=(*t.turns, Turn(context, drawing)), images=(*t.images, image))
        for t, context, drawing, image in zip(begun, contexts, drawings, policy.decode(drawings), strict=True)
    ]


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
