"""The trainer: what a step changes, what a crash loses, what a bad input says. Whole commands are marked slow."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Set
from pathlib import Path
from typing import Any

import pytest
import torch

from unison.config import RunConfig, from_json, to_json
from unison.data.tables import export
from unison.data.world import WorldItems
from unison.evaluation.records import Evaluation
from unison.recipes import corl
from unison.training.log import RunLog
from unison.training.trainer import Trainer
from unison.types import Trajectory

REPO = Path(__file__).resolve().parents[2]
# random weights earn a reward that differs between siblings, and the trainer has a state beside the weights
RUNNING: dict[str, Any] = {"rewards": {"matching": 1.0, "format": 1.0}, "reward_normalisation": "running"}


def small(checkpoint: Path, out: Path, **changes: Any) -> RunConfig:
    """The tiny recipe on random weights, a few seconds a run; `changes` by dotted field with __ for the dot."""
    config = corl.tiny_unified()
    fields: dict[str, Any] = {
        "policy__path": str(checkpoint),
        "scenario__group_size": 4,
        "optim__steps": 3,
        "step__items": 4,
        "step__micro_batch_items": 2,
        "optim__warmup_steps": 0,
        "evaluation__items": 12,
        "evaluation__during_items": 6,
        "evaluation__every": 0,
        "trackers": (),
    } | changes
    for name, value in fields.items():
        section, _, field = name.partition("__")
        value = dataclasses.replace(getattr(config, section), **{field: value}) if field else value
        config = dataclasses.replace(config, **{section: value})
    text = dataclasses.replace(config.scenario.text, max_tokens=8)
    return dataclasses.replace(config, out=out, scenario=dataclasses.replace(config.scenario, text=text))


def with_varied_rewards(config: RunConfig, resume: bool = False, profile: int = 0) -> Trainer:
    """A trainer whose rewards always differ within a group: random weights rarely earn any."""
    trainer = Trainer(config, resume, profile)
    trainer.rewards["world"] = lambda ts, policy: [float(t.turns[0].action.ids.float().mean()) for t in ts]
    return trainer


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.policy.network.named_parameters()}


def test_a_run_leaves_metrics_evaluations_checkpoints_and_a_report(checkpoint: Path, tmp_path: Path):
    run = Trainer(small(checkpoint, tmp_path / "run")).train()
    assert [row["step"] for row in metrics(run)] == [1, 2, 3]
    assert {"reward/mean", "reward/std", "groups/constant_share", "text/entropy", "image/grad_norm"} <= set(
        metrics(run)[0]
    )
    assert {path.name for path in (run / "eval").glob("*.json")} == {"000000.json", "000003.json"}
    assert (run / "checkpoints" / "final" / "model.safetensors").exists()
    assert "<html" in (run / "report.html").read_text()
    assert from_json((run / "config.json").read_text()).out == run


def test_running_statistics_of_rewards_outlive_a_crash(checkpoint: Path, tmp_path: Path):
    fields: dict[str, Any] = {"optim__steps": 4, "checkpoint_every": 2, "reward_normalisation": "running"}
    whole = with_varied_rewards(small(checkpoint, tmp_path / "whole", **fields))
    whole.train()
    halves = with_varied_rewards(small(checkpoint, tmp_path / "halves", **fields))
    halves.log.step = lambda step, *rest: pytest.fail("stop") if step == 3 else RunLog.step(halves.log, step, *rest)  # type: ignore[method-assign]
    with pytest.raises(pytest.fail.Exception):
        halves.train()
    resumed = with_varied_rewards(halves.config, resume=True)
    assert resumed.experience.normaliser.seen["world"].count == 2 * 16
    resumed.train()
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")
    assert resumed.experience.normaliser.state_dict() == whole.experience.normaliser.state_dict()


def test_only_the_language_model_is_trained(checkpoint: Path, tmp_path: Path):
    trainer = with_varied_rewards(small(checkpoint, tmp_path / "run"))
    before = weights(trainer)
    trainer.train()
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("model.language_model", "lm_head")) for name in changed)


def test_the_first_ratio_is_one(checkpoint: Path, tmp_path: Path):
    row = metrics(Trainer(small(checkpoint, tmp_path / "run")).train())[0]
    assert row["text/ratio"] == pytest.approx(1, abs=1e-4)
    assert row["image/ratio"] == pytest.approx(1, abs=1e-4)
    assert row["image/logp_difference"] < 1e-4


def test_micro_batches_leave_loss_and_gradient_unchanged(checkpoint: Path, tmp_path: Path):
    def row(items: int, images: int) -> dict[str, float]:
        batches = {"step__micro_batch_items": items, "step__micro_batch_images": images}
        return metrics(Trainer(small(checkpoint, tmp_path / f"{items}-{images}", **batches, optim__steps=1)).train())[0]

    whole = row(4, 0)
    for parts in (row(1, 0), row(4, 3)):
        assert parts["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)
        assert parts["loss"] == pytest.approx(whole["loss"], abs=1e-5)
        assert parts["text/grad_norm"] == pytest.approx(whole["text/grad_norm"], rel=1e-4)


def test_drawings_go_through_the_network_so_many_at_a_time(checkpoint: Path, tmp_path: Path):
    trainer = Trainer(small(checkpoint, tmp_path / "run", step__micro_batch_images=3, optim__steps=1))
    score, passes = trainer.policy.forward, list[tuple[str, int]]()

    def counted(contexts: Any, actions: Any, *rest: Any) -> Any:
        passes.append((actions[0].modality, len(actions)))
        return score(contexts, actions, *rest)

    trainer.policy.forward = counted  # type: ignore[method-assign]
    trainer.train()
    assert {size for modality, size in passes if modality == "image"} == {3, 2}  # of 2 items of 4 siblings
    assert {size for modality, size in passes if modality == "text"} == {8}


def test_chunked_rollout_gives_the_same_step(checkpoint: Path, tmp_path: Path):
    rows = [
        metrics(Trainer(small(checkpoint, tmp_path / str(size), step__rollout_items=size, optim__steps=1)).train())[0]
        for size in (0, 1)
    ]
    assert rows[0]["reward/mean"] == pytest.approx(rows[1]["reward/mean"], abs=1e-6)


def test_a_step_of_equal_rewards_changes_no_weight_and_is_counted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = Trainer(small(checkpoint, tmp_path / "run", optim__steps=1))
    monkeypatch.setattr(trainer, "rewards", {"world": lambda ts, policy: [0.5] * len(ts), **_flat(trainer)})
    before = weights(trainer)
    run = trainer.train()
    assert metrics(run)[0]["constant_step"] == 1
    assert metrics(run)[0]["groups/constant_share"] == 1
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())


def _flat(trainer: Trainer) -> dict[str, Any]:
    return {name: lambda ts, policy: [0.0] * len(ts) for name in trainer.rewards if name != "world"}


def test_kl_to_the_reference_is_zero_at_the_first_step_and_not_after(checkpoint: Path, tmp_path: Path):
    config = small(checkpoint, tmp_path / "run", objective__kl_beta=0.1, optim__learning_rate=1e-2)
    rows = metrics(with_varied_rewards(config).train())
    assert rows[0]["image/kl"] == pytest.approx(0, abs=1e-7)
    assert rows[1]["image/kl"] > 1e-6


def test_a_gradient_that_is_not_finite_is_skipped_counted_and_stops_the_run_in_the_end(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer = Trainer(small(checkpoint, tmp_path / "run"))
    monkeypatch.setattr("unison.training.guards.MOST_BAD", 2)
    monkeypatch.setattr("unison.training.update.decision_shares", lambda mask, *_: mask * torch.nan)
    before = weights(trainer)
    with pytest.raises(RuntimeError, match=r"2 times in a row .*not finite.*optim\.learning_rate"):
        trainer.train()
    assert [row["skipped_step"] for row in metrics(trainer.run)] == [1, 1]
    assert all(torch.equal(value, before[name]) for name, value in weights(trainer).items())
    assert (trainer.run / "checkpoints" / "last" / "state.json").exists()


def test_a_reward_that_raises_stops_the_run_with_its_name_and_keeps_the_checkpoint(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(trajectories: list, policy: object) -> list[float]:
        raise ZeroDivisionError("no judge today")

    trainer = Trainer(small(checkpoint, tmp_path / "run"))
    monkeypatch.setitem(trainer.rewards, "world", broken)
    with pytest.raises(RuntimeError, match="reward 'world' failed: no judge today"):
        trainer.train()
    assert (trainer.run / "checkpoints" / "last" / "state.json").exists()


@pytest.mark.parametrize(
    ("course", "best"),
    [
        ({1: (0.1, 0.1), 2: (0.9, 0.1), 3: (0.2, 1.0)}, [1, 2]),  # the last evaluation has more items, which count not
        ({1: (None, None), 2: (None, None), 3: (None, None)}, []),
    ],
)
def test_the_best_checkpoint_is_ranked_by_one_figure_on_the_same_items(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    course: dict[int, tuple[Any, Any]],
    best: list[int],
):
    """The first items of an evaluation have one value of the figure, those that only the last one has another."""

    def evaluated(policy: Any, items: Any, scenario: Any, config: Any, step: int, *rest: Any) -> Evaluation:
        values = [course.get(step, course[1])[i >= 2] for i in range(len(items))]
        return Evaluation(step, [{"id": i.id, "task": "t", "reward/x": v} for i, v in zip(items, values, strict=True)])

    monkeypatch.setattr("unison.training.trainer.evaluate", evaluated)
    sizes = {"evaluation__items": 4, "evaluation__during_items": 2, "evaluation__every": 1}
    trainer = with_varied_rewards(small(checkpoint, tmp_path / "run", **sizes))
    written: list[int] = []
    monkeypatch.setattr(trainer, "_export", lambda name: written.append(trainer.step) if name == "best" else None)
    trainer.train()
    assert written == best


@pytest.mark.parametrize("more", [{}, {"policy__lora_rank": 2, "policy__lora_beside": ("lm_head",)}])
def test_only_float32_weights_are_trained(checkpoint: Path, tmp_path: Path, more: dict[str, Any]):
    config = small(checkpoint, tmp_path / "run", policy__dtype="bfloat16", **more)
    with pytest.raises(ValueError, match=r"policy\.dtype = 'bfloat16': must be 'float32'.*compute_dtype.*lora_rank"):
        Trainer(config)
    assert not (tmp_path / "run").exists()
    assert from_json(to_json(config)) == config  # a run can still be read


def test_adapters_of_bfloat16_weights_are_trained_in_float32(checkpoint: Path, tmp_path: Path):
    policy = Trainer(small(checkpoint, tmp_path / "run", policy__dtype="bfloat16", policy__lora_rank=2)).policy
    assert {p.dtype for p in policy.network.parameters() if p.requires_grad} == {torch.float32}


def test_the_runs_seed_decides_on_new_adapters(checkpoint: Path, tmp_path: Path):
    def drawn(noise: int, seed: int) -> torch.Tensor:
        torch.manual_seed(noise)  # as another process would have it
        network = Trainer(small(checkpoint, tmp_path / "run", policy__lora_rank=2, seed=seed)).policy.network
        return torch.cat([p.detach().flatten() for name, p in network.named_parameters() if "lora_A" in name])

    assert torch.equal(drawn(1, seed=0), drawn(2, seed=0))
    assert not torch.equal(drawn(1, seed=0), drawn(1, seed=1))


def test_lora_trains_adapters_alone_and_exports_a_plain_checkpoint(checkpoint: Path, tmp_path: Path):
    from transformers import JanusForConditionalGeneration

    config = small(checkpoint, tmp_path / "run", policy__lora_rank=2, optim__learning_rate=1e-2)
    trainer = with_varied_rewards(config)
    assert all("lora" in name for name, p in trainer.policy.network.named_parameters() if p.requires_grad)
    run = trainer.train()
    exported = JanusForConditionalGeneration.from_pretrained(run / "checkpoints" / "final")
    assert not any("lora" in name for name, _ in exported.named_parameters())
    before = JanusForConditionalGeneration.from_pretrained(checkpoint)
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(exported.state_dict()[name], before.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario__group_size": 1}, r"scenario\.group_size = 1.*at least 2"),
        ({"step__items": 5}, r"step\.micro_batch_items = 2.*divisor"),
        ({"step__updates": 3}, r"step\.updates = 3.*divisor"),
        ({"step__micro_batch_images": -1}, r"step\.micro_batch_images = -1.*at least 0"),
        ({"rewards": {}}, "rewards.*at least one"),
        ({"advantage__kind": "reward", "rewards": {}}, "rewards.*at least one"),
        ({"scenario__relax_temperature": 0.0}, r"scenario\.relax_temperature = 0.*above 0"),
        ({"rewards": {"wrold": 1.0}}, "'wrold' is unknown; did you mean 'world'"),
        ({"scenario__name": "unifed"}, "'unifed' is unknown; did you mean 'unified'"),
        ({"policy__path": "/no/such/folder"}, r"policy\.path = '/no/such/folder'"),
        ({"data__train": "./missing.jsonl"}, r"missing\.jsonl"),
        ({"trackers": ("tensorbored",)}, "tensorbored"),
    ],
)
def test_what_cannot_work_is_said_before_training_starts(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        Trainer(small(checkpoint, tmp_path / "run", **changes))


def test_saved_configurations_are_read_back_and_bad_ones_named():
    config = corl.tiny_unified()
    assert from_json(to_json(config)) == config
    values = json.loads(to_json(config))
    values["optim"]["stepz"] = 3
    with pytest.raises(ValueError, match=r"unknown field optim\.stepz = 3; did you mean 'steps'"):
        from_json(json.dumps(values))
    values = json.loads(to_json(config))
    values["optim"]["steps"] = "many"
    with pytest.raises(ValueError, match=r"optim\.steps = 'many'"):
        from_json(json.dumps(values))
    with pytest.raises(ValueError, match="not valid JSON"):
        from_json("{")


def test_imitation_makes_the_shown_replies_and_drawings_likelier(checkpoint: Path, tmp_path: Path):
    config = small(
        checkpoint,
        tmp_path / "run",
        scenario__name="imitate",
        advantage__kind="constant",
        objective__name="sft",
        rewards={},
        optim__steps=6,
        step__items=12,
        step__micro_batch_items=6,
        optim__learning_rate=3e-3,
    )
    rows = metrics(Trainer(config).train())
    for modality in ("text", "image"):
        assert rows[-1][f"{modality}/nll"] < rows[0][f"{modality}/nll"] - 0.3  # nats a token
    assert not any(row["constant_step"] for row in rows)


# -- models that improve themselves ------------------------------------------------------------------------------------


def self_supervised(checkpoint: Path, out: Path, scenario: str, kind: str, **changes: Any) -> RunConfig:
    fields: dict[str, Any] = {
        "scenario__name": scenario,
        "scenario__group_size": 2,
        "advantage__kind": kind,
        "objective__name": "sft",
        "rewards": {"accuracy": 1.0} if kind == "reward" else {},
        "step__items": 4,
    }
    return small(checkpoint, out, **(fields | changes))


def with_answers_right_for(trainer: Trainer, right: bool) -> Trainer:
    trainer.rewards["accuracy"] = lambda ts, policy: [float(right)] * len(ts)
    return trainer


def test_supervision_through_the_drawing_makes_true_answers_likelier(checkpoint: Path, tmp_path: Path):
    config = self_supervised(
        checkpoint, tmp_path / "run", "self_sft", "constant", optim__steps=6, optim__learning_rate=3e-3
    )
    rows = metrics(Trainer(config).train())
    assert rows[-1]["text/nll"] < rows[0]["text/nll"] - 0.3  # nats a token
    assert not any(row["constant_step"] for row in rows)
    assert not any("image/nll" in row for row in rows)


def test_micro_batches_leave_the_gradient_through_drawings_unchanged(checkpoint: Path, tmp_path: Path):
    norms = []
    for size in (1, 4):
        changes = {"step__micro_batch_items": size, "optim__steps": 1}
        run = Trainer(self_supervised(checkpoint, tmp_path / str(size), "self_sft", "constant", **changes)).train()
        norms.append(metrics(run)[0]["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("right", [True, False])
def test_split_supervision_imitates_only_drawings_that_were_answered_right(
    checkpoint: Path, tmp_path: Path, right: bool
):
    config = self_supervised(checkpoint, tmp_path / "run", "self_sft_split", "reward", optim__steps=1)
    (row,) = metrics(with_answers_right_for(Trainer(config), right).train())
    assert row["text/grad_norm"] > 0.01
    assert (row["image/grad_norm"] > 0.01) is right


def test_both_turns_of_a_model_that_improves_itself_are_trained(checkpoint: Path, tmp_path: Path):
    trainer = Trainer(small(checkpoint, tmp_path / "run", scenario__name="self_improve", rewards={"accuracy": 1.0}))
    trainer.rewards["accuracy"] = lambda ts, policy: [float(i % 2) for i in range(len(ts))]
    row = metrics(trainer.train())[0]
    assert row["text/grad_norm"] > 0.01
    assert row["image/grad_norm"] > 0.01


# -- whole commands ------------------------------------------------------------------------------------------------


def command(config: RunConfig, folder: Path) -> list[str]:
    path = folder / f"{config.out.name}.json"
    path.write_text(to_json(config))
    return [sys.executable, "-m", "unison", "train", "--config", str(path)]


def run_command(words: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, cwd=REPO, env=environment, check=False, timeout=400)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_metrics_bit_for_bit(checkpoint: Path, tmp_path: Path):
    steps = {"optim__steps": 8, "checkpoint_every": 2, **RUNNING}
    whole = run_command(command(small(checkpoint, tmp_path / "whole", **steps), tmp_path))
    assert whole.returncode == 0, whole.stderr
    words = command(small(checkpoint, tmp_path / "killed", **steps), tmp_path)
    log = tmp_path / "killed" / "metrics.jsonl"
    process = subprocess.Popen(words, cwd=REPO, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    target = random.Random(time.time_ns()).randint(1, 6)
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < target):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert log.read_text().count("\n") < 8, "the run ended before it was killed"
    resumed = run_command([sys.executable, "-m", "unison", "train", "--resume", str(tmp_path / "killed")])
    assert resumed.returncode == 0, resumed.stderr
    assert log.read_text() == (tmp_path / "whole" / "metrics.jsonl").read_text()


@pytest.mark.slow
def test_a_chain_hands_its_weights_on_and_goes_on_where_it_was_cut(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "chain"
    few = ["--optim.steps", "1", "--step.items", "2", "--step.micro-batch-items", "2"]
    few += ["--evaluation.items", "6", "--scenario.group-size", "2", "--scenario.text.max-tokens", "8"]
    few += ["--policy.path", str(checkpoint), "--out", str(out)]
    done = run_command([sys.executable, "-m", "unison", "train", "corl/tiny", *few, "--trackers"])
    assert done.returncode == 0, done.stderr
    stages = ["unified", "draw", "multiple-choice", "open-ended"]
    assert all((out / stage / "report.html").exists() for stage in stages)
    for stage in stages[1:]:
        path = json.loads((out / stage / "config.json").read_text())["policy"]["path"]
        assert path == str(out / "unified" / "checkpoints" / "final")
    shutil.rmtree(out / "open-ended" / "checkpoints" / "final")
    again = run_command([sys.executable, "-m", "unison", "train", "--resume", str(out)])
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("finished") == 3
    assert (out / "open-ended" / "checkpoints" / "final" / "config.json").exists()


@pytest.mark.slow
def test_a_streamed_run_resumes_to_the_same_metrics(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = export(WorldItems("train", "mixed", "", 0, 24), tmp_path / "rows", 24)  # 8 steps of 4 pass an epoch's end
    changes = {"data__train": str(rows), "data__streaming": 8, "optim__steps": 8, "checkpoint_every": 2}
    whole = Trainer(small(checkpoint, tmp_path / "whole", **changes)).train()
    stopped = Trainer(small(checkpoint, tmp_path / "stopped", **changes))
    sample = stopped.experience.sample

    def until_step_5(step: int, known: Set[str]) -> list[Trajectory]:
        if stopped.step == 5:
            raise KeyboardInterrupt
        return sample(step, known)

    monkeypatch.setattr(stopped.experience, "sample", until_step_5)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = Trainer(stopped.config, resume=True).train()
    assert (resumed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
