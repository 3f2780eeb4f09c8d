"""The verbs, as a user types them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unison import recipes
from unison.cli import main as cli
from unison.cli import tools
from unison.cli.help import COMMON
from unison.config import RunConfig
from unison.hub import ASSETS


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["unison", *words])
    cli.main()


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one-line error of a command that must fail."""
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_without_words_the_usage_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run(monkeypatch)
    shown = capsys.readouterr().out
    assert all(f"unison {verb}" in shown for verb in (*cli.VERBS, *tools.TOOLS))


def test_recipes_are_listed_with_a_line_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run(monkeypatch, "recipes")
    shown = capsys.readouterr().out
    assert all(name in shown for name in recipes.RECIPES)
    assert all(recipes.summary(name) for name in recipes.RECIPES)


def _fields(kind: type, prefix: str = "") -> list[str]:
    names = []
    for field in dataclasses.fields(kind):
        value = getattr(recipes.find("corl/tiny-unified")(), field.name, None) if not prefix else None
        if dataclasses.is_dataclass(value):
            names += _fields(type(value), f"{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def test_help_lists_every_field_of_a_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        run(monkeypatch, "train", "corl/tiny-unified", "--help-all")
    shown = capsys.readouterr().out
    missing = [name for name in _fields(RunConfig) if f"--{name.replace('_', '-')}" not in shown]
    assert set(missing) <= {"scenario.text", "scenario.image", "rewards"}  # shown field by field
    assert "--scenario.image.guidance" in shown
    assert "--rewards.world-strict" in shown


@pytest.mark.parametrize("recipe", [[], ["corl/tiny-unified"], ["unirl-zero/think"]])
def test_help_shows_the_common_options_and_how_to_see_all(
    recipe: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("COLUMNS", "200")
    run(monkeypatch, "train", *recipe, "--help")
    shown = capsys.readouterr().out
    assert 15 <= len(COMMON) <= 25
    assert all(f"--{path.replace('_', '-')} " in shown for path in (*COMMON, "dry_run", "algorithm", "data"))
    assert "--optim.betas" not in shown
    assert "--help-all lists every field" in shown


@pytest.mark.usefixtures("unplanned")
def test_a_reward_may_be_given_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "my_own-clip"
    folder.mkdir()
    options = (f"--rewards.blip-bertscore:{folder}", "0.5", f"--rewards.clip:{folder}=0.25", "--rewards.matching", "1")
    run(monkeypatch, "train", "corl/tiny", *options, "--dry-run")
    shown = "".join(capsys.readouterr().out.split())
    for name, weight in ((f"blip_bertscore:{folder}", 0.5), (f"clip:{folder}", 0.25), ("matching", 1.0)):
        assert f"'{name}':{weight}" in shown
    shown = fails(monkeypatch, capsys, "train", "corl/tiny", "--rewards.clip:./nowhere", "1", "--dry-run")
    assert "rewards = 'clip:./nowhere'" in shown


@pytest.mark.usefixtures("unplanned")
def test_a_reward_may_be_given_an_endpoint_which_is_tried(
    serve_chat: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[str] = []

    def answer(body: dict[str, Any], headers: Any) -> tuple[int, Any]:
        asked.append(body["model"])
        return 200, {"choices": [{"message": {"content": "Yes"}}]}

    name = serve_chat(answer).replace("#judge", "#owner/my_Judge-1.5B:q4")
    run(monkeypatch, "train", "unirl/tiny-janus-grpo", f"--rewards.llm-judge:{name}", "0.5", "--dry-run")
    assert f"'llm_judge:{name}':0.5" in "".join(capsys.readouterr().out.split())
    assert asked == ["owner/my_Judge-1.5B:q4"]
    shown = fails(
        monkeypatch, capsys, "train", "unirl/tiny-janus-grpo", "--rewards.llm-judge:http://h", "1", "--dry-run"
    )
    assert "write http://host:port/v1#model" in shown


def test_a_dry_run_plans_for_many_processes_and_a_run_takes_no_such_plan(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ("train", "corl/tiny-unified", "--processes", "4", "--distributed.strategy", "fsdp2")
    run(monkeypatch, *words, "--dry-run")
    shown = capsys.readouterr().out
    assert "memory of one process of 4 (fsdp2)" in shown
    for line in ("parameters", "gradients", "optimiser", "reference", "keys and values", "reward models", "peak"):
        assert line in shown
    assert "is of --dry-run" in fails(monkeypatch, capsys, *words)


PLANNED = {
    *("corl/tiny", "corl/tiny-unified", "corl/janus-pro-1b", "unirl/tiny-janus-sft", "unirl/tiny-showo-grpo"),
    *("unirl/show-o-512-sft", "unirl-zero/tiny-edit", "unirl-zero/tiny-reflect", "unirl-zero/edit"),
}
"""Those of each kind whose memory is planned too, which takes longer than all else."""


@pytest.mark.parametrize(
    "recipe", [name if "tiny" in name else pytest.param(name, marks=pytest.mark.slow) for name in recipes.RECIPES]
)
def test_every_recipe_passes_a_dry_run_without_a_download(
    recipe: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    if recipe not in PLANNED:
        request.getfixturevalue("unplanned")
    if recipe.startswith("unirl-zero/tiny") and not (ASSETS / "tiny-metaquery").is_dir():
        pytest.skip("assets/tiny-metaquery is not there: `unison pretrain metaquery` makes it")
    run(monkeypatch, "train", recipe, "--dry-run")
    shown = capsys.readouterr().out
    assert "memory of one process" in shown
    assert "training data" in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("trian", "corl/tiny-unified"), "unknown verb 'trian'"),
        (("train",), "needs a recipe"),
        (("train", "corl/tiny-unifed"), "did you mean 'corl/tiny"),
        (("train", "--config", "nowhere.json"), "nowhere.json"),
        (("train", "--resume", "nowhere"), "nowhere"),
        (("train", "corl/tiny-unified", "--scenario.group-size", "1", "--dry-run"), "scenario.group_size = 1"),
        (("train", "corl/tiny-unified", "--policy.path", "./nowhere", "--dry-run"), "policy.path = './nowhere'"),
        (("train", "corl/tiny-unified", "--data.train", "./nowhere.jsonl", "--dry-run"), "nowhere.jsonl"),
        (("eval", "assets/nothing"), "no such bundled model"),
        (("sample", "sing"), "choose one of draw, ask"),
        (("pretrain", "llama"), "one of janus"),
        (("report",), "one run folder"),
        (("report", "nowhere"), "nowhere"),
    ],
)
def test_mistakes_are_one_line_with_the_remedy(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shown = fails(monkeypatch, capsys, *words)
    assert message in shown
    assert "Traceback" not in shown


@pytest.mark.usefixtures("unplanned")
def test_a_cold_start_is_left_out_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    run(monkeypatch, "train", "unirl-zero/think", "--skip-cold-start", "--dry-run")
    shown = capsys.readouterr().out
    assert "stage rl" in shown
    assert "cold-start" not in shown
    for recipe in ("unirl-zero/draw", "corl/tiny"):
        assert "cold start" in fails(monkeypatch, capsys, "train", recipe, "--skip-cold-start", "--dry-run")


def test_an_unknown_field_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert "--optim.stepz" in fails(monkeypatch, capsys, "train", "corl/tiny-unified", "--optim.stepz", "3")


def test_a_wrong_type_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    assert "--optim.steps" in fails(monkeypatch, capsys, "train", "corl/tiny-unified", "--optim.steps", "many")


def test_a_run_folder_is_not_overwritten_unasked_and_a_foreign_one_never(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "notes.txt").write_text("mine")
    words = ("train", "corl/tiny-unified", "--policy.path", str(checkpoint), "--out", str(tmp_path))
    assert "--overwrite" in fails(monkeypatch, capsys, *words)
    assert "not a run folder" in fails(monkeypatch, capsys, *words, "--overwrite")
    assert (tmp_path / "notes.txt").exists()


def test_eval_scores_a_checkpoint_and_writes_records(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "result.json"
    words = ("eval", str(checkpoint), "--items", "6", "--max-tokens", "8", "--out", str(out))
    run(monkeypatch, *words)
    assert "drawing" in capsys.readouterr().out
    assert [r["own_reply"] for r in json.loads(out.read_text())["records"]] == [None] * 6
    with pytest.raises(SystemExit):
        run(monkeypatch, *words, "--own-drawings")  # other figures are not mixed with these
    run(monkeypatch, *words, "--own-drawings", "--overwrite")
    assert "own_answer" in capsys.readouterr().out
    assert all(r["own_answer_correct"] is not None for r in json.loads(out.read_text())["records"])


def test_eval_on_prompts_asks_about_what_was_drawn(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "result.json"
    words = ("eval", str(checkpoint), "--data", "prompts", "--items", "6", "--max-tokens", "8", "--out", str(out))
    run(monkeypatch, *words)
    shown = capsys.readouterr().out
    assert "own_answer" in shown
    assert "two_object" in shown
    assert "not judged" in shown
    records = json.loads(out.read_text())["records"]
    assert all(r["own_answer_correct"] is not None and r["drawing_correct"] is None for r in records)
    run(monkeypatch, *words, "--overwrite", "--rewards", "jpeg_compressible", "accuracy_soft")
    assert "reward/jpeg_compressible" in capsys.readouterr().out
    for record in json.loads(out.read_text())["records"]:
        assert 0 < record["reward/jpeg_compressible"] < 1
        assert record["reward/accuracy_soft"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data", "./nowhere.jsonl"), "nowhere.jsonl"),
        (("--data", "prompts", "--excluded", "nowhere.jsonl"), "no such file; give GenEval's"),
        (("--data", "prompts", "--rewards", "clop"), "'clop' is unknown; did you mean 'clip'"),
        (("--data", "prompts", "--rewards", "llm_judge:http://127.0.0.1:1/v1#m"), "cannot be reached"),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_a_model_is_loaded(
    words: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert message in fails(monkeypatch, capsys, "eval", "no/model", *words)


def test_a_run_that_evaluates_on_prompts_must_ask_about_its_drawings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    shown = fails(monkeypatch, capsys, "train", "corl/tiny-unified", "--data.eval", "prompts", "--dry-run")
    assert "evaluation.own_drawings = False: must be True with data.eval = 'prompts'" in shown


def test_sample_draws_a_sheet_and_answers_a_question(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "sheet.png"
    run(monkeypatch, "sample", "draw", str(checkpoint), "a red circle", "--count", "2", "--out", str(out))
    assert Image.open(out).size == (2 * 192 + 8, 192)
    capsys.readouterr()
    run(monkeypatch, "sample", "ask", str(checkpoint), str(out), "What is it?", "--count", "2", "--max-tokens", "4")
    assert capsys.readouterr().out.count("\n") >= 1


@pytest.mark.usefixtures("unplanned")
def test_the_exported_world_is_a_data_set_to_train_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(monkeypatch, "export", str(tmp_path / "world"), "--count", "12")
    run(monkeypatch, "train", "corl/tiny-unified", "--data.train", str(tmp_path / "world"), "--dry-run")
    assert "12 items" in capsys.readouterr().out


def sources(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """What each run of a dry run trains on."""
    run(monkeypatch, "train", *words, "--dry-run")
    return re.findall(r"training data:\s+(\S+?),?\s", capsys.readouterr().out)


@pytest.mark.usefixtures("unplanned")
def test_data_replaces_the_recipes_and_in_a_chain_that_of_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "export", "a", "--count", "33")
    run(monkeypatch, "export", "b", "--count", "33")
    assert sources(monkeypatch, capsys, "corl/tiny-unified", "--data", "a") == ["a"]
    assert sources(monkeypatch, capsys, "corl/janus-pro-1b", "--data", "a") == ["a"] * 4
    assert sources(monkeypatch, capsys, "corl/tiny", "--data", "a", "open-ended=b") == ["a", "a", "a", "b"]
    assert sources(monkeypatch, capsys, "corl/tiny", "--data", "draw=b") == ["world", "b", "world", "world"]
    shown = fails(monkeypatch, capsys, "train", "corl/tiny", "--data", "a", "drew=b", "--dry-run")
    assert "'drew=b' is one too many" in shown
    assert "unified, draw, multiple-choice, open-ended" in shown
    shown = fails(monkeypatch, capsys, "train", "corl/tiny-unified", "--data", "a", "b", "--dry-run")
    assert "'b' is one too many" in shown


@pytest.mark.usefixtures("unplanned")
def test_a_data_set_without_the_scenarios_columns_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    rows: list[dict[str, Any]] = [{"prompt": "a red circle"}] * 12
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = fails(monkeypatch, capsys, "train", "corl/tiny-unified", "--data.train", str(path), "--dry-run")
    assert "image" in shown
    assert "real_image" in shown
