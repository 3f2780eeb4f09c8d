"""`unison eval --compare`: paired differences of two results, and the page with what both drew."""

from __future__ import annotations

import html
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.evaluation.test_suites import fails, run
from unison.evaluation.records import ALL, Evaluation
from unison.evaluation.stats import task_difference, task_mean
from unison.reports.side_by_side import Side, side_by_side

TASKS = ("colors", "counting")


def record(i: int, skill: float, rng: random.Random, **more: Any) -> dict[str, Any]:
    return {"id": f"item-{i}", "task": TASKS[i % 2], "prompt": f"prompt {i}", "right": rng.random() < skill, **more}


def result(records: list[dict[str, Any]], **protocol: Any) -> Evaluation:
    figures = {"share": {ALL: task_mean(by_task(records))}}
    return Evaluation(0, records, "world", {"seed": 0} | protocol, figures, fields={"share": "right"})


def by_task(records: list[dict[str, Any]], ids: set[str] | None = None) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for row in sorted(records, key=lambda row: row.get("id", "")):
        if ids is None or row["id"] in ids:
            values.setdefault(row["task"], []).append(float(row["right"]))
    return values


def sides(a: Evaluation, b: Evaluation, folder: Path = Path()) -> tuple[Side, Side]:
    return Side("old", a, folder), Side("new", b, folder)


def make(count: int, skill: float, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    return [record(i, skill, rng) for i in range(count)]


def test_differences_are_those_of_the_paired_bootstrap_over_the_items_that_both_hold() -> None:
    a, b = make(40, 0.3, 1), make(50, 0.8, 2)
    random.Random(0).shuffle(b)
    compared = side_by_side(*sides(result(a), result(b)))
    shared = {row["id"] for row in a}
    before, after = by_task(a), by_task(b, shared)
    first, *single = compared.figures["share"]
    assert first.items == 40
    assert first.difference is not None
    assert first.difference.value == pytest.approx(task_difference(before, after).value)
    assert [side.value for side in first.sides] == pytest.approx([task_mean(before).value, task_mean(after).value])
    for row in single:
        expected = task_difference({row.label: before[row.label]}, {row.label: after[row.label]})
        assert row.difference is not None
        assert row.difference.value == pytest.approx(expected.value)
        assert row.difference.low <= expected.value <= row.difference.high
    assert "0 items of A and 10 of B are not on both sides" in " ".join(compared.notes)


def test_pairing_narrows_the_interval_of_items_that_differ_alike() -> None:
    rng = random.Random(3)
    levels = [rng.random() for _ in range(60)]
    a, b = make(60, 0.5, 1), make(60, 0.5, 1)
    for level, before, after in zip(levels, a, b, strict=True):
        before["right"], after["right"] = level, level + 0.05
    (row, *_) = side_by_side(*sides(result(a), result(b))).figures["share"]
    assert row.difference is not None
    assert row.direction == "up"
    assert row.difference.high - row.difference.low < 1e-6 < row.sides[0].high - row.sides[0].low


def test_drawings_of_one_prompt_are_averaged_before_prompts_are_resampled() -> None:
    rng = random.Random(0)
    drawings = [
        {"key": f"{n:05d}/samples/{i:04d}", "task": "colors", "prompt": str(n), "right": n % 2 == 0 or rng.random() < 0}
        for n in range(10)
        for i in range(4)
    ]
    (row, *_) = side_by_side(*sides(result(drawings), result(drawings))).figures["share"]
    apart = task_mean({"colors": [float(d["right"]) for d in drawings]})
    assert row.items == 10
    assert row.sides[0].value == pytest.approx(apart.value)
    assert row.sides[0].high - row.sides[0].low > apart.high - apart.low


def test_a_figure_that_its_suite_weighs_is_compared_task_by_task() -> None:
    a, b = (result(make(20, skill, seed)) for skill, seed in ((0.2, 1), (0.7, 2)))
    weighed = task_mean({"colors": by_task(list(b.records))["colors"]})
    figures = {"share": {ALL: weighed}, "other": {ALL: weighed}}  # no record has `other`
    compared = side_by_side(*sides(a, replace(b, stated=figures)))
    assert list(compared.figures) == [f"share: {task}" for task in TASKS]
    assert "`share` over all tasks is weighed by its suite" in compared.notes[0]


def test_items_of_one_name_that_ask_for_different_things_are_no_pair() -> None:
    a, b = make(4, 0.5, 1), make(4, 0.5, 1)
    b[2]["prompt"] = "something else"
    with pytest.raises(ValueError, match=r"different items of one name, 'item-2': prompt 'prompt 2' and 'something"):
        side_by_side(*sides(result(a), result(b)))
    for row in b:
        row["task"] = "position"
    with pytest.raises(ValueError, match="no item in common"):
        side_by_side(*sides(result(a), result(b)))


def test_protocols_that_differ_beyond_the_checkpoint_are_told() -> None:
    rows = make(4, 0.5, 1)
    alike = side_by_side(*sides(result(rows, checkpoint="a"), result(rows, checkpoint="b")))
    assert alike.notes == []
    (note,) = side_by_side(*sides(result(rows, guidance=2.0), result(rows, guidance=5.0))).notes
    assert note.startswith("The protocols differ in guidance (2.0 and 5.0)")


def test_json_table_and_page_hold_the_same_figures_and_the_drawings_of_both(tmp_path: Path) -> None:
    a, b = make(30, 0.2, 1), make(30, 0.9, 2)
    for name, rows in (("a", a), ("b", b)):
        for i in range(3):
            Image.new("RGB", (8, 8), (40 * i, 0, 90 if name == "a" else 0)).save(tmp_path / f"{name}{i}.png")
            rows[i] |= {"image": f"{name}{i}.png", "reason": f"<{name} says>", "correct": True}
    compared = side_by_side(*sides(result(a), result(b), tmp_path))
    compared.save(tmp_path / "world.json")
    told = json.loads((tmp_path / "world.json").read_text())
    page = (tmp_path / "world.html").read_text(encoding="utf-8")
    text = html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page)))
    table = (tmp_path / "world.md").read_text()
    assert told["figures"]["share"].keys() == {ALL, *TASKS}
    for cut in told["figures"]["share"].values():
        for side in cut["sides"]:
            assert f"{side['value']:.3f} [{side['low']:.3f}, {side['high']:.3f}]" in text
            assert f"| {side['value']:.3f} |" in table
        assert f"{cut['difference']['value']:+.3f} [" in text.replace(" ▲", "")
        assert f"{cut['difference']['value']:+.3f} [" in table
    assert [side["name"] for side in told["sides"]] == ["old", "new"]
    assert page.count("data:image/png") == 6
    assert "<a says>" not in page
    assert html.escape("<a says>") in page
    assert "From A to B, share rises by" in text


