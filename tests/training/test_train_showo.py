"""Show-o under the trainer, which knows nothing of masked decoding: the world's items, the same loop and scenarios."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from unison import recipes
from unison.config import AdvantageConfig, ObjectiveConfig, PolicyConfig, RunConfig
from unison.objectives.base import Objective
from unison.objectives.grpo import grpo
from unison.policies.decoding import masked
from unison.policies.janus.policy import Janus
from unison.policies.showo.policy import ShowO
from unison.recipes import corl
from unison.training.log import RunLog
from unison.training.trainer import Trainer
from unison.types import ImageSampling, TextSampling, TurnBatch


@pytest.fixture(scope="module")
def checkpoint(showo: ShowO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-showo"
    showo.save(folder)
    return folder


def small(checkpoint: Path, out: Path, scenario: str = "unified", steps: int = 1) -> RunConfig:
    """The tiny CoRL recipe on random weights, which earn rewards that differ between siblings."""
    config = corl.tiny_unified()
    return replace(
        config,
        policy=PolicyConfig(str(checkpoint)),
        scenario=replace(
            config.scenario,
            name=scenario,
            group_size=4,
            text=TextSampling(max_tokens=8),
            image=ImageSampling(guidance=2.0, rounds=5),
        ),
        rewards={"world": 1.0} if scenario == "t2i" else {"format": 1.0},
        step=replace(config.step, items=4, micro_batch_items=2),
        optim=replace(config.optim, steps=steps, warmup_steps=0),
        evaluation=replace(config.evaluation, items=6, during_items=6, every=0),
        trackers=(),
        out=out,
    )


def trainer_of(config: RunConfig, resume: bool = False) -> Trainer:
    """A trainer whose rewards always differ within a group: random weights rarely earn any."""
    trainer = Trainer(config, resume)
    for name in trainer.rewards:
        trainer.rewards[name] = lambda ts, policy: [float(t.turns[0].action.ids.float().mean()) for t in ts]
    return trainer


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.policy.network.named_parameters()}


def scored_by(config: RunConfig, drawings: Any, **scoring: Any) -> RunConfig:
    return replace(config, scoring=replace(config.scoring, drawings=drawings, **scoring))


@pytest.mark.parametrize(
    ("scenario", "modalities"), [("t2i", {"image"}), ("understanding", {"text"}), ("unified", {"image", "text"})]
)
def test_a_step_of_each_scenario_starts_at_ratio_one_and_trains_the_decoder(
    checkpoint: Path, tmp_path: Path, scenario: str, modalities: set[str]
) -> None:
    trainer = trainer_of(small(checkpoint, tmp_path / "run", scenario))
    before = weights(trainer)
    run = trainer.train()
    row = rows(run)[0]
    assert {name.split("/")[0] for name in row if name.endswith("/ratio")} == modalities
    for modality in modalities:
        assert row[f"{modality}/ratio"] == pytest.approx(1, abs=1e-4)
        assert row[f"{modality}/logp_difference"] < 1e-4
        assert row[f"{modality}/grad_norm"] > 0
    changed = {name for name, value in weights(trainer).items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("showo.") for name in changed)
    assert "<html" in (run / "report.html").read_text()
    assert (run / "checkpoints" / "final" / "image_tokenizer" / "model.safetensors").exists()


@pytest.mark.parametrize("scoring", ["rounds", "random_masks"])
def test_micro_batches_leave_loss_and_gradient_unchanged(checkpoint: Path, tmp_path: Path, scoring: str) -> None:
    found = []
    for items, images in ((4, 0), (1, 0), (4, 3)):
        config = small(checkpoint, tmp_path / f"{items}-{images}")
        config = scored_by(config, scoring)
        config = replace(config, step=replace(config.step, micro_batch_items=items, micro_batch_images=images))
        found.append(rows(trainer_of(config).train())[0])
    for parts in found[1:]:
        assert parts["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-4)
        assert parts["loss"] == pytest.approx(found[0]["loss"], abs=1e-5)


def test_chunked_rollout_gives_the_same_step(checkpoint: Path, tmp_path: Path) -> None:
    found = []
    for size in (0, 1):
        config = small(checkpoint, tmp_path / str(size))
        config = replace(config, step=replace(config.step, rollout_items=size))
        found.append(rows(trainer_of(config).train())[0])
    assert found[0]["reward/mean"] == pytest.approx(found[1]["reward/mean"], abs=1e-6)
    assert found[0]["grad_norm"] == pytest.approx(found[1]["grad_norm"], rel=1e-3)


def test_the_penalty_to_the_reference_is_zero_at_first(checkpoint: Path, tmp_path: Path) -> None:
    config = replace(small(checkpoint, tmp_path / "run", steps=2), objective=ObjectiveConfig(kl_beta=0.1))
    first, second = rows(trainer_of(config).train())
    for modality in ("text", "image"):
        assert first[f"{modality}/kl"] == pytest.approx(0, abs=1e-6)
        assert second[f"{modality}/kl"] > 0


@pytest.mark.parametrize("objective", ["grpo", "grpo by random masks", "sft"])
def test_a_resumed_run_equals_one_that_never_stopped(checkpoint: Path, tmp_path: Path, objective: str) -> None:
    """Nothing of it depends on the global generator: each trainer finds another state."""

    def config(name: str) -> RunConfig:
        run = replace(small(checkpoint, tmp_path / name, steps=4), checkpoint_every=2)
        if objective == "grpo":
            return run
        if objective == "grpo by random masks":
            return scored_by(replace(run, step=replace(run.step, updates=2)), "random_masks")
        return replace(
            run,
            scenario=replace(run.scenario, name="imitate"),
            advantage=AdvantageConfig(kind="constant"),
            objective=ObjectiveConfig(name="sft"),
            rewards={},
        )

    torch.manual_seed(0)
    whole = trainer_of(config("whole"))
    whole.train()
    torch.manual_seed(2)
    halves = trainer_of(config("halves"))
    halves.log.step = lambda step, *rest: pytest.fail("stop") if step == 3 else RunLog.step(halves.log, step, *rest)  # type: ignore[method-assign]
    with pytest.raises(pytest.fail.Exception):
        halves.train()
    torch.manual_seed(1)
    resumed = trainer_of(halves.config, resume=True)
    resumed.train()
    assert rows(tmp_path / "whole") == rows(tmp_path / "halves")
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name


def test_the_policy_judges_drawings_by_its_own_hidden_states(checkpoint: Path, tmp_path: Path) -> None:
    config = replace(small(checkpoint, tmp_path / "run"), rewards={"matching": 1.0})
    row = rows(Trainer(config).train())[0]
    assert 0 < row["reward/mean"] < 1


def test_a_step_on_a_part_of_the_rounds_reads_as_many_canvases(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: dict[int, int] = {}
    states = masked.Reader.states

    def counted(self: masked.Reader, canvas: torch.Tensor, rows: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            read[count] = read.get(count, 0) + len(canvas)
        return states(self, canvas, rows)

    monkeypatch.setattr(masked.Reader, "states", counted)
    for count in (0, 2):
        config = small(checkpoint, tmp_path / str(count), "t2i")
        run = trainer_of(replace(config, scoring=replace(config.scoring, rounds=count))).train()
        assert rows(run)[0]["image/ratio"] == pytest.approx(1, abs=1e-4)
        assert rows(run)[0]["image/grad_norm"] > 0
    assert read == {0: 5 * 16, 2: 2 * 16}


# -- one-pass estimates ----------------------------------------------------------------------------------------------


class Spy:
    """Notes what a policy scores: drawings by their ids, with the round and mask of every position."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.orders: dict[bytes, list[tuple[list[int], list[bool]]]] = {}
        forward = ShowO.forward

        def noted(policy: ShowO, contexts: Any, actions: Any, *anchors: Any) -> Any:
            for a in actions:
                if a.modality == "image":
                    self.orders.setdefault(a.ids.numpy().tobytes(), []).append((a.order.tolist(), a.mask.tolist()))
            return forward(policy, contexts, actions, *anchors)

        monkeypatch.setattr(ShowO, "forward", noted)


