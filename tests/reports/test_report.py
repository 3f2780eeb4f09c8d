"""The report says what the run folder holds, no more, in one file."""

from __future__ import annotations

import html
import json
import random
import re
from pathlib import Path

import pytest
from PIL import Image

from unison.config import PolicyConfig, RunConfig, to_json
from unison.evaluation.stats import Estimate, conditional, task_difference, task_mean
from unison.reports.comparison import FIGURES, Comparison, verdict
from unison.reports.page import write_report
from unison.reports.run_folder import read_run

REPLY = "<think>1 < 2</think><script>alert('x')</script>"


def record(i: int, skill: float, rng: random.Random, image: str | None) -> dict:
    correct, own = rng.random() < skill, rng.random() < skill
    return {
        "id": f"item-{i}", "task": ("counting", "position")[i % 2], "prompt": "a red ring",
        "question": "What color?", "answer": "red", "kind": "open_ended", "reply": REPLY,
        "drawing_correct": correct,
        "drawing_score": float(correct), "drawing_reason": "as asked", "answer_correct": rng.random() < skill,
        "own_answer_correct": own, "drift": own and not correct,
        "format_ok": rng.random() < 0.9, "image": image, "question_image": image, "probe_correct": rng.random() < skill,
    }  # fmt: skip


def write_evaluation(run: Path, step: int, items: int, skill: float) -> None:
    rng = random.Random(step)
    (run / f"eval/{step:06}").mkdir(parents=True)
    names = [f"eval/{step:06}/{i}.png" if i < 3 else None for i in range(items)]
    for name in filter(None, names):
        Image.new("RGB", (8, 8), (rng.randrange(256), 0, 0)).save(run / name)
    records = [record(i, skill, rng, name) for i, name in enumerate(names)]
    (run / f"eval/{step:06}.json").write_text(json.dumps({"step": step, "records": records}))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rng = random.Random(0)
    config = RunConfig("corl", PolicyConfig("assets/tiny-janus"), rewards={"draw": 1.0}, out=tmp_path)
    (tmp_path / "config.json").write_text(to_json(config))
    (tmp_path / "environment.json").write_text(json.dumps({"torch": "2.9", "commit": "abc123"}))
    keys = (
        "reward/mean",
        "reward/std",
        "reward/draw/mean",
        "text/entropy",
        "image/kl",
        "grad_norm",
        "novel/metric",
    )
    rows = [{"step": s, "skipped_steps": 0, "loss": None, **{k: rng.random() for k in keys}} for s in range(1, 61)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    times = [{"step": s, "seconds": 2.0, "rollout": 1.2, "reward": 0.1, "update": 0.7} for s in range(1, 61)]
    (tmp_path / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in times))
    for step, items, skill in ((0, 40, 0.2), (30, 10, 0.5), (60, 40, 0.8)):
        write_evaluation(tmp_path, step, items, skill)
    return tmp_path


def by_task(run: Path, step: int, name: str) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for row in json.loads((run / f"eval/{step:06}.json").read_text())["records"]:
        values.setdefault(row["task"], []).append(float(row[name]))
    return values


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))))


def test_page_is_self_contained(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)["']""", page)
    assert links
    assert all(link.startswith(("#", "data:image/")) for link in links)
    assert not re.search(r"url\(|@import|<link|<script|https?:", page)
    assert page.count("data:image/png") == 3 * 2 + 3  # three prompts on both sides and three questions


def test_the_imbalance_is_shown_with_its_gaps_where_it_was_evaluated(run: Path) -> None:
    text = text_of(write_report(run))
    shares = [conditional(pairs(run, step)) for step in (0, 60)]
    for share in shares:
        assert str(share) in text
    assert " → ".join(f"{1 - share.value:.3f}" for share in shares) in text
    assert "Drift" in text
    for path in (run / "eval").glob("*.json"):
        old = json.loads(path.read_text())
        for row in old["records"]:
            del row["own_answer_correct"], row["drift"]
        path.write_text(json.dumps(old))
    assert "Imbalance" not in text_of(write_report(run))


def pairs(run: Path, step: int) -> dict[str, list[tuple[bool, bool]]]:
    found: dict[str, list[tuple[bool, bool]]] = {}
    for row in json.loads((run / f"eval/{step:06}.json").read_text())["records"]:
        found.setdefault(row["task"], []).append((row["drawing_correct"], row["own_answer_correct"]))
    return found


def test_table_holds_the_numbers_of_stats_for_every_figure_and_task(run: Path) -> None:
    text = text_of(write_report(run)).replace("−", "-")
    for name in FIGURES:
        before, after = by_task(run, 0, name), by_task(run, 60, name)
        for tasks in (list(before), *([t] for t in before)):
            sides = [{t: side[t] for t in tasks} for side in (before, after)]
            for side in sides:
                assert str(task_mean(side)) in text
            assert f"{task_difference(*sides).value:+.3f}" in text


def test_pairs_are_matched_by_id_and_not_by_position(run: Path) -> None:
    expected = text_of(write_report(run))
    path = run / "eval/000060.json"
    shuffled = json.loads(path.read_text())
    random.Random(5).shuffle(shuffled["records"])
    path.write_text(json.dumps(shuffled))
    assert text_of(write_report(run)) == expected


def test_replies_are_escaped(run: Path) -> None:
    page = write_report(run).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert html.escape(REPLY, quote=False).split("'")[0] in page


def test_every_metric_has_a_chart_or_is_named_as_zero(run: Path) -> None:
    text = text_of(write_report(run))
    for title in (
        "Reward",
        "Rewards by name",
        "Entropy",
        "KL",
        "Gradient norm",
        "metric",
        "Seconds per step",
    ):
        assert title in text
    assert "Zero at every step: skipped_steps." in text


def test_truncated_last_line_is_tolerated_and_named(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 61, "reward/me')
    assert "line 61 of metrics.jsonl" in text_of(write_report(run))
    assert read_run(run).steps == 60


def test_step_repeated_after_a_resume_counts_once_as_written_last(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "reward/mean": 7.5}\n')
    rows = read_run(run).metrics
    assert len(rows) == 60
    assert rows[-1]["reward/mean"] == 7.5


def test_missing_run_folder_is_the_users_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere' does not exist: give the folder that `unison train` wrote"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        write_report(tmp_path)


def test_run_without_after_evaluation_gives_a_page_with_a_note(run: Path) -> None:
    (run / "eval/000060.json").unlink()
    text = text_of(write_report(run))
    assert "evaluated once, at step 0 (the run is at step 60 of 100)" in text
    assert str(task_mean(by_task(run, 0, "drawing_correct"))) in text


def test_run_with_a_configuration_alone_gives_a_page_that_says_what_is_missing(run: Path) -> None:
    for name in (
        "metrics.jsonl",
        "timings.jsonl",
        "environment.json",
        *(p.name for p in run.glob("eval/*.json")),
    ):
        (run / name if (run / name).exists() else run / "eval" / name).unlink()
    text = text_of(write_report(run))
    for sentence in (
        "holds no evaluation",
        "metrics.jsonl is missing",
        "no environment.json",
        "hold no replies",
    ):
        assert sentence in text


@pytest.mark.parametrize(
    ("low", "high", "claim"),
    [(0.1, 0.3, "rises by 0.2"), (-0.3, -0.1, "falls by"), (-0.1, 0.3, "no change beyond noise")],
)
def test_verdict_claims_no_more_than_the_interval(low: float, high: float, claim: str) -> None:
    middle = Estimate((low + high) / 2, low, high)
    assert claim in verdict({"Drawing score": [Comparison("all", 9, [middle, middle], middle)]})
