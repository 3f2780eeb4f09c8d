"""The suite `understanding`: questions of any table, by column mapping; accuracy, format, lengths, per category."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_suites import fails, run
from unison.answers import is_formatted, is_right
from unison.evaluation.suites.understanding import FIGURES, POOLED, figures
from unison.types import Item
from unison.world.render import render
from unison.world.scene import Object

ROWS: list[dict[str, Any]] = [
    {"problem": "What shape?", "solution": "circle", "topic": "shapes", "picture": "0.png"},
    {"problem": "Which one?", "options": ["red", "blue"], "right": 1, "topic": "colors", "picture": "0.png"},
    {"problem": "How many?", "solution": 3, "topic": "colors", "picture": "0.png"},
]
COLUMNS = ("question", "problem", "answer", "solution", "choices", "options", "correct", "right")
MAPPED = ("--columns", *COLUMNS, "task", "topic", "image", "picture")


@pytest.fixture
def table(tmp_path: Path) -> Callable[[list[dict[str, Any]]], Path]:
    """Writes rows, with columns of no known names, beside a picture."""
    render((Object("circle", "red", 1, 1),)).save(tmp_path / "0.png")
    names = {name for row in ROWS for name in row}

    def write(rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / "rows.jsonl"
        whole = [dict.fromkeys(names) | row for row in rows]
        path.write_text("".join(json.dumps(row | {"solution": _text(row["solution"])}) + "\n" for row in whole))
        return path

    return write


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


def test_any_table_is_asked_by_column_mapping_and_counted_per_category(
    table: Callable[..., Path], checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    words = ("--suite", "understanding", "--data", str(table(ROWS)), *MAPPED, "--max-tokens", "6", "--out", str(out))
    run(monkeypatch, str(checkpoint), *words)
    told = json.loads((out / "understanding.json").read_text())
    assert [record["task"] for record in told["records"]] == ["shapes", "colors", "colors"]
    assert told["records"][1]["question"] == "Which one?\nA. red\nB. blue"
    assert [record["answer"] for record in told["records"]] == ["circle", "B", "3"]
    for record in told["records"]:
        item = Item("x", question=record["question"], answer=record["answer"], kind=record["kind"])
        assert record["answer_correct"] is is_right(record["reply"], item)
        assert record["format_ok"] is is_formatted(record["reply"])
        assert 1 <= record["length"] <= 6
        assert record["cut"] is (record["length"] == 6)
        assert (out / record["question_image"]).is_file()
    assert told["figures"].keys() == {*FIGURES, POOLED}
    assert told["figures"]["length"].keys() == {"all", "shapes", "colors"}
    assert told["protocol"]["items"] == 3
    assert told["protocol"]["columns"]["question"] == "problem"


def test_all_is_the_mean_over_categories_and_pooled_the_share_of_all_questions() -> None:
    right = {"easy": [True, True, True, False], "hard": [False, False]}
    records = [
        {"task": task, "answer_correct": value, "format_ok": True, "length": 4, "cut": False}
        for task, values in right.items()
        for value in values
    ]
    found = figures(records, FIGURES)
    assert found["answer"]["all"].value == pytest.approx((3 / 4 + 0) / 2)
    assert found["answer"]["easy"].value == pytest.approx(3 / 4)
    assert found[POOLED]["all"].value == pytest.approx(3 / 6)
    assert found["length"]["hard"].value == pytest.approx(4)


def test_at_temperature_0_replies_depend_on_no_seed(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replies(name: str, *more: str) -> list[str]:
        file = tmp_path / f"{name}.json"
        words = ("--suite", "understanding", "--items", "3", "--max-tokens", "8", "--out", str(file))
        run(monkeypatch, str(checkpoint), *words, *more)
        return [record["reply"] for record in json.loads(file.read_text())["records"]]

    greedy = replies("a")
    assert replies("b", "--seed", "1", "--batch-size", "1") == greedy
    assert replies("c", "--temperature", "1") != replies("d", "--temperature", "1", "--seed", "1")


def test_bad_rows_stop_the_suite_before_a_model_is_loaded_or_are_left_out_and_counted(
    table: Callable[..., Path],
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [*ROWS, ROWS[1] | {"right": 7}, ROWS[0] | {"picture": "gone.png"}]
    words = ("--suite", "understanding", "--data", str(table(rows)), *MAPPED, "--max-tokens", "4", "--rewards", "math")
    out = tmp_path / "out"
    shown = " ".join(fails(monkeypatch, capsys, "no/model", *words).split())
    assert "row 3, column 'right' (field correct): 7 is not the number of an option" in shown
    assert "--skip-bad-rows leaves them out; 1 of 5 are bad" in shown
    run(monkeypatch, str(checkpoint), *words, "--skip-bad-rows", "--out", str(out))
    told = json.loads((out / "understanding.json").read_text())
    assert ["bad_row" in record for record in told["records"]] == [False, False, False, True, True]
    assert told["notes"][0].startswith("2 of 5 rows cannot be read and are left out; the first: ")
    assert "reward/math" in told["figures"]
    assert told["figures"]["answer"].keys() == {"all", "shapes", "colors"}


def test_what_cannot_be_asked_is_said_before_a_model_is_loaded(
    table: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, suite = str(table(ROWS)), ("no/model", "--suite", "understanding", "--data")
    cases: list[tuple[tuple[str, ...], str]] = [
        ((*suite, "./nowhere.jsonl"), "no such file or folder"),
        ((*suite, path), "no column 'prompt' (field prompt) or 'qa_problem' (field question)"),
        ((*suite, "prompts"), "its questions are about drawings"),
        ((*suite, "world", "--temperature", "-1"), "temperature = -1"),
        ((*suite, "world", "--batch-size", "0"), "batch_size = 0: must be at least 1"),
        ((*suite, "world", "--rewards", "maths"), "did you mean 'math'"),
    ]
    for words, message in cases:
        assert message in fails(monkeypatch, capsys, *words)
