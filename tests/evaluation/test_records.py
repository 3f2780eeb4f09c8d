"""Records: kept and read back as they are, and paired by item."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unison.evaluation.records import ALL, Evaluation, columns_of, deciding, merged, paired, quality
from unison.evaluation.stats import Estimate


def test_a_runs_evaluation_holds_step_and_records_alone_and_a_suites_all_that_its_figures_hold_for(
    tmp_path: Path,
) -> None:
    rows = [{"id": "a", "task": "colors", "drawing_correct": True}]
    run = Evaluation(7, rows)
    run.save(tmp_path)
    assert (tmp_path / "000007.json").read_text() == json.dumps({"step": 7, "records": rows}, indent=1)
    assert Evaluation.load(tmp_path / "000007.json") == run
    assert run.overall() == {"drawing": Estimate(1, 1, 1)}
    suite = Evaluation(0, rows, "mine", {"seed": 1}, {"share": {ALL: Estimate(0.5, 0.4, 0.6)}}, ["note"], {"asked": 2})
    suite.save(tmp_path / "mine.json")
    assert Evaluation.load(tmp_path / "mine.json") == suite
    assert suite.overall() == {"share": Estimate(0.5, 0.4, 0.6)}
    for text in ("{}", "[", '{"suite": "mine"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=r"bad\.json is not the result of a suite, nor a run's evaluation"):
            Evaluation.load(tmp_path / "bad.json")


def test_pairs_are_the_items_that_all_sides_hold_with_every_field_in_the_order_of_the_first() -> None:
    sides = [
        Evaluation(step, [{"id": i, "task": task, "x": x, "y": y} for i, task, x, y in rows])
        for step, rows in (
            (0, [("c", "u", 1, 1), ("a", "u", 2, None), ("b", "v", 3, 3), ("d", "v", 4, 4)]),
            (1, [("d", "w", 5, 5), ("b", "v", 6, 6), ("a", "u", 7, 7), ("c", "u", 8, 8)]),
        )
    ]
    assert [[r["id"] for r in side] for side in paired(sides, "x", "y")] == [["c", "b"]] * 2, "d has another task"
    assert columns_of(sides, "x") == [{"u": [1, 2], "v": [3]}, {"u": [8, 7], "v": [6]}]
    assert paired([]) == []


def record(**more: Any) -> dict[str, Any]:
    return {"id": "a", "task": "u", "drawing_correct": None, "answer_correct": None, "own_answer_correct": None} | more


@pytest.mark.parametrize(
    ("more", "names", "value"),
    [
        ({"reward/clip": 0.25, "reward/late": 1.0, "drawing_correct": True}, ("reward/clip",), 0.25),
        ({"reward/clip": None, "drawing_correct": True, "answer_correct": False}, ("drawing", "answer"), 1.0),
        ({"answer_correct": True, "own_answer_correct": False}, ("answer",), 1.0),
        ({"own_answer_correct": True}, ("own_answer",), 1.0),
        ({"probe_correct": True}, (), None),
    ],
)
def test_evaluations_are_ranked_by_what_is_measured(
    more: dict[str, Any], names: tuple[str, ...], value: float | None
) -> None:
    assert deciding([record(**more)]) == names
    assert quality([record(**more)], names) == value
    assert quality([record()], names) is None, "where it has no values there is nothing to compare"


def test_drawings_of_one_item_are_averaged_over_those_that_have_the_field() -> None:
    drawings = [
        {"key": f"{n}/{i}", "task": "u", "x": x} for n, i, x in ((0, 0, 1), (0, 1, None), (0, 2, 2), (1, 0, None))
    ]
    assert [(item["id"], item["x"]) for item in merged(drawings, ["x"])] == [("0", 1.5), ("1", None)]
