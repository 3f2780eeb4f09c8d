"""A step without weights: its scenario runs with actions that have the right size and no meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from PIL import Image

from unison import scenarios
from unison.config import RunConfig
from unison.policies.actions import given
from unison.policies.base import Policy
from unison.policies.sizes import Shape
from unison.scenarios.common import Seeds, windowed
from unison.types import Action, Context, Item, Sampling, Tokens, group_rows

WORD = "a"
PROMPT = " ".join([WORD] * 48)
"""Every prompt and every question; what a family puts around it comes on top."""


@dataclass
class Understudy:
    """Stands in for the policy in a scenario, and remembers one of each kind of sample."""

    shape: Shape
    length: int
    """Tokens of every reply."""
    sampled: list[tuple[Context, Action]] = field(default_factory=list)

    def write(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Tokens]:
        return self._remembered(contexts, [self._reply(sampling) for _ in contexts])

    def draw(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        one = self.shape.drawing(sampling)
        return self._remembered(contexts, [replace(one) for _ in contexts])

    def encode(self, targets: Sequence[Any], seeds: Sequence[int] | None = None) -> list[Action]:
        return [self._reply(Sampling()) if isinstance(t, str) else self.shape.drawing(None) for t in targets]

    def decode(self, actions: Sequence[Action]) -> list[Any]:
        return [WORD if action.modality == "text" else self.picture() for action in actions]

    def reference(self) -> AbstractContextManager[None]:
        return nullcontext()

    def picture(self) -> Image.Image:
        return Image.new("RGB", (self.shape.side, self.shape.side))

    def _reply(self, sampling: Sampling) -> Tokens:
        (word,) = cast("list[Tokens]", self.shape.policy.encode([WORD]))
        return replace(given("text", word.ids[:1].repeat(self.length)), sampling=sampling)

    def _remembered(self, contexts: Sequence[Context], actions: list[Any]) -> list[Any]:
        self.sampled.append((contexts[0], actions[0]))
        return actions


@dataclass(frozen=True)
class Rehearsed:
    """What a policy is asked to do."""

    sampled: Sequence[tuple[Context, Action]]
    """An example of what is sampled at each turn."""
    scored: Sequence[tuple[Context, Action]]
    """What an update scores, in its order."""


def rehearse(config: RunConfig, shape: Shape, items: int, group: int) -> Rehearsed:
    """The rollout of so many items, each with so many siblings, and what is selected of it.

    Raises:
        ValueError: the policy lacks an ability that the scenario needs.
    """
    scenario, seeds = scenarios.find(config.scenario.name), Seeds(config.seed, step=1)
    understudy = Understudy(shape, config.scenario.text.max_tokens)
    made = [_item(str(number), understudy) for number in range(items)]
    scenario.require(shape.policy, made[0])
    setting = windowed(replace(config.scenario, group_size=group), seeds)
    trajectories = scenario.rollout(cast(Policy, understudy), made, setting, seeds)
    scored: list[tuple[Context, Action]] = []
    for rows in group_rows(trajectories).values():
        turns = [turn for row in rows for turn in trajectories[row].turns]
        selected = shape.policy.select([turn.action for turn in turns], config.scoring, config.seed)
        scored += [(turn.context, s.action) for turn, s in zip(turns, selected, strict=True)]
    return Rehearsed(understudy.sampled, scored)


def enough(shape: Shape, actions: Sequence[Action]) -> list[Action]:
    """Actions of one modality with no more of their rounds than two full passes take: further ones keep nothing."""

    def fewer(action: Action) -> Action:
        rounds = action.order if isinstance(action, Tokens) else torch.arange(len(action))
        if shape.per_pass is None or action.modality == "text":
            return action
        count = math.ceil(2 * shape.per_pass(action.sampling) / len(actions))
        return replace(action, mask=action.mask & torch.isin(rounds, rounds[action.mask].unique()[-count:]))

    return [fewer(action) for action in actions]


def _item(name: str, understudy: Understudy) -> Item:
    return Item(
        name,
        prompt=PROMPT,
        image=understudy.picture(),
        question=PROMPT,
        answer=WORD,
        reply=WORD,
        target_image=understudy.picture(),
        reverse=PROMPT,
    )
