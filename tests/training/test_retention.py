"""Retention: questions probed and replayed, and what is done where a watched figure falls."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unison import scenarios
from unison.config import EvalConfig, ObjectiveConfig, RetentionConfig, RunConfig, ScenarioConfig
from unison.evaluation.records import Evaluation
from unison.policies.metaquery.policy import MetaQuery
from unison.recipes import unirl_zero
from unison.training.retention import change, falls
from unison.training.trainer import Trainer
from unison.types import ImageSampling, TextSampling, Trajectory

# -- what has fallen -------------------------------------------------------------------------------------------------


def evaluation(step: int, right: Sequence[int], field: str = "probe_correct") -> Evaluation:
    return Evaluation(step, [{"id": str(i), "task": "all", field: bool(x)} for i, x in enumerate(right)])


ALL, HALF, LESS = [1] * 100, [1, 0] * 50, [1] * 96 + [0] * 4


def test_a_figure_has_fallen_where_the_whole_interval_lies_below_what_is_allowed() -> None:
    config = RetentionConfig(watch=("probe",))
    (fall,) = falls(evaluation(0, ALL), evaluation(1, HALF), config)
    assert fall.name == "probe"
    assert fall.change.value == -0.5
    assert falls(evaluation(0, ALL), evaluation(1, LESS), config) == []  # 0.04
    assert falls(evaluation(0, HALF), evaluation(1, ALL), config) == []  # it has risen
    assert falls(evaluation(0, ALL[:4]), evaluation(1, [1, 1, 1, 0]), config) == []  # noise


def test_only_items_of_both_evaluations_are_compared() -> None:
    assert change(evaluation(0, ALL + [0] * 100), evaluation(1, ALL), "probe_correct").value == 0


def test_a_figure_that_is_not_measured_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retention\.watch.*no figure 'answer'; they have probe"):
        falls(evaluation(0, ALL), evaluation(1, ALL), RetentionConfig(watch=("answer",)))


# -- in a run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(metaquery: MetaQuery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "metaquery"
    metaquery.save(path)
    return path


def begin(folder: Path, out: Path, resume: bool = False, **fields: Any) -> Trainer:
    run = unirl_zero.tiny_draw()
    retention = RetentionConfig(source="world:steps", **fields.pop("retention", {}))
    config: RunConfig = replace(
        run,
        policy=replace(run.policy, path=str(folder), frozen=()),
        scenario=ScenarioConfig("t2i", group_size=2, text=TextSampling(max_tokens=4), image=ImageSampling(steps=2)),
        rewards={"world_clean": 1.0},
        objective=ObjectiveConfig(kl_beta=0.1),
        step=replace(run.step, items=2, micro_batch_items=2),
        optim=replace(run.optim, steps=2, warmup_steps=0),
        evaluation=EvalConfig(items=2, every=1, during_items=2),
        retention=retention,
        out=out,
        trackers=(),
        **fields,
    )
    trainer = Trainer(config, resume)
    if retention.replay_items:  # a random model is never right
        trainer.retention.rewards = {"accuracy": lengths}
    return trainer


def lengths(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    return [float(len(t.texts[0])) for t in trajectories]


def rows(run: Path, name: str = "metrics") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


def test_probed_questions_are_asked_alone_and_counted_apart(folder: Path, tmp_path: Path) -> None:
    result = begin(folder, tmp_path / "run", retention={"probe_items": 3}).evaluate(2)
    drawn, probed = result.records[:2], result.records[2:]
    assert [r["probe_correct"] is None for r in probed] == [False] * 3
    assert all(r["drawing_correct"] is None and r["answer_correct"] is None for r in probed)
    assert all(r.get("probe_correct") is None and r["drawing_correct"] is not None for r in drawn)
    assert "probe" in result.figures


def test_replayed_questions_train_words_in_the_update_of_drawings(folder: Path, tmp_path: Path) -> None:
    with_replay = rows(begin(folder, tmp_path / "with", retention={"replay_items": 2}).train())[0]
    without = rows(begin(folder, tmp_path / "without").train())[0]
    assert "text/loss" not in without
    assert with_replay["text/grad_norm"] > 0
    assert with_replay["image/grad_norm"] == pytest.approx(without["image/grad_norm"], rel=1e-3)
    assert with_replay["replay/accuracy/mean"] > 0
    assert with_replay["reward/mean"] == pytest.approx(without["reward/mean"])  # of drawings alone
    assert with_replay["loss"] == pytest.approx(with_replay["text/loss"] + with_replay["image/loss"], abs=1e-6)


def pretend_to_fall(trainer: Trainer) -> Trainer:
    """The first evaluation is made to look much better than those that follow."""
    evaluate = trainer.evaluate

    def better_at_first(count: int) -> Evaluation:
        result = evaluate(count)
        if trainer.step == 0:
            for record in result.records:
                record["drawing_score"] = 1.0
        else:
            assert all((record["drawing_score"] or 0) < 0.7 for record in result.records)
        return result

    trainer.evaluate = better_at_first  # type: ignore[method-assign]
    return trainer


WATCHING = {"watch": ("drawing_partial",)}


def test_a_fall_is_reported_and_nothing_else_by_default(folder: Path, tmp_path: Path) -> None:
    trainer = pretend_to_fall(begin(folder, tmp_path / "run", retention=WATCHING))
    run = trainer.train()
    assert [row["step"] for row in rows(run)] == [1, 2]
    assert [(row["step"], row["figure"]) for row in rows(run, "health")] == [
        (1, "drawing_partial"),
        (2, "drawing_partial"),
    ]
    assert trainer.retention.kl_factor == 1


def test_a_run_stops_on_request_with_a_whole_evaluation_and_a_final_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = pretend_to_fall(begin(folder, tmp_path / "run", retention={**WATCHING, "on_fall": "stop"})).train()
    assert [row["step"] for row in rows(run)] == [1]
    assert (run / "checkpoints" / "final").is_dir()
    assert (run / "report.html").is_file()


def test_the_weight_of_the_kl_rises_on_request_and_is_kept_over_a_resume(folder: Path, tmp_path: Path) -> None:
    retention = {**WATCHING, "on_fall": "raise_kl"}
    trainer = pretend_to_fall(begin(folder, tmp_path / "run", retention=retention))
    trainer.train()
    assert trainer.retention.kl_factor == 4
    assert trainer.update._objective("image").kl_beta == pytest.approx(0.4)
    assert begin(folder, tmp_path / "run", resume=True, retention=retention).retention.kl_factor == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"retention": RetentionConfig(watch=("probe",))}, r"evaluation\.every = 0.*retention\.watch"),
        ({"retention": RetentionConfig(on_fall="raise_kl")}, r"objective\.kl_beta = 0\.0.*raise_kl"),
    ],
)
def test_settings_that_cannot_work_are_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenarios.check(replace(unirl_zero.tiny_draw(), evaluation=EvalConfig(), **changes))


def test_a_section_refuses_what_is_wrong_in_itself() -> None:
    with pytest.raises(ValueError, match=r"retention\.probe_items = -1: must be at least 0"):
        RetentionConfig(probe_items=-1)
    with pytest.raises(ValueError, match=r"retention\.source = 'world:setps'.*did you mean 'steps'"):
        RetentionConfig(source="world:setps")


def test_imitation_cannot_replay_own_answers() -> None:
    chain = unirl_zero.tiny_think()
    with pytest.raises(ValueError, match=r"advantage\.kind = 'constant'.*retention\.replay_items"):
        replace(chain[0].config, retention=RetentionConfig(replay_items=2))