def test_two_checkpoints_are_evaluated_on_the_same_items_and_samples(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    other.symlink_to(checkpoint)
    options = ("--items", "6", "--max-tokens", "4", "--out", str(out))
    run(monkeypatch, "--compare", str(checkpoint), str(other), *options)
    shown = capsys.readouterr().out
    assert "B - A" in shown
    told = json.loads((out / "world.json").read_text())
    assert told["figures"].keys() == {"drawing", "drawing_partial", "answer", "format"}
    for cuts in told["figures"].values():
        assert all(cut["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0} for cut in cuts.values())
    page = (out / "world.html").read_text()
    assert page.count("data:image/png") == 6 * 2 + 6  # both drawings of every prompt, and the pictures asked about
    results = sorted(path.parent for path in out.glob("*/world.json"))
    assert len(results) == 2
    again = tmp_path / "again"
    run(monkeypatch, *map(str, results), "--compare", "--out", str(again))  # finished results need no checkpoint
    assert json.loads((again / "world.json").read_text())["figures"] == told["figures"]


def test_sides_that_cannot_be_compared_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "world.json"
    result(make(4, 0.5, 1)).save(saved)
    broken = tmp_path / "broken.json"
    broken.write_text("{}")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("--compare", "a/b"), "takes two checkpoints or folders of results, 1 given: a/b"),
        (("a/b", "c/d"), "eval takes one checkpoint, 2 given: a/b c/d; two are put side by side by --compare"),
        ((), "eval takes one checkpoint, none given"),
        (("--compare", str(saved), "./nowhere"), "'./nowhere': no such folder"),
        (("--compare", str(saved), str(broken)), "broken.json is not the result of a suite"),
        (("--compare", str(saved), str(saved), "--suite", "geneval", "--prompts", "x"), "is a result of the suite wor"),
    ]
    for words, message in cases:
        assert message in " ".join(fails(monkeypatch, capsys, *words).split("\n"))
