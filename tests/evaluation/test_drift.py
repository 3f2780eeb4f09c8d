"""Drift of self-reward: what counts as one, and what the report says of it."""

from __future__ import annotations

import html
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from unison.config import PolicyConfig, RunConfig, to_json
from unison.evaluation.drift import find_drift
from unison.evaluation.records import Evaluation
from unison.evaluation.stats import task_difference
from unison.reports.charts import drift_chart
from unison.reports.page import write_report

TASKS = ("colors", "counting")


def evaluation(
    step: int, agreement: float, judged: float, items: int = 200, seed: int = 0, more: dict[str, Any] | None = None
) -> Evaluation:
    """Records whose answers are right, and whose drawings are, with the given chances."""
    rng = random.Random(f"{seed}/{step}")
    pairs = [(rng.random() < agreement, rng.random() < judged) for _ in range(items)]
    return Evaluation(
        step,
        [
            {"id": str(i), "task": TASKS[i % 2], "own_answer_correct": own, "drawing_correct": right} | (more or {})
            for i, (own, right) in enumerate(pairs)
        ],
    )


@pytest.mark.parametrize(
    ("agreement", "judged", "found", "words"),
    [
        (0.8, 0.4, True, "self-agreement rises .* by more than the judge's drawing score .*; difference .*drifts"),
        (0.8, 0.5, True, "self-agreement rises .* by more than the judge's drawing score .*; difference .*drifts"),
        (0.8, 0.1, True, "self-reward drifts. Remedies: .*scenario.answerer = reference, or both.*objective.kl_beta"),
        (
            0.8,
            0.8,
            False,
            r"self-agreement rises .*, not beyond noise by more than the judge's drawing score .*: no drift",
        ),
        (0.4, 0.4, False, r"self-agreement does not rise beyond noise .*: no drift"),
        (0.1, 0.1, False, r"self-agreement does not rise beyond noise .*: no drift"),
    ],
)
def test_self_reward_drifts_where_agreement_rises_and_the_judged_score_does_not(
    agreement: float, judged: float, found: bool, words: str
) -> None:
    drift = find_drift([evaluation(0, 0.4, 0.4), evaluation(80, agreement, judged)])
    assert drift is not None
    assert drift.found is found
    assert re.search(words, drift.sentence)
    assert drift.sentence.startswith("From step 0 to step 80 ")


def test_chance_alone_is_seldom_called_drift() -> None:
    pairs = ([evaluation(step, 0.5, 0.5, 120, seed) for step in (0, 1)] for seed in range(150))
    found = [drift.found for pair in pairs if (drift := find_drift(pair)) is not None]
    assert len(found) == 150
    assert sum(found) <= 10  # a fortieth of them, 3.75, is expected


@pytest.mark.parametrize(
    ("agreement", "judged", "least", "most"),
    [
        (0.56, 0.56, 0, 7),  # both rise by as much: called drift in at most a twentieth of them
        (0.60, 0.60, 0, 7),
        (0.62, 0.50, 120, 150),  # agreement alone rises
    ],
)
def test_two_equal_rises_are_seldom_called_drift_and_a_true_one_is_found(
    agreement: float, judged: float, least: int, most: int
) -> None:
    ends = ([evaluation(0, 0.5, 0.5, 600, s), evaluation(1, agreement, judged, 600, s)] for s in range(150))
    found = sum(drift.found for pair in ends if (drift := find_drift(pair)) is not None)
    assert least <= found <= most


def test_the_change_is_that_of_the_items_of_both_ends_paired() -> None:
    first, middle, last = evaluation(0, 0.3, 0.4), evaluation(40, 0.5, 0.4, items=20), evaluation(80, 0.9, 0.4)
    mixed = Evaluation(80, random.Random(0).sample(last.records, len(last.records)))
    drift = find_drift([first, middle, mixed])
    assert drift is not None
    columns = [
        {t: [float(r["own_answer_correct"]) for r in e.records if r["task"] == t] for t in TASKS} for e in (first, last)
    ]
    assert drift.agreement_change == task_difference(*columns)
    assert drift.items == 20
    assert [len(side) for side in (drift.steps, drift.agreement, drift.judged)] == [3, 3, 3]


def test_without_two_evaluations_of_own_answers_nothing_is_said() -> None:
    assert find_drift([]) is None
    assert find_drift([evaluation(0, 0.5, 0.5)]) is None
    without = [
        Evaluation(e.step, [r | {"own_answer_correct": None} for r in e.records]) for e in (evaluation(0, 1, 1),)
    ]
    assert find_drift([evaluation(0, 0.5, 0.5), *without]) is None
    assert find_drift([evaluation(0, 0.5, 0.5), Evaluation(1, [])]) is None


def test_where_the_world_cannot_judge_the_first_measured_reward_does() -> None:
    first, last = (
        evaluation(step, skill, 0, more={"drawing_correct": None, "reward/clip": 0.3, "reward/llm_judge": skill})
        for step, skill in ((0, 0.3), (9, 0.9))
    )
    drift = find_drift([first, last])
    assert drift is not None
    assert drift.found
    assert "by more than the measured reward/clip (0.000 [0.000, 0.000]; difference " in drift.sentence


# -- the report ------------------------------------------------------------------------------------------------------


def page(run: Path, *evaluations: Evaluation) -> str:
    (run / "eval").mkdir(exist_ok=True)
    (run / "config.json").write_text(to_json(RunConfig("r", PolicyConfig("p"), rewards={"accuracy": 1.0}, out=run)))
    for one in evaluations:
        one.save(run / "eval")
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", write_report(run).read_text(encoding="utf-8"))))


def test_the_report_shows_both_in_one_figure_and_says_it_in_one_sentence(tmp_path: Path) -> None:
    course = [evaluation(step, skill, 0.4) for step, skill in ((0, 0.4), (40, 0.6), (80, 0.8))]
    drift = find_drift(course)
    assert drift is not None
    text = page(tmp_path, *course)
    assert text.count(drift.sentence) == 2, "above all, and with the figure"
    assert "Self-agreement beside the judge" in text
    lines = drift_chart(drift)["lines"]
    assert [line["label"] for line in lines] == ["self-agreement", "the judge's drawing score"]
    assert all(len(line["dots"]) == 3 and line["band"] for line in lines)


def test_the_report_raises_no_alarm_without_drift(tmp_path: Path) -> None:
    assert page(tmp_path, evaluation(0, 0.4, 0.4), evaluation(80, 0.8, 0.8)).count("no drift") == 1


def test_measured_rewards_are_compared_in_the_report(tmp_path: Path) -> None:
    sides = [evaluation(step, 0.5, 0.5, more={"reward/clip": value}) for step, value in ((0, 0.25), (80, 0.75))]
    text = page(tmp_path, *sides)
    assert "Measured clip" in text
    assert "measured clip rises by 0.500" in text


def test_an_evaluation_without_own_answers_has_no_such_section(tmp_path: Path) -> None:
    sides = [evaluation(step, 0.5, 0.5) for step in (0, 9)]
    text = page(tmp_path, *(Evaluation(e.step, [r | {"own_answer_correct": None} for r in e.records]) for e in sides))
    assert "Self-agreement" not in text
    assert json.loads((tmp_path / "eval/000009.json").read_text())["step"] == 9
