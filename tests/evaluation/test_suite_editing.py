"""The suite `editing`: every figure is what its reward says of the edits, and of the pictures that come back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import judges
from tests.evaluation.test_suites import fails, run
from unison.config import PolicyConfig
from unison.data.world import WorldItems
from unison.evaluation.suites.editing import Options, edit
from unison.policies import load_policy
from unison.policies.metaquery.policy import MetaQuery
from unison.rewards.clip import clip_direction, clip_reconstruction
from unison.rewards.world import world, world_cycle, world_strict
from unison.scenarios.common import Seeds
from unison.types import Item, Trajectory

QUICK = ("--steps", "2")  # and all in one batch: random weights magnify what other batches round differently


@pytest.fixture(scope="module")
def editor(metaquery: MetaQuery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("editor") / "tiny-metaquery"
    folder.mkdir()
    metaquery.save(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return judges.build(tmp_path_factory.mktemp("judges"), judges.JudgeSize(width=32, layers=2, image=48))["clip"]


def edits(count: int) -> list[Item]:
    items = WorldItems("eval", "open_ended", "", 0, count, kind="edits")
    return [items[i] for i in range(count)]


@pytest.fixture
def table(tmp_path: Path) -> Callable[[list[Item]], Path]:
    """Writes edits as rows with column names of their own."""

    def write(items: list[Item]) -> Path:
        rows = []
        for i, item in enumerate(items):
            assert item.image is not None
            item.image.save(tmp_path / f"{i}.png")
            said = {"instruction": item.prompt, "back": item.reverse, "before": item.source_caption}
            rows.append({"id": item.id, "picture": f"{i}.png", "after": item.target_caption, "kind": item.task} | said)
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


COLUMNS = ("prompt", "instruction", "reverse", "back", "source_caption", "before", "target_caption", "after")
MAPPED = ("--columns", *COLUMNS, "image", "picture", "task", "kind")


def evaluate(monkeypatch: pytest.MonkeyPatch, out: Path, *words: str) -> dict[str, Any]:
    run(monkeypatch, *words, "--suite", "editing", *QUICK, "--out", str(out))
    return json.loads((out / "editing.json").read_text())


def made(editor: Path, items: list[Item]) -> list[Trajectory]:
    """The edits that the suite makes at its defaults, in two steps, and takes back."""
    return edit(load_policy(PolicyConfig(str(editor))), items, Options(steps=2).sampling, Seeds(0, 0))


def column(told: dict[str, Any], name: str) -> list[float]:
    return [record[name] for record in told["records"]]


def first(trajectories: list[Trajectory]) -> list[Trajectory]:
    return [Trajectory(t.item, t.turns, images=t.images[:1]) for t in trajectories]


def test_the_worlds_edits_are_judged_exactly_before_and_after_they_are_taken_back(
    editor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = evaluate(monkeypatch, tmp_path, str(editor), "--items", "5")
    trajectories = made(editor, edits(5))
    assert [len(t.images) for t in trajectories] == [2] * 5
    assert column(told, "drawing_correct") == world_strict(first(trajectories), None)
    assert column(told, "drawing_score") == pytest.approx(world(first(trajectories), None))
    assert column(told, "returned_score") == pytest.approx(world_cycle(trajectories, None))
    assert told["figures"].keys() == {"edit", "edit_partial", "taken_back"}
    assert told["figures"]["edit"].keys() == {"all", "recolor", "reshape", "move", "add", "remove"}
    record = told["records"][0]
    images = [Image.open(tmp_path / record[name]) for name in ("source_image", "image", "returned_image")]
    shown = (trajectories[0].item.image, *trajectories[0].images)
    for image, expected in zip(images, shown, strict=True):
        assert np.asarray(image) == pytest.approx(np.asarray(expected), abs=2)


def test_pictures_of_a_table_are_measured_by_clip(
    editor: Path, clip: Path, table: Callable[[list[Item]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = edits(3)
    words = (str(editor), "--data", str(table(items)), *MAPPED, "--clip", str(clip))
    told = evaluate(monkeypatch, tmp_path / "out", *words)
    trajectories = made(editor, items)
    expected = {
        "clip_image": clip_reconstruction(first(trajectories), None, str(clip)),
        "clip_direction": clip_direction(trajectories, None, str(clip)),
        "clip_reconstruction": clip_reconstruction(trajectories, None, str(clip)),
    }
    assert told["figures"].keys() == expected.keys()
    for name, values in expected.items():
        assert column(told, name) == pytest.approx(values, abs=1e-3)
        assert told["figures"][name]["all"]["value"] == pytest.approx(sum(column(told, name)) / 3)
    assert told["protocol"]["clip"] == str(clip)


def test_edits_without_a_way_back_are_measured_once_and_counted(
    editor: Path, clip: Path, table: Callable[[list[Item]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(table(edits(2)))
    mapped = [word for word in MAPPED if word not in ("reverse", "back")]
    words = (str(editor), "--data", path, "--clip", str(clip))
    once = evaluate(monkeypatch, tmp_path / "once", *words, *mapped)
    both = evaluate(monkeypatch, tmp_path / "both", *words, *MAPPED)
    assert once["figures"].keys() == {"clip_image", "clip_direction"}
    assert once["notes"] == ["2 of 2 edits have no `reverse` and were not taken back."]
    assert column(once, "clip_image") == pytest.approx(column(both, "clip_image"), abs=1e-4)


def test_what_cannot_be_edited_or_judged_is_said(
    checkpoint: Path,
    table: Callable[[list[Item]], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, suite = str(table(edits(2))), ("--suite", "editing", "--out", str(tmp_path / "out"))
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"prompt": "make it red"}\n')
    cases: list[tuple[tuple[str, ...], str]] = [
        ((str(checkpoint),), "needs a model that can edit, but the janus family can only draw, relax drawings, write"),
        (("no/model", "--data", path), "no column 'prompt' (field prompt)"),
        (("no/model", "--data", str(captions)), "has no image to edit: name its column with --columns image <column>"),
        (("no/model", "--data", path, *MAPPED, "--clip", "none"), "nothing else can look at edits of pictures"),
        (("no/model", "--data", path, *MAPPED, "--clip", "./nowhere"), "clip = './nowhere': "),
        (("no/model", "--steps", "0"), "steps = 0: must be at least 1"),
        (("./nowhere",), "no such folder"),
    ]
    for words, message in cases:
        assert message in fails(monkeypatch, capsys, *words, *suite)
