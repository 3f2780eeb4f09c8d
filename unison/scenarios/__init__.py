"""Scenarios: short programs over the policy's verbs, from items to trajectories.

    base.py             what a scenario is and asks for
    common.py           seeds, contexts, one more turn
    rollout.py          items x group -> trajectories in chunks, and which groups tell something
    t2i.py              draw a prompt
    understanding.py    answer a question
    unified.py          CoRL: draw a prompt and answer a question, one reward
    imitate.py          CoRL's cold start: the item's own picture and reply
    self_improve.py     UniRL: draw, then answer a question about that drawing
    self_sft.py         UniRL's supervised ways: through the drawing, and in two parts
    think_then_draw.py  UniRL-Zero: say what to draw, then draw it
    reflect.py          UniRL-Zero: draw, judge that drawing, correct it
    cycle_edit.py       UniRL-Zero: edit a picture, then take the edit back
    cold_start.py       UniRL-Zero's cold starts of thoughts and of reflection

To add one: a file with a function `rollout(policy, items, config, seeds)` and a `SCENARIO` that declares what it needs,
and a line in SCENARIOS.
"""

from __future__ import annotations

from unison import objectives
from unison.config import RunConfig, check_trained, pick, require
from unison.scenarios import (
    cold_start,
    cycle_edit,
    imitate,
    reflect,
    self_improve,
    self_sft,
    t2i,
    think_then_draw,
    understanding,
    unified,
)
from unison.scenarios.base import Scenario

SCENARIOS: dict[str, Scenario] = {
    "t2i": t2i.SCENARIO,
    "understanding": understanding.SCENARIO,
    "unified": unified.SCENARIO,
    "imitate": imitate.SCENARIO,
    "self_improve": self_improve.SCENARIO,
    "self_sft": self_sft.END_TO_END,
    "self_sft_split": self_sft.SPLIT,
    "cycle_edit": cycle_edit.SCENARIO,
    "think_then_draw": think_then_draw.SCENARIO,
    "reflect": reflect.SCENARIO,
    "imitate_thought": cold_start.THOUGHT,
    "imitate_reflection": cold_start.REFLECTION,
}


def find(name: str) -> Scenario:
    """The scenario of that name.

    Raises:
        ValueError: unknown name.
    """
    return pick(SCENARIOS, name, "scenario.name")


def check(config: RunConfig) -> Scenario:
    """The scenario of a run whose settings it, training and the objective can work with, before anything is loaded.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    scenario = find(config.scenario.name)
    those = " and ".join(name for name, one in SCENARIOS.items() if one.has_answerer)
    rule = f"'policy' in {config.scenario.name!r}: {those} alone have replies about own drawings that are judged"
    fits = scenario.has_answerer or not config.scenario.asks_reference
    require(fits, "scenario.answerer", config.scenario.answerer, rule)
    check_trained(config.policy)
    objectives.check(config, scenario.verbs, scenario.gives)
    return scenario