@pytest.mark.parametrize("scoring", ["whole_canvas", "random_masks"])
def test_a_one_pass_step_starts_at_ratio_one_and_reads_one_canvas_a_drawing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scoring: str
) -> None:
    spy = Spy(monkeypatch)
    (row,) = rows(trainer_of(scored_by(small(checkpoint, tmp_path / "run", "t2i"), scoring)).train())
    assert row["image/ratio"] == pytest.approx(1, abs=1e-7)
    assert row["image/logp_difference"] == 0
    assert row["image/grad_norm"] > 0
    assert len(spy.orders) == 16
    passes = [only for (only,) in spy.orders.values()]  # none to learn the old log-probabilities
    assert {t for order, mask in passes for t, wanted in zip(order, mask, strict=True) if wanted} == {0}
    whole = [all(mask) for _, mask in passes]
    assert all(whole) if scoring == "whole_canvas" else not all(whole)


def test_old_trained_and_reference_policy_score_the_same_masks(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    config = scored_by(small(checkpoint, tmp_path / "run", "t2i", steps=2), "random_masks")
    config = replace(config, step=replace(config.step, updates=2))
    first, second = rows(trainer_of(replace(config, objective=ObjectiveConfig(kl_beta=0.1))).train())
    assert first["image/kl"] > 0  # of the second update
    assert second["image/kl"] > first["image/kl"]
    seen = list(spy.orders.values())
    assert sorted(map(len, seen)) == [2] * 16 + [3] * 16  # reference and trained; and old, after the first update
    assert all(other == passes[0] for passes in seen for other in passes)
    assert len({str(passes[0]) for passes in seen}) == len(seen)


@pytest.mark.parametrize("scoring", ["whole_canvas", "random_masks"])
def test_old_log_probabilities_of_a_later_update_are_those_of_the_policy_that_sampled(
    checkpoint: Path, tmp_path: Path, scoring: str
) -> None:
    config = small(checkpoint, tmp_path / "run", "t2i")
    config = scored_by(config, scoring)
    config = replace(config, step=replace(config.step, updates=4, micro_batch_items=1))
    config = replace(config, optim=replace(config.optim, learning_rate=1e-2))
    trainer = trainer_of(config)
    trainer.step = 1
    trajectories = trainer.experience.sample(trainer.step)
    actions = [t.turns[0].action for t in trajectories]
    scored = trainer.policy.select(actions, config.scoring, config.seed + 1)
    with torch.no_grad():
        expected = trainer.policy([t.turns[0].context for t in trajectories], [s.action for s in scored])
    batches: list[TurnBatch] = []
    trainer.update.objective = Objective(lambda batch, settings: batches.append(batch) or grpo(batch, settings))
    trainer.update(trajectories, [float(i % 2) for i in range(len(trajectories))], trainer.step)
    assert len(batches) == 4
    assert torch.allclose(torch.cat([batch.old_logp for batch in batches]), torch.stack(expected), atol=1e-4)
    moved = [float((batch.logp - batch.old_logp).abs().max().detach()) for batch in batches]
    assert moved[0] == 0
    assert min(moved[1:]) > 1e-2


def test_the_log_says_that_the_ratio_is_a_surrogates(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for scoring in ("rounds", "whole_canvas"):
        Trainer(scored_by(small(checkpoint, tmp_path / scoring), scoring))
        printed = " ".join(capsys.readouterr().out.split())
        assert ("scored by whole_canvas: the ratio" in printed) is (scoring == "whole_canvas")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"drawings": "whole"}, r"scoring\.drawings = 'whole': must be one of rounds, whole_canvas, random_masks"),
        ({"drawings": "whole_canvas", "rounds": 2}, r"scoring\.rounds = 2: must be 0 with scoring\.drawings"),
        ({"least_masked": 0.5}, r"scoring\.least_masked = 0\.5: must be 0 with scoring\.drawings = 'rounds'"),
        ({"drawings": "random_masks", "least_masked": 1.5}, r"scoring\.least_masked = 1\.5: must be between 0 and 1"),
    ],
)
def test_a_scoring_that_cannot_work_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored_by(corl.tiny_unified(), **({"drawings": "rounds"} | fields))


