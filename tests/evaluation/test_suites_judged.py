"""The suites whose judge looks and answers, DPG-Bench and WISE: files, scores, failures, kills and processes."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from PIL import Image

from unison.cli import main as cli
from unison.evaluation.stats import pooled_share, task_mean
from unison.evaluation.suites import wise
from unison.evaluation.suites.base import Job
from unison.evaluation.suites.dpg import COLUMNS, Question, figures, read_questions, score, settle
from unison.evaluation.suites.ledger import Ledger
from unison.evaluation.suites.tables import Row, digest, read_rows
from unison.evaluation.suites.wise import MARKS, WEIGHTS, category, read_marks, wiscore
from unison.rewards.llm_judge import word_ids
from unison.rewards.visual_judge import Request, load_judge

REPO = Path(__file__).resolve().parents[2]
TINY = "assets/tiny-janus"
Serve = Callable[..., str]

QUESTIONS = [  # item, text, number, dependency, tuple, question; the judge's answer is the last
    ("a", "a red circle, above a square", 1, "0", "entity - whole (circle)", "Is there a circle?", "Yes"),
    ("a", "a red circle, above a square", 2, "1", "attribute - color (circle, red)", "Is the circle red?", "No"),
    ("a", "a red circle, above a square", 3, "1, 2", "relation - spatial (circle, above)", "Is it above?", "Yes"),
    ("b", "two crosses", 1, "0", "entity - whole (crosses)", "Are there crosses?", "Yes"),
    ("b", "two crosses", 2, "1", "other - count (crosses, ==2)", "Are there two?", "Yes"),
]
SAID = {row[5]: row[6] for row in QUESTIONS}
MARKED = [  # number, prompt, subcategory; the judge's marks
    (1, "Food of the mid-autumn festival", "Festival", (2, 1, 0)),
    (402, "The square at noon", "Horizontal time", (0, 0, 2)),
    (600, "Where the pyramids are", "Geographical location", (1, 1, 1)),
]


def write_dpg(path: Path, rows: Sequence[tuple[Any, ...]] = QUESTIONS) -> Path:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*COLUMNS[:2], "keywords", *COLUMNS[2:]])
        table.writerows([*row[:2], "", *row[2:6]] for row in rows)
    return path


def write_wise(path: Path, rows: Sequence[tuple[Any, ...]] = MARKED) -> Path:
    entries = [
        {"Prompt": prompt, "Explanation": f"means {prompt}", "Category": "x", "Subcategory": sub, "prompt_id": number}
        for number, prompt, sub, *_ in rows
    ]
    path.write_text(json.dumps(entries))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["unison", "eval", *words])
    cli.main()


def says(text: str) -> tuple[int, Any]:
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    return 200, {"choices": [{"message": {"content": text}}], "usage": usage}


class Stub:
    """A judge that keeps what it is asked, (pixels, text), its trial apart, and says what `answers` makes of it."""

    def __init__(self, answers: Callable[[str], tuple[int, Any]]) -> None:
        self.answers, self.asked, self.lock = answers, [], threading.Lock()

    def __call__(self, body: dict[str, Any], headers: Any) -> tuple[int, Any]:
        picture, text = body["messages"][-1]["content"]
        data = base64.b64decode(picture["image_url"]["url"].partition(",")[2])
        if text["text"].startswith("Reply with"):
            return says("Yes")
        with self.lock:
            self.asked.append((Image.open(io.BytesIO(data)).tobytes(), text["text"].split("\n")[0]))
        return self.answers(text["text"])

    @property
    def questions(self) -> list[str]:
        return [text for _, text in self.asked]


def by_table(text: str) -> tuple[int, Any]:
    return says(SAID[text.split("\n")[0]])


def by_marks(text: str) -> tuple[int, Any]:
    marks = next(row[3] for row in MARKED if row[1] in text)
    return says("Consistency: {}\nRealism: {}\nAesthetic Quality: {}".format(*marks))


# -- whole evaluations -------------------------------------------------------------------------------------------------


def test_dpg_end_to_end_has_the_score_computed_by_hand_with_its_protocol_and_cost(
    serve_chat: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub, prompts = Stub(by_table), write_dpg(tmp_path / "dpg.csv")
    words = (TINY, "--suite", "dpg", "--prompts", str(prompts), "--images", "2", "--judge", serve_chat(stub))
    run(monkeypatch, *words, "--out", str(tmp_path / "out"), "--keep-pictures")
    result = json.loads((tmp_path / "out" / "dpg.json").read_text())
    found = {name: {cut: e["value"] for cut, e in cuts.items()} for name, cuts in result["figures"].items()}
    assert found["score"] == {"all": pytest.approx((1 / 3 + 1) / 2)}  # a: Yes, No, and Yes under a No; b: Yes, Yes
    plain = {"all": 4 / 5, "entity": 1, "attribute": 0, "relation": 1, "other": 1}
    assert found["answers"] == found["answers_last"] == pytest.approx(plain)
    assert found["answers/color"] == pytest.approx({"all": 0, "attribute": 0})
    assert [record["score"] for record in result["records"]] == pytest.approx([1 / 3, 1 / 3, 1, 1])
    asked = {"drawings": 4, "answers": 10, "failed": 0, "requests": 10, "prompt_tokens": 70, "completion_tokens": 20}
    assert result["counts"] == asked
    pictures = [Image.open(tmp_path / "out" / record["image"]).tobytes() for record in result["records"]]
    assert {pixels for pixels, _ in stub.asked} == set(pictures)
    protocol = result["protocol"]
    assert (protocol["judge"], protocol["questions"], protocol["images_a_prompt"]) == ("judge", 5, 2)
    assert protocol["request"] == "{question}\nAnswer with one word, Yes or No."
    assert "127.0.0.1" not in json.dumps(protocol), "where a judge is does not change what it says"
    page, shown = (tmp_path / "out" / "dpg.md").read_text(), capsys.readouterr().out
    for told in ("answers/color", "requests 10", "mPLUG-large", "temperature 0"):
        assert told in page
        assert told in shown


def test_wise_end_to_end_has_the_score_computed_by_hand(
    serve_chat: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, prompts = Stub(by_marks), [tmp_path / "one.json", tmp_path / "two.json"]
    write_wise(prompts[0], MARKED[:1])
    write_wise(prompts[1], MARKED[1:])
    words = (TINY, "--suite", "wise", "--prompts", *map(str, prompts), "--judge", serve_chat(stub))
    run(monkeypatch, *words, "--out", str(tmp_path / "wise.json"))
    result = json.loads((tmp_path / "wise.json").read_text())
    scores = {"cultural": (1.4 + 0.2) / 2, "time": 0.2 / 2, "space": 0.5}
    overall = (0.4 * scores["cultural"] + 0.167 * scores["time"] + 0.133 * scores["space"]) / 0.7
    found = {name: {cut: e["value"] for cut, e in cuts.items()} for name, cuts in result["figures"].items()}
    assert found["wiscore"] == pytest.approx({"all": overall, **scores})
    assert found["consistency"] == pytest.approx({"all": (0.4 * 2 + 0.133) / 0.7, "cultural": 2, "time": 0, "space": 1})
    assert [record["realism"] for record in result["records"]] == [1, 0, 1]
    assert any("no score in biology, physics, chemistry" in note for note in result["notes"])
    assert len(stub.asked) == result["counts"]["requests"] == 3
    assert result["protocol"]["prompts_by_task"] == {"cultural": 1, "time": 1, "space": 1}


def test_finished_drawings_are_judged_as_they_are(
    serve_chat: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        (tmp_path / "drawn" / f"{number:05d}" / "samples").mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "drawn" / f"{number:05d}" / "samples" / "0000.png")
    stub, prompts = Stub(by_table), write_dpg(tmp_path / "dpg.csv")
    words = ("--suite", "dpg", "--drawn", "--prompts", str(prompts), "--images", "1", "--judge", serve_chat(stub))
    run(monkeypatch, str(tmp_path / "drawn"), *words, "--out", str(tmp_path / "out"))
    assert {pixels[:3]: text for pixels, text in stub.asked}.keys() == {b"\0\0\0", b"\1\0\0"}
    assert (tmp_path / "out" / "dpg.json").is_file()


# -- failures ----------------------------------------------------------------------------------------------------------


def test_failed_answers_are_counted_left_out_and_alone_asked_again(
    serve_chat: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healed, late = threading.Event(), threading.Event()

    def ill(text: str) -> tuple[int, Any]:
        if healed.is_set():
            return by_table(text)
        if "red" in text:
            return says("It depends on the light.")
        if "two" in text:
            late.wait(60)
        return (500, "out of memory") if "above" in text else by_table(text)

    stub, prompts = Stub(ill), write_dpg(tmp_path / "dpg.csv")
    words = (TINY, "--suite", "dpg", "--prompts", str(prompts), "--images", "1", "--judge", serve_chat(stub))
    words = (*words, "--judge-timeout", "3", "--judge-attempts", "1", "--out", str(tmp_path / "out"))
    run(monkeypatch, *words)
    late.set()
    result = json.loads((tmp_path / "out" / "dpg.json").read_text())
    kinds = {name: n for name, n in result["counts"].items() if "failed" in name}
    assert kinds == {"failed": 3, "failed: status 500": 1, "failed: timeout": 1, "failed: unreadable": 1}
    assert any(
        note.startswith("3 of 5 answers failed (1 status 500, 1 timeout, 1 unreadable)") for note in result["notes"]
    )
    assert "score" not in result["figures"], "both drawings lack an answer"
    assert [record["score"] for record in result["records"]] == [None, None]
    assert result["figures"]["answers"]["all"]["value"] == pytest.approx(1), "a failure is not taken for a No"
    assert result["records"][0]["failed"]["2"] == "unreadable: 'It depends on the light.'"
    asked = len(stub.asked)
    healed.set()
    run(monkeypatch, *words)
    assert sorted(stub.questions[asked:]) == ["Are there two?", "Is it above?", "Is the circle red?"]
    result = json.loads((tmp_path / "out" / "dpg.json").read_text())
    assert result["figures"]["score"]["all"]["value"] == pytest.approx(2 / 3)
    assert result["counts"]["failed"] == 0
    assert result["counts"]["requests"] == len(stub.asked) == 8, "what failed has cost something too"
    run(monkeypatch, *words)
    assert len(stub.asked) == 8


def test_a_mark_that_is_missing_fails_its_drawing_alone(
    serve_chat: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub(lambda text: says("Consistency: 2") if "noon" in text else by_marks(text))
    prompts = write_wise(tmp_path / "wise.json")
    words = (TINY, "--suite", "wise", "--prompts", str(prompts), "--judge", serve_chat(stub))
    run(monkeypatch, *words, "--out", str(tmp_path / "out"))
    result = json.loads((tmp_path / "out" / "wise.json").read_text())
    assert result["counts"]["failed: unreadable"] == 1
    assert result["figures"]["wiscore"].keys() == {"all", "cultural", "space"}
    assert any("no score in time, biology" in note for note in result["notes"])
    assert [record["wiscore"] for record in result["records"]] == [pytest.approx(0.8), None, pytest.approx(0.5)]


@pytest.mark.parametrize("failed_in", [0, 1])
def test_a_record_that_failed_gives_way_to_one_that_did_not_whichever_file_is_read_first(
    tmp_path: Path, failed_in: int
) -> None:
    lines = {failed_in: {"key": "a", "failed": {"1": "timeout: ..."}}, 1 - failed_in: {"key": "a", "failed": {}}}
    for process, line in lines.items():
        (tmp_path / f"dpg-{process}.jsonl").write_text(f'{{"protocol": {{}}}}\n{json.dumps(line)}\n')
    job = Job("x", "float32", tmp_path, False, PartialState(cpu=True))
    ledger = Ledger(tmp_path / "dpg.json", {}, job)
    assert ledger.records == {"a": {"key": "a", "failed": {}}}
    assert [ledger.is_open(key) for key in "ab"] == [False, True]
    (tmp_path / f"dpg-{1 - failed_in}.jsonl").unlink()
    assert Ledger(tmp_path / "dpg.json", {}, job).is_open("a")


# -- kills and processes -----------------------------------------------------------------------------------------------


def command(prompts: Path, judge: str, out: Path) -> list[str]:
    chosen = ["--suite", "dpg", "--prompts", str(prompts), "--images", "2", "--batch-size", "2", "--keep-pictures"]
    return ["-m", "unison", "eval", TINY, *chosen, "--judge", judge, "--judge-workers", "2", "--out", str(out)]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_without_asking_again_what_it_has_written(
    serve_chat: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, prompts, out = Stub(by_table), write_dpg(tmp_path / "dpg.csv"), tmp_path / "out"
    stub.answers = lambda text: (time.sleep(0.2), by_table(text))[1]
    words = command(prompts, serve_chat(stub), out)
    process, log = subprocess.Popen([sys.executable, *words], cwd=REPO, env=ENVIRONMENT), out / "dpg-0.jsonl"
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b"\n") < 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = log.read_bytes()
    lines = [json.loads(line) for line in kept.split(b"\n")[1:-1]]
    assert 1 <= len(lines) < 4, "the evaluation ended before it was killed"
    written = {line["key"] for line in lines}
    stub.asked.clear()
    run(monkeypatch, *words[3:])
    result = json.loads((out / "dpg.json").read_text())
    pixels = {record["key"]: Image.open(out / record["image"]).tobytes() for record in result["records"]}
    rest = [record for record in result["records"] if record["key"] not in written]
    texts = {"a": [row[5] for row in QUESTIONS[:3]], "b": [row[5] for row in QUESTIONS[3:]]}
    assert sorted(stub.asked) == sorted((pixels[one["key"]], text) for one in rest for text in texts[one["id"]])
    assert log.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert result["figures"]["score"]["all"]["value"] == pytest.approx(2 / 3)


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(
    serve_chat: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub, prompts = Stub(by_table), write_dpg(tmp_path / "dpg.csv")
    one, two = (command(prompts, serve_chat(stub), tmp_path / name) for name in ("one", "two"))
    run(monkeypatch, *one[3:])
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *two]
    done = subprocess.run(launch, cwd=REPO, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads((tmp_path / name / "dpg.json").read_text()) | {"environment": 0} for name in ("one", "two")]
    assert found[0] == found[1]
    assert sorted(stub.asked[:10]) == sorted(stub.asked[10:])
    assert [(tmp_path / "two" / f"dpg-{i}.jsonl").read_bytes().count(b"\n") for i in range(2)] == [3, 3]


# -- the question graph ------------------------------------------------------------------------------------------------


def chain(*parents: tuple[int, ...]) -> list[Question]:
    return [Question(n, "?", some, "entity", "whole") for n, some in enumerate(parents, start=1)]


def test_a_no_reaches_every_question_below_it() -> None:
    questions = chain((), (1,), (2,), ())
    assert settle(questions, {1: False, 2: True, 3: True, 4: True}) == {1: False, 2: False, 3: False, 4: True}
    assert score(questions, {1: False, 2: True, 3: True, 4: True}) == pytest.approx(1 / 4)
    assert score(questions, {1: True, 2: False, 3: True, 4: True}) == pytest.approx(2 / 4)
    assert score(questions, {1: True, 2: True, 3: False, 4: True}) == pytest.approx(3 / 4)


def test_one_no_among_several_parents_is_enough() -> None:
    assert settle(chain((), (), (1, 2)), {1: True, 2: False, 3: True}) == {1: True, 2: False, 3: False}


def test_questions_are_settled_in_the_order_of_the_file() -> None:
    """As published: a parent that stands below its child and falls by its own parent has not fallen yet."""
    assert settle(chain((2,), (3,), ()), {1: True, 2: True, 3: False}) == {1: True, 2: False, 3: False}


def test_a_missing_answer_leaves_the_score_open_unless_a_no_settles_it() -> None:
    questions = chain((), (1,))
    assert score(questions, {1: True, 2: None}) is None
    assert score(questions, {1: None, 2: True}) is None
    assert settle(questions, {1: None, 2: True}) == {1: None, 2: None}
    assert score(questions, {1: False, 2: None}) == 0
    assert settle(questions, {1: None, 2: False}) == {1: None, 2: False}


def test_the_score_is_the_mean_over_prompts_of_the_mean_over_drawings_and_categories_pool_plain_answers() -> None:
    rows = [Row("x", dict(zip(COLUMNS, row[:6], strict=True))) for row in QUESTIONS]
    prompts, _ = read_questions(rows)
    told = {
        "a": [{"1": False, "2": True, "3": True}, {"1": True, "2": True, "3": None}],
        "b": [{"1": True, "2": False}],
    }
    records = [
        {
            "id": prompt.item.id,
            "task": "all",
            "told": answers,
            "score": score(prompt.questions, {int(k): v for k, v in answers.items()}),
        }
        for prompt in prompts
        for answers in told[prompt.item.id]
    ]
    assert [record["score"] for record in records] == [0, None, pytest.approx(1 / 2)]
    found = {name: {cut: e.value for cut, e in cuts.items()} for name, cuts in figures(prompts, records).items()}
    assert found["score"]["all"] == pytest.approx((0 + 1 / 2) / 2)
    assert found["answers"]["all"] == pytest.approx(5 / 7), "the rule of parents is not for categories"
    assert found["answers"]["entity"] == pytest.approx(2 / 3)
    assert found["answers_last"]["all"] == pytest.approx(3 / 4)
    assert found["answers/spatial"] == {"all": 1, "relation": 1}


def test_a_pooled_share_weighs_items_by_their_tries() -> None:
    share = pooled_share([(1, 1), (0, 3), (2, 4)])
    assert share.value == pytest.approx(3 / 8)
    assert 0 <= share.low <= share.value <= share.high <= 1
    with pytest.raises(ValueError, match="no tries"):
        pooled_share([(0, 0)])


# -- marks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("Consistency: 2\nRealism: 1\nAesthetic Quality: 0", (2, 1, 0)),
        ("**Consistency:** 0\n**Realism**: 2\n**Aesthetic Quality:** 1", (0, 2, 1)),
        ('{"consistency": 1, "realism": 1, "aesthetic_quality": 2}', (1, 1, 2)),
        ("<think>Consistency: 0?</think>Consistency 2, realism 2, aesthetic quality 2", (2, 2, 2)),
        ("Consistency: 3\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0", None),
        ("Consistency: 2\nRealism: 1", None),
        ("I cannot judge this picture.", None),
        ("", None),
    ],
)
def test_marks_are_read_or_refused(text: str, marks: tuple[int, ...] | None) -> None:
    assert read_marks(text) == (marks and dict(zip(MARKS, marks, strict=True)))


def test_wiscore_is_the_weighted_mean_of_the_marks() -> None:
    assert wiscore({"consistency": 2, "realism": 1, "aesthetic": 0}) == pytest.approx(0.8)
    assert wiscore({"consistency": 2, "realism": 2, "aesthetic": 2}) == pytest.approx(1)


def test_the_overall_score_weighs_categories_and_not_prompts() -> None:
    values = {
        "cultural": [1.0, 0.0],
        "time": [0.5],
        "space": [0.2],
        "biology": [1.0],
        "physics": [0.0],
        "chemistry": [0.4],
    }
    records = [
        {"id": f"{task}{i}", "task": task, "wiscore": value, "consistency": 1, "realism": None, "aesthetic": 2}
        for task, some in values.items()
        for i, value in enumerate(some)
    ]
    found = wise.figures(records)
    overall = 0.4 * 0.5 + 0.167 * 0.5 + 0.133 * 0.2 + 0.1 * 1.0 + 0.1 * 0.0 + 0.1 * 0.4
    assert found["wiscore"]["all"].value == pytest.approx(overall)
    assert "realism" not in found
    assert sum(WEIGHTS.values()) == pytest.approx(1)
    with_more = task_mean({"a": [1.0], "b": [0.0]}, {"a": 3.0, "b": 1.0, "c": 9.0})
    assert with_more.value == pytest.approx(3 / 4)


@pytest.mark.parametrize(
    ("number", "sub", "expected"),
    [
        (1, "Festival", "cultural"),
        (400, "Celebrity", "cultural"),
        (401, "Longitudinal time", "time"),
        (567, "Horizontal time", "time"),
        (568, "Geographical location", "space"),
        (700, "Different view", "space"),
        (701, "State", "biology"),
        (800, "State", "biology"),
        (801, "Mechanics", "physics"),
        (1000, "Burning", "chemistry"),
    ],
)
def test_categories_are_those_of_the_published_numbers(number: int, sub: str, expected: str) -> None:
    assert category(number, Row("x", {"Subcategory": sub})) == expected


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_table_reads_the_same_in_every_format(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    (tmp_path / "folder").mkdir()
    path = write_dpg(tmp_path / "dpg.csv")
    rows = [row.values for row in read_rows(str(path), COLUMNS, "x")]
    (tmp_path / "dpg.json").write_text(json.dumps(rows))
    (tmp_path / "folder" / "dpg.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(Table.from_pylist(rows), tmp_path / "dpg.parquet")
    for name in ("dpg.json", "folder", "dpg.parquet"):
        read = read_rows(str(tmp_path / name), COLUMNS, "x")
        assert [row.values for row in read] == rows
        assert digest(read) == digest(read_rows(str(path), COLUMNS, "x"))
    prompts, _ = read_questions(read_rows(str(path), COLUMNS, "x"))
    assert [prompt.item.prompt for prompt in prompts] == ["a red circle, above a square", "two crosses"]
    assert prompts[0].questions[2] == Question(3, "Is it above?", (1, 2), "relation", "spatial")


def test_bad_prompts_can_be_left_out_whole() -> None:
    rows = [Row(f"row {i}", dict(zip(COLUMNS, row[:6], strict=True))) for i, row in enumerate(QUESTIONS, start=1)]
    rows[1].values["dependency"] = "7"
    message = "row 2: dependency = '7', but 7 is no other proposition_id of item 'a'; add its row, or write 0 for none"
    with pytest.raises(ValueError, match=message):
        read_questions(rows)
    prompts, bad = read_questions(rows, skip_bad=True)
    assert [prompt.item.id for prompt in prompts] == ["b"]
    assert bad == [message]


def changed(row: int, column: str, value: Any) -> list[tuple[Any, ...]]:
    rows = [list(one) for one in QUESTIONS]
    rows[row][COLUMNS.index(column)] = value
    return [tuple(one) for one in rows]


def test_what_cannot_be_evaluated_is_said_before_anything_is_drawn(
    serve_chat: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import DetrConfig

    DetrConfig().save_pretrained(tmp_path / "detector")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/v1#m"
    blind = serve_chat(lambda asked, headers: (400, {"error": "this model takes no images"}))
    csvs = {
        "dependency": changed(1, "dependency", "one"),
        "parent": changed(1, "dependency", "9"),
        "twice": changed(1, "proposition_id", 1),
        "number": changed(1, "proposition_id", "x"),
        "other": changed(1, "text", "another"),
        "tuple": changed(0, "tuple", "(circle)"),
        "empty": changed(4, "question_natural_language", " "),
    }
    for name, rows in csvs.items():
        write_dpg(tmp_path / f"{name}.csv", rows)
    dpg, good = ("--suite", "dpg", "--judge", nobody, "--prompts"), str(write_dpg(tmp_path / "good.csv"))
    (tmp_path / "columns.csv").write_text("item_id,text\na,b\n")
    (tmp_path / "more.csv").write_text(f"{','.join(COLUMNS)}\na,one, two,1,0,entity - whole (x),Is it?\n")
    (tmp_path / "header.csv").write_text(",".join(COLUMNS))
    (tmp_path / "asks.txt").write_text("Is it right?")
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "broken.json").write_text("[{")
    write_wise(tmp_path / "outside.json", [(1001, "x", "y")])
    write_wise(tmp_path / "again.json", [(1, "x", "y"), (1, "z", "y")])
    write_wise(tmp_path / "blank.json", [(1, " ", "y")])
    marks = ("--suite", "wise", "--judge", nobody, "--prompts")
    asked = (*dpg, good)
    cases: list[tuple[tuple[str, ...], str]] = [
        ((*dpg, "nowhere.csv"), "prompts = 'nowhere.csv': no such file; give DPG-Bench's dpg_bench.csv"),
        ((*dpg, "owner/name"), "prompts = 'owner/name' is no local file and cannot be read from the hub"),
        ((*dpg, str(tmp_path / "columns.csv")), "row 1: there is no 'proposition_id', only item_id, text"),
        ((*dpg, str(tmp_path / "more.csv")), "row 1: it has more fields than the header; put quotes"),
        ((*dpg, str(tmp_path / "header.csv")), "it holds no rows"),
        ((*dpg, str(tmp_path / "dependency.csv")), "row 2: dependency = 'one' is no list of proposition_ids"),
        ((*dpg, str(tmp_path / "parent.csv")), "row 2: dependency = '9', but 9 is no other proposition_id of item"),
        ((*dpg, str(tmp_path / "twice.csv")), "item_id 'a' has two rows of one proposition_id"),
        ((*dpg, str(tmp_path / "number.csv")), "row 2: proposition_id = 'x' is no whole number"),
        ((*dpg, str(tmp_path / "other.csv")), "row 2: text is another than in the item's first row"),
        ((*dpg, str(tmp_path / "tuple.csv")), "row 1: tuple = '(circle)' names no category"),
        ((*dpg, str(tmp_path / "empty.csv")), "row 5: question_natural_language is empty"),
        ((*marks, str(tmp_path / "object.json")), "cannot be read as json: it holds no list of rows but a dict"),
        ((*marks, str(tmp_path / "broken.json")), "cannot be read as json: "),
        ((*marks, str(tmp_path / "outside.json")), "row 1: prompt_id = 1001 is not from 1 to 1000"),
        ((*marks, str(tmp_path / "again.json")), "row 2: prompt_id = 1 occurs twice"),
        ((*marks, str(tmp_path / "blank.json")), "row 1: Prompt is empty"),
        ((*asked, "--images", "0"), "images = 0: must be at least 1"),
        ((*asked, "--judge-attempts", "0"), "judge_attempts = 0: must be at least 1"),
        ((*asked, "--request", str(tmp_path / "asks.txt")), "lacks {question}: write it where the text goes"),
        ((*asked, "--request", "nowhere.txt"), "request = 'nowhere.txt': no such file; give a text with {question}"),
        ((*asked, "--judge-attempts", "1"), "(model 'm') cannot be reached"),
        ((*asked, "--judge", blind), 'answered 400: {"error": "this model takes no images"}'),
        ((*asked, "--judge", "http://127.0.0.1:1/v1"), "is no endpoint: write http://host:port/v1#model"),
        ((*asked, "--judge", "./nowhere"), "judge = './nowhere': './nowhere' is neither a folder nor a hub id"),
        ((*asked, "--judge", str(tmp_path / "detector")), "as a AutoModelForImageTextToText"),
    ]
    for words, message in cases:
        with pytest.raises(SystemExit) as stopped:
            run(monkeypatch, "no/model", *words)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err


# -- a judge of transformers -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def looker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Janus as a judge, its vocabulary enlarged by Yes and No."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    source, folder = REPO / "unison" / TINY, tmp_path_factory.mktemp("looker")
    model, processor = AutoModelForImageTextToText.from_pretrained(source), AutoProcessor.from_pretrained(source)
    processor.tokenizer.add_tokens(["Yes", "No"])
    torch.manual_seed(0)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


SHOWN = [
    Request(Image.new("RGB", (48, 48), color), text) for color in ("red", "blue") for text in ("Is it?", "Is it red?")
]


def test_a_judge_of_transformers_says_the_word_that_it_gives_more_to_whatever_is_in_its_batch(looker: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    judge = load_judge(str(looker), "verdict", torch.device("cpu"), {})
    together = [told.text for told in judge(SHOWN)]
    assert [next(judge([one])).text for one in SHOWN] == together
    model, processor = AutoModelForImageTextToText.from_pretrained(looker), AutoProcessor.from_pretrained(looker)
    words = [word_ids(processor.tokenizer, word, "x")[0] for word in ("Yes", "No")]
    for request, text in zip(SHOWN, together, strict=True):
        prompt = f"<|User|>: <image_placeholder>\n{request.text}\n\n<|Assistant|>:"
        inputs = processor(text=[prompt], images=[request.image], return_tensors="pt")
        with torch.no_grad():
            yes, no = model(**inputs).logits[0, -1, words].tolist()
        assert text == ("Yes" if yes > no else "No")


def test_a_judge_of_transformers_writes_a_reply(looker: Path) -> None:
    judge = load_judge(str(looker), "text", torch.device("cpu"), {})
    together = [told.text for told in judge(SHOWN)]
    assert all(together)
    assert [next(judge([one])).text for one in SHOWN] == together


def test_dpg_runs_with_a_judge_of_transformers(looker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = write_dpg(tmp_path / "dpg.csv")
    words = (TINY, "--suite", "dpg", "--prompts", str(prompts), "--images", "1", "--judge", str(looker))
    run(monkeypatch, *words, "--out", str(tmp_path))
    result = json.loads((tmp_path / "dpg.json").read_text())
    assert result["counts"] == {"drawings": 2, "answers": 5, "failed": 0, "requests": 5}
    assert 0 <= result["figures"]["score"]["all"]["value"] <= 1
    assert result["protocol"]["judge_sees"].startswith("transformers, float32, picture before text, whichever of Yes")


def test_a_judge_without_the_words_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot judge: its tokenizer has no token for 'Yes'"):
        load_judge(str(REPO / "unison" / TINY), "verdict", torch.device("cpu"), {})
