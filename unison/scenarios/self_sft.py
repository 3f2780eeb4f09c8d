"""UniRL's supervised variants: the model learns from the true answers to questions about its own drawings.

Source: UniRL, arXiv 2505.23380. `end_to_end` trains both sides by one loss, the true answer's negative log-likelihood,
which is differentiated through the drawing: the answer's gradient reaches the logits that the drawing was drawn from,
guided as the drawing's sampling says, at its temperature (the paper leaves all three open; for masked decoding also
what the logits are conditioned on, `policies.masked.masked_once_more`). `split` keeps the sides
apart, which the paper leaves open too: answering learns the true answer whatever the drawing shows, drawing imitates
those of its drawings about which the model answered right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios import self_improve, t2i
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, own_question_context, repeat
from unison.types import Action, Context, Item, Relaxed, Tokens, Trajectory, Turn


def end_to_end(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> drawing, which is not a turn to train; (that drawing relaxed, question) -> the true answer"""
    drawn = t2i.rollout(policy, items, config, seeds)
    noise = seeds.of(items, config.group_size, "relax")
    return [
        replace(t, turns=(Turn(Context((_relaxed(t.turns[0], config, seed), t.item.question or "")), answer),))
        for t, seed, answer in zip(drawn, noise, _answers(policy, items, config), strict=True)
    ]


END_TO_END = Scenario(
    end_to_end,
    ("draw", "write", "relax drawings"),
    ("prompt", "question", "answer"),
    "draw a prompt and learn the true answer about that drawing, through the drawing",
    gives=True,
)


def split(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> drawing, rewarded by a reply about it; (that drawing, question) -> the true answer, advantage 1

    `config.answerer` says whose reply.
    """
    answered = self_improve.rollout(policy, items, config, seeds)
    return [
        replace(t, turns=(t.turns[0], Turn(own_question_context(t.turns[0].action, t.item), answer, advantage=1.0)))
        for t, answer in zip(answered, _answers(policy, items, config), strict=True)
    ]


SPLIT = Scenario(
    split,
    ("draw", "write"),
    ("prompt", "question", "answer"),
    "draw a prompt, learn the true answer about that drawing, imitate drawings that were answered right",
    gives=True,
    has_answerer=True,
)


def _relaxed(turn: Turn, config: ScenarioConfig, seed: int) -> Relaxed:
    assert isinstance(turn.action, Tokens), "a denoising path needs no relaxation: differentiate its samples"
    return Relaxed(turn.context, turn.action, config.relax_temperature, seed)


def _answers(policy: Policy, items: Sequence[Item], config: ScenarioConfig) -> list[Action]:
    """The items' answers as given actions, over the group."""
    return repeat(policy.encode([item.answer or "" for item in items]), config.group_size)