def test_a_family_that_draws_token_by_token_refuses_one_pass_estimates(policy: Janus, tmp_path: Path) -> None:
    policy.save(tmp_path / "janus")
    config = scored_by(small(tmp_path / "janus", tmp_path / "run"), "whole_canvas")
    with pytest.raises(
        ValueError, match=r"scoring\.drawings = 'whole_canvas' needs a model that can mask drawings anew"
    ):
        Trainer(config)


# -- UniRL -------------------------------------------------------------------------------------------------------------


def improving(checkpoint: Path, out: Path, method: str) -> RunConfig:
    """A step of the tiny Show-o's own recipe on random weights."""
    run = recipes.find(f"unirl/tiny-showo-{method}")()
    assert isinstance(run, RunConfig)
    return replace(
        run,
        policy=PolicyConfig(str(checkpoint)),
        scenario=replace(run.scenario, text=TextSampling(max_tokens=8)),
        step=replace(run.step, items=4, micro_batch_items=2),
        optim=replace(run.optim, steps=1, warmup_steps=0),
        evaluation=replace(run.evaluation, items=6, during_items=6, every=0),
        trackers=(),
        out=out,
    )


@pytest.mark.parametrize(
    ("method", "modalities"), [("grpo", {"image", "text"}), ("sft", {"text"}), ("sft-split", {"image", "text"})]
)
def test_every_way_of_self_improvement_trains_both_sides(
    checkpoint: Path, tmp_path: Path, method: str, modalities: set[str]
) -> None:
    """The end-to-end one has no turn of drawing and yet trains what draws alone: the embedding of a masked position."""
    trainer = trainer_of(improving(checkpoint, tmp_path / "run", method))
    mask = cast(ShowO, trainer.policy).layout.mask
    before = weights(trainer)["showo.model.embed_tokens.weight"][mask]
    row = rows(trainer.train())[0]
    assert {name.split("/")[0] for name in row if name.endswith("/grad_norm")} == modalities
    assert all(row[f"{modality}/grad_norm"] > 0 for modality in modalities)
    assert not torch.equal(weights(trainer)["showo.model.embed_tokens.weight"][mask], before)
