"""How far drawing and answering are apart: conditional shares, their intervals, and where they come from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from unison.config import EvalConfig, ScenarioConfig
from unison.data import Items
from unison.data.prompts import PromptItems
from unison.data.world import WorldItems
from unison.evaluation.held_out import evaluate
from unison.evaluation.records import ALL, Evaluation, shares
from unison.evaluation.stats import conditional, conditional_difference
from unison.evaluation.suites import world
from unison.evaluation.suites.card import cells
from unison.policies.base import Policy
from unison.reports.comparison import compare_shares, imbalance
from unison.types import Item, Sampling

SCENARIO = ScenarioConfig(text=Sampling(max_tokens=5), image=Sampling(guidance=2.0))
OWN = EvalConfig(own_drawings=True)


def record(i: int, drawing: bool | None, answer: bool | None, task: str = "colors") -> dict[str, Any]:
    drift = None if drawing is None or answer is None else answer and not drawing
    return {"id": str(i), "task": task, "drawing_correct": drawing, "own_answer_correct": answer, "drift": drift}


def records(counts: dict[tuple[bool, bool], int], task: str = "colors") -> list[dict[str, Any]]:
    """So many records of each (drawing right, answer right)."""
    pairs = [pair for pair, count in counts.items() for _ in range(count)]
    return [record(i, *pair, task=task) for i, pair in enumerate(pairs)]


COUNTS = {(True, True): 30, (True, False): 10, (False, True): 20, (False, False): 40}


def test_conditional_shares_are_counts_over_those_that_meet_the_condition() -> None:
    found = shares([*records(COUNTS), record(1000, None, True), record(1001, True, None)])
    assert found["answer_given_drawing"][ALL].value == pytest.approx(30 / 40)
    assert found["drawing_given_answer"][ALL].value == pytest.approx(30 / 50)


def test_a_condition_that_nothing_meets_has_no_share() -> None:
    assert set(shares(records({(False, True): 5}))) == {"drawing_given_answer"}
    assert shares([record(0, None, None)]) == {}
    with pytest.raises(ValueError, match="no item meets the condition"):
        conditional({"colors": [(False, True)]})


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng, covered = random.Random(0), 0
    for _ in range(200):
        pairs = [(rng.random() < 0.4, rng.random() < 0.7) for _ in range(150)]
        found = conditional({"one": pairs[:75], "two": pairs[75:]})
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_difference_is_between_the_shares_and_paired_by_item() -> None:
    rng = np.random.default_rng(0)
    before = {"one": [(bool(c), bool(e)) for c, e in rng.random((300, 2)) < 0.5]}
    better = {"one": [(c, e or i % 10 == 0) for i, (c, e) in enumerate(before["one"])]}
    found = conditional_difference([before], [better])
    assert found.value == pytest.approx(conditional(better).value - conditional(before).value)
    assert 0 < found.low < found.value < found.high
    alone = conditional(before)
    assert found.high - found.low < alone.high - alone.low, "items in common cancel"
    same = conditional_difference([before], [before])
    assert (same.low, same.value, same.high) == (0, 0, 0)


def test_a_difference_needs_equal_suites() -> None:
    with pytest.raises(ValueError, match="hold different items"):
        conditional_difference([{"one": [(True, True)]}], [{"two": [(True, True)]}])


def test_each_category_and_its_gap_are_printed() -> None:
    both = [*records(COUNTS), *records({(False, True): 3, (False, False): 1}, "counting")]
    tasks = ["colors", "counting"]
    rows = {name: cells(cuts, tasks) for name, cuts in world.figures(both).items()}
    assert rows["answer_given_drawing"][1:] == ["0.750", "-"]
    assert rows["1 - answer_given_drawing"][1:] == ["0.250", "-"]
    assert rows["1 - answer_given_drawing"][0].startswith("0.250 [")
    assert rows["drawing_given_answer"][1:] == ["0.600", "0.000"]
    assert rows["drift"][1:] == ["0.200", "0.750"]


def test_the_report_compares_shares_on_the_items_of_both_sides() -> None:
    better = {**COUNTS, (True, True): 50, (False, False): 20}
    sides = [Evaluation(0, records(COUNTS)), Evaluation(9, [*records(better), record(5000, True, False)])]
    overall, by_task = compare_shares(sides, "answer_given_drawing")
    assert (overall.label, overall.items, by_task.label) == ("all tasks", 100, "colors")
    assert [round(e.value, 3) for e in overall.sides] == [0.75, 0.833]
    assert overall.difference is not None
    assert overall.difference.value == pytest.approx(50 / 60 - 30 / 40)
    assert len(imbalance(sides)) == 3
    assert imbalance([Evaluation(0, [record(0, True, None)])]) == {}


def first(items: Items) -> list[Item]:
    return [items[i] for i in range(len(items))]


# -- evaluating ----------------------------------------------------------------------------------------------------


def test_asking_about_the_drawings_changes_no_other_figure(policy: Policy) -> None:
    items = first(WorldItems("eval", "open_ended", "", seed=0, size=6))
    plain = evaluate(policy, items, SCENARIO, EvalConfig()).records
    own = evaluate(policy, items, SCENARIO, OWN).records
    for a, b in zip(plain, own, strict=True):
        assert (a["own_reply"], a["own_answer_correct"], a["drift"]) == (None, None, None)
        assert isinstance(b["own_reply"], str)
        assert b["drift"] is (b["own_answer_correct"] and not b["drawing_correct"])
        others = a.keys() - {"own_reply", "own_answer_correct", "drift"}
        assert {k: a[k] for k in others} == {k: b[k] for k in others}


def test_a_prompt_without_picture_or_judge_is_evaluated_by_the_answer_about_its_drawing(policy: Policy) -> None:
    found = evaluate(policy, first(PromptItems("eval", "", 0, 6)), SCENARIO, OWN)
    assert all(r["own_answer_correct"] is not None and r["drift"] is None for r in found.records)
    assert set(found.figures) == {"own_answer"}
