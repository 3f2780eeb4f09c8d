"""Updates that are not taken, the moving average of the weights, and what a run says of its speed."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_train import metrics, small, weights, with_varied_rewards
from unison.config import ObjectiveConfig, ScoringConfig
from unison.policies.janus.policy import Janus
from unison.rewards import judge
from unison.training.guards import LEAST, NormGuard, gaps
from unison.training.log import RunLog
from unison.training.throughput import Throughput, matrix_weights, measured_peak, scored_share
from unison.training.trainer import Trainer
from unison.types import Context, Item, Sampling, Tokens, Trajectory, Turn


def tokens(count: int, rounds: int | None = None, guidance: float = 1.0, conditional: bool = False) -> Tokens:
    order = torch.arange(count) if rounds is None else torch.arange(count) % rounds
    sampling = Sampling(guidance=guidance, score_conditional=conditional)
    return Tokens("image", order, order, torch.zeros(count), torch.ones(count, dtype=torch.bool), sampling)


# -- guards ------------------------------------------------------------------------------------------------------------


def test_a_norm_far_above_the_median_is_an_outlier_once_enough_are_known():
    guard = NormGuard(3.0)
    assert not guard.is_outlier(1000.0)  # nothing is known yet
    assert not any(guard.is_outlier(1.0 + i / 100) for i in range(LEAST))
    assert not guard.is_outlier(2.9)
    assert guard.is_outlier(3.3)
    assert not guard.is_outlier(float("nan"))  # that is another guard's


def test_a_guard_without_a_ratio_lets_everything_pass_and_one_with_goes_on_where_it_was_saved():
    off, on, other = NormGuard(0.0), NormGuard(3.0), NormGuard(3.0)
    assert not any(off.is_outlier(10.0**i) for i in range(2 * LEAST))
    for _ in range(LEAST):
        on.is_outlier(1.0)
    other.load_state_dict(on.state_dict())
    assert on.is_outlier(3.1)
    assert other.is_outlier(3.1)


def test_gradients_that_grow_for_good_are_got_used_to():
    guard = NormGuard(3.0)
    for _ in range(LEAST):
        guard.is_outlier(1.0)
    assert guard.is_outlier(10.0)
    assert not [guard.is_outlier(10.0) for _ in range(2 * LEAST)][-1]


def test_an_update_out_of_proportion_changes_no_weight_and_is_counted(checkpoint: Path, tmp_path: Path):
    trainer = with_varied_rewards(small(checkpoint, tmp_path / "run", optim__steps=1, optim__max_norm_ratio=2.0))
    for _ in range(LEAST):
        trainer.update.guard.is_outlier(1e-9)
    before = weights(trainer)
    trainer.train()
    (row,) = metrics(trainer.run)
    assert (row["outlier_step"], row["skipped_step"]) == (1, 1)
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def test_a_run_that_stops_for_bad_steps_goes_on_after_them(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as broken:
        broken.setattr("unison.training.guards.MOST_BAD", 2)
        broken.setattr("unison.training.update.decision_shares", lambda mask, *_: mask * torch.nan)
        trainer = Trainer(small(checkpoint, tmp_path / "run"))
        with pytest.raises(
            RuntimeError, match=r"step 2: 2 times in a row .*saved in .*last: lower optim\.learning_rate"
        ):
            trainer.train()
    resumed = with_varied_rewards(trainer.config, resume=True)
    assert (resumed.step, resumed.update.bad_steps) == (2, 0)
    resumed.train()
    assert [row["skipped_step"] for row in metrics(trainer.run)] == [1, 1, 0]


def test_samples_of_another_policy_than_the_one_that_scores_are_noted_in_health_jsonl(checkpoint: Path, tmp_path: Path):
    config = small(checkpoint, tmp_path / "run", optim__steps=2, policy__rollout_dtype="bfloat16")
    objective = replace(config.objective, clip_low=1e-6, image_clip=0.5)
    run = with_varied_rewards(replace(config, objective=objective)).train()
    lines = [json.loads(line) for line in (run / "health.jsonl").read_text().splitlines()]
    rows = metrics(run)
    assert [(line["step"], line["figure"]) for line in lines] == [(step, "text/sampling_difference") for step in (1, 2)]
    assert [line["value"] for line in lines] == [row["text/sampling_difference"] for row in rows]
    assert all(line["bound"] == 1e-6 < line["value"] for line in lines)
    assert all(row["image/sampling_difference"] < row["image/sampling_difference_max"] < 0.5 for row in rows)


def test_a_gap_is_too_large_above_what_the_clip_lets_a_ratio_move():
    objective = ObjectiveConfig(clip_low=0.2, clip_high=0.3, image_clip=1e-4)
    near = {"text/sampling_difference": 0.19, "image/sampling_difference": 9e-5}
    assert gaps(near, objective) == []
    far = {"text/sampling_difference": 0.21, "image/sampling_difference": 2e-4}
    assert [(gap.value, gap.bound) for gap in gaps(far, objective)] == [(0.21, 0.2), (2e-4, 1e-4)]


def test_a_reward_that_is_not_a_number_is_named_with_the_item():
    action = tokens(2)
    siblings = [Trajectory(Item(id=name, prompt="a"), (Turn(Context(("a",)), action),)) for name in ("one", "two")]
    with pytest.raises(RuntimeError, match=r"reward 'odd' failed: it returned nan for item 'two'"):
        judge(siblings, {"odd": lambda ts, policy: [1.0, float("nan")]})


# -- the moving average ------------------------------------------------------------------------------------------------


def test_the_average_lags_behind_and_is_what_is_exported(checkpoint: Path, tmp_path: Path):
    from safetensors.torch import load_file

    fields: dict[str, Any] = {"optim__ema_decay": 0.5, "optim__steps": 1}
    trainer = with_varied_rewards(small(checkpoint, tmp_path / "run", **fields))
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    before = dict(trainer.policy.network.named_parameters())[name].detach().clone()
    trainer.train()
    after = dict(trainer.policy.network.named_parameters())[name].detach()
    exported = load_file(trainer.run / "checkpoints" / "final" / "model.safetensors")[name]
    assert not torch.equal(before, after)
    torch.testing.assert_close(exported, (before + after) / 2)


def test_average_and_guard_outlive_a_crash_bit_for_bit(checkpoint: Path, tmp_path: Path):
    fields: dict[str, Any] = {"optim__steps": 3, "checkpoint_every": 2, "optim__ema_decay": 0.9}
    fields |= {"optim__max_norm_ratio": 50.0}
    whole = with_varied_rewards(small(checkpoint, tmp_path / "whole", **fields))
    whole.train()
    halves = with_varied_rewards(small(checkpoint, tmp_path / "halves", **fields))
    halves.log.step = lambda step, *rest: pytest.fail("stop") if step == 3 else RunLog.step(halves.log, step, *rest)  # type: ignore[method-assign]
    with pytest.raises(pytest.fail.Exception):
        halves.train()
    resumed = with_varied_rewards(halves.config, resume=True)
    resumed.train()
    assert whole.average is not None
    assert resumed.average is not None
    kept = resumed.average.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in whole.average.state_dict().items())
    assert resumed.update.guard.state_dict() == whole.update.guard.state_dict()


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("ema_decay", 1.0, r"optim\.ema_decay = 1\.0: must be at least 0"),
        ("max_norm_ratio", 0.5, r"optim\.max_norm_ratio = 0\.5: must be above 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(checkpoint: Path, tmp_path: Path, field: str, value: Any, rule: str):
    with pytest.raises(ValueError, match=rule):
        small(checkpoint, tmp_path, **{f"optim__{field}": value})


# -- speed -------------------------------------------------------------------------------------------------------------


def test_a_token_costs_two_operations_a_weight_to_sample_and_six_to_train(policy: Janus, tmp_path: Path):
    config = small(Path("unused"), tmp_path)
    weights = matrix_weights(policy.decoder)
    assert weights == sum(p.numel() for p in policy.decoder.layers.parameters() if p.ndim == 2)
    trained = Throughput(config, policy)
    trained.peak = 1e12
    assert trained.flops(tokens(10)) == 10 * weights * (2 + 6)
    assert trained.flops(tokens(10, guidance=5.0)) == 2 * 10 * weights * (2 + 6)
    row = Trajectory(Item(id="a"), (Turn(Context(("a",)), tokens(10)),))
    speed = trained.of_step([row, row], {"rollout": 1.0, "update": 3.0, "evaluation": 100.0})
    assert speed == pytest.approx(
        {"tokens_per_second": 5, "images_per_second": 0.5, "mfu": 2 * 80 * weights / 4 / 1e12}, rel=1e-9
    )


def test_rounds_that_are_not_scored_cost_nothing_in_the_update():
    masked = tokens(36, rounds=12)
    assert scored_share(masked, ScoringConfig()) == 1
    assert scored_share(masked, ScoringConfig(rounds=3)) == pytest.approx(1 / 4)
    assert scored_share(masked, ScoringConfig(drawings="whole_canvas")) == pytest.approx(1 / 12)
    assert scored_share(tokens(36, guidance=5.0, conditional=True), ScoringConfig()) == pytest.approx(1 / 2)


def test_the_measured_peak_is_a_machines():
    assert 1e8 < measured_peak(torch.device("cpu"), torch.float32) < 1e15


def test_a_profiled_run_leaves_a_trace_and_its_speed(checkpoint: Path, tmp_path: Path):
    run = with_varied_rewards(small(checkpoint, tmp_path / "run", optim__steps=2), profile=1).train()
    trace = json.loads(gzip.decompress((run / "profile" / "process0.json.gz").read_bytes()))
    assert any("aten::mm" in event.get("name", "") for event in trace["traceEvents"])
    rows = [json.loads(line) for line in (run / "timings.jsonl").read_text().splitlines()]
    assert all(row["tokens_per_second"] > 0 and row["images_per_second"] > 0 and 0 < row["mfu"] < 1 for row in rows)
    assert "Model FLOP utilisation" in (run / "report.html").read_text()
