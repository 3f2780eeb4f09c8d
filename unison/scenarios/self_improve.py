"""UniRL's scenario: the model draws, then answers a question about its own drawing; the answer judges both turns.

Source: UniRL, arXiv 2505.23380, GRPO. No real image and no judge take part: the item's answer follows from its prompt,
so a right answer says that the drawing shows what was asked for and that the model has read it. An item's own image, if
there is one, is not used.

A model that reads its drawings as it trains may come to agree with itself on drawings that show something else. Ours:
`answerer` has the frozen reference read them, so that no drawing is rewarded that the model before training would not
recognise. With "reference" the drawing alone is trained. With "both" the policy's own reply is trained too: it is the
one that is judged where the reference's is right, and elsewhere the reference's is, so that with `accuracy` a
trajectory is right where both are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unison.answers import is_right
from unison.config import ScenarioConfig
from unison.policies.base import Policy
from unison.scenarios import t2i
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, own_question_context, then_write
from unison.types import Context, Item, Sampling, Trajectory


def rollout(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    """prompt -> drawing, (that drawing, question) -> reply, which is no turn where the reference gives it"""
    drawn = t2i.rollout(policy, items, config, seeds)
    contexts = [own_question_context(t.turns[0].action, t.item) for t in drawn]
    noise = seeds.of(items, config.group_size, "write")
    told = _reference_texts(policy, contexts, config, noise) if config.asks_reference else []
    if config.answerer == "reference":
        return [replace(t, texts=(text,)) for t, text in zip(drawn, told, strict=True)]
    answered = then_write(policy, drawn, contexts, config, noise)
    if config.answerer == "both":
        return [t if is_right(ref, t.item) else replace(t, texts=(ref,)) for t, ref in zip(answered, told, strict=True)]
    return answered


SCENARIO = Scenario(
    rollout,
    ("draw", "write"),
    ("prompt", "question", "answer"),
    "draw a prompt and answer a question about that drawing, one reward",
    has_answerer=True,
)


def _reference_texts(
    policy: Policy, contexts: Sequence[Context], config: ScenarioConfig, noise: Sequence[int]
) -> list[str]:
    """What the policy would have said with the weights that training started from."""
    with policy.reference():
        return policy.decode(policy.write(contexts, Sampling.of(config.text), noise))
