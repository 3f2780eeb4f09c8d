"""lmms-eval's requests are answered as the policy itself answers, and its own tasks run on local data."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unison.evaluation import harness
from unison.evaluation.harness import Asked, Respondent, stopped
from unison.evaluation.suites.understanding import GREEDY
from unison.policies.actions import given, tokens_of
from unison.policies.janus.policy import Janus
from unison.types import Sampling
from unison.world.render import render
from unison.world.scene import Object

REPO = Path(__file__).resolve().parents[2]
HARNESS = REPO / ".venv" / "harness"
LMMS = pytest.mark.skipif(not HARNESS.is_dir(), reason="needs lmms-eval: make harness")
PICTURE = render((Object("circle", "red", 1, 1),))
ASKED = [Asked(f"task/test/{i}/0", f"How many shapes are there? {i}", [PICTURE]) for i in range(5)]


def respondent(policy: Janus, batch_size: int = 2) -> Respondent:
    return Respondent(policy, batch_size, 6, 0, answer_alone=False)


def test_replies_come_in_order_each_with_its_tasks_own_settings(policy: Janus) -> None:
    settings: list[dict[str, Any]] = [{"max_new_tokens": n} for n in (4, 4, 4, 7, 7)]
    found = list(respondent(policy).replies(ASKED, settings))
    for asked, setting, reply in zip(ASKED, settings, found, strict=True):
        sampling = Sampling(temperature=GREEDY, max_tokens=setting["max_new_tokens"])
        assert policy.decode(policy.write([asked.context], sampling, [0])) == [reply]
    assert list(respondent(policy, 1).replies(ASKED, settings)) == found


def test_a_task_that_asks_for_samples_gets_samples_that_depend_on_the_request_alone(policy: Janus) -> None:
    drawn: dict[str, Any] = {"temperature": 1.0, "do_sample": True}
    found = list(respondent(policy).replies(ASKED, [drawn] * 5))
    assert list(respondent(policy, 3).replies(ASKED[::-1], [drawn] * 5))[::-1] == found
    greedy = list(respondent(policy).replies(ASKED, [{"temperature": 1.0, "do_sample": False}] * 5))
    assert greedy == list(respondent(policy).replies(ASKED, [{}] * 5))
    assert greedy != found


def test_a_task_is_given_the_answer_blocks_content_unless_it_is_to_see_whole_replies(
    policy: Janus, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "<think>two of them</think><answer>yes</answer>"
    monkeypatch.setattr(policy, "decode", lambda actions: [whole for _ in actions])
    found = [list(replace(respondent(policy), answer_alone=alone).replies(ASKED[:1], [{}])) for alone in (True, False)]
    assert found == [["yes"], [whole]]


def test_a_reply_ends_at_a_stop_word_but_not_at_an_empty_line() -> None:
    assert stopped("<think>a\n\nb</think>Q: next", ["\n\n", "Q:"]) == "<think>a\n\nb</think>"
    assert stopped("one two", "two") == "one "
    assert stopped("whole", None) == "whole"


def test_an_option_is_worth_the_log_probability_of_its_own_tokens(policy: Janus) -> None:
    said = ["red", "a blue square", "circle", "3", "no"]
    found = list(respondent(policy).surprises(ASKED, said))
    for asked, text, (value, greedy) in zip(ASKED, said, found, strict=True):
        ids = tokens_of(policy.encode([text])[0]).ids[:-1]
        with torch.no_grad():
            logp = policy([asked.context], [given("text", ids)])[0]
        assert value == pytest.approx(-float(logp.sum()), abs=1e-3)
        sampling = Sampling(temperature=GREEDY, max_tokens=len(ids))
        written = tokens_of(policy.write([asked.context], sampling, [0])[0])
        assert greedy is torch.equal(written.ids, ids)


def test_the_greedy_option_is_known_as_such(policy: Janus) -> None:
    written = tokens_of(policy.write([ASKED[0].context], Sampling(temperature=GREEDY, max_tokens=1), [0])[0])
    word = policy.tokenizer.decode(written.ids)
    assert torch.equal(tokens_of(policy.encode([word])[0]).ids[:-1], written.ids), "the word is another token in a text"
    ((_, greedy),) = respondent(policy).surprises(ASKED[:1], [word])
    assert greedy


def test_what_is_no_picture_is_refused_by_the_request_that_shows_it(policy: Janus) -> None:
    video = Asked("mvbench/test/3/0", "What happens?", ["film.mp4"])
    with pytest.raises(ValueError, match="mvbench/test/3/0 shows a str: tasks with pictures alone"):
        list(respondent(policy).replies([video], [{}]))


def test_without_the_harness_the_command_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        harness.main()
    assert str(stop.value).endswith(f"the harness lmms-eval is not installed: {harness.INSTALL}")


# -- the harness itself ------------------------------------------------------------------------------------------------


def write_tasks(folder: Path) -> None:
    """POPE and HellaSwag as lmms-eval has them, on rows of ours."""
    import datasets

    tasks = HARNESS / "lmms_eval" / "tasks"
    asked = [
        {"question": f"Is there a {shape} in the image?", "answer": a}
        for shape, a in (("circle", "yes"), ("ring", "no"))
    ]
    pope = [
        {"question_id": str(i), "image_source": "x", "category": "random", "image": PICTURE} | asked[i % 2]
        for i in range(6)
    ]
    swag = [
        {"ind": i, "activity_label": "Drawing", "ctx_a": "Someone draws", "ctx_b": "a red", "label": str(i % 2)}
        | {"endings": ["circle.", "square on the wall of the house."]}
        for i in range(4)
    ]
    for name, rows, split, source in (
        ("pope", pope, "test", "pope/pope"),
        ("hellaswag", swag, "validation", "hellaswag/hellaswag"),
    ):
        datasets.DatasetDict({split: datasets.Dataset.from_list(rows)}).save_to_disk(str(folder / name))
        more = {"task": f"local_{name}", "dataset_path": str(folder / name), "dataset_kwargs": {"load_from_disk": True}}
        lines = [f"include: {tasks / source}.yaml", *(f"{key}: {json.dumps(value)}" for key, value in more.items())]
        lines += ["training_split: null"] if name == "hellaswag" else []
        (folder / f"{name}.yaml").write_text("\n".join(lines) + "\n")


@LMMS
@pytest.mark.slow
def test_the_harness_runs_its_own_tasks_on_local_data(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "tasks", tmp_path / "out"
    folder.mkdir()
    write_tasks(folder)
    words = ["--model", "unison", "--model_args", f"pretrained={checkpoint},max_tokens=8", "--batch_size", "4"]
    words += ["--tasks", "local_pope,local_hellaswag", "--include_path", str(folder)]
    words += ["--output_path", str(out), "--log_samples"]
    more = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HARNESS)}
    done = subprocess.run(
        [sys.executable, "-m", "unison.evaluation.harness", *words],
        capture_output=True, text=True, cwd=REPO, env=os.environ | more, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    (path,) = out.rglob("*results.json")
    results = json.loads(path.read_text())["results"]
    assert 0 <= results["local_pope"]["pope_accuracy,none"] <= 1
    assert 0 <= results["local_hellaswag"]["acc,none"] <= 1
    samples = {
        name: path for path in out.rglob("*samples*.jsonl") for name in ("pope", "hellaswag") if name in path.name
    }
    rows = [json.loads(line) for line in samples["pope"].read_text().splitlines()]
    assert len(rows) == 6
    assert all(isinstance(row["filtered_resps"][0], str) for row in rows)
