"""Algorithms beyond GRPO: preferences, DiffusionNFT, references that move, dynamic sampling, and the named presets."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from benchmarks.learning import algorithms as benchmark
from tests.training.test_train_latents import (
    CONTEXTS,
    DRAWN,
    GUIDED,
    Sketcher,
    begin,
    configuration,
    make,
    metrics,
    weights,
    whole_and_resumed,
    write_items,
)
from unison.cli import main as cli
from unison.config import AdvantageConfig, ObjectiveConfig, RetentionConfig, RunConfig, ScoringConfig
from unison.evaluation.records import Evaluation
from unison.objectives.advantage import advantages_of
from unison.objectives.dpo import dpo
from unison.objectives.grpo import Totals
from unison.objectives.nft import nft
from unison.policies.decisions import noising
from unison.policies.decisions.selection import some_rounds
from unison.recipes import corl, find
from unison.recipes.algorithms import ALGORITHMS, summary, trained_by
from unison.rewards.text import overlong
from unison.scenarios import SCENARIOS, check
from unison.scenarios.rollout import groups_of, most_telling
from unison.training.trainer import Trainer
from unison.training.update import Reference
from unison.types import Context, Item, Latents, Noised, Sampling, Tokens, Trajectory, Turn, TurnBatch, group_rows

PLAIN = replace(DRAWN, guidance=1.0)
LATENT = ("mixgrpo", "dancegrpo", "diffusion-nft", "diffusion-dpo")


def batch(logp: Any, old: Any, advantage: Sequence[float], group: Sequence[int], kl: Any = None) -> TurnBatch:
    """Every decision weighs the same, and all of them 1."""
    logp, old = (torch.as_tensor(x, dtype=torch.float64) for x in (logp, old))
    return TurnBatch(
        logp,
        old,
        kl,
        torch.tensor(advantage, dtype=torch.float64),
        torch.ones(logp.shape, dtype=torch.bool),
        torch.full(logp.shape, 1 / logp.numel(), dtype=torch.float64),
        torch.tensor(group),
    )


# -- preferences ------------------------------------------------------------------------------------------------------


def test_the_best_of_a_group_is_set_against_the_worst() -> None:
    rewards = [0.5, 2.0, None, -1.0, 2.0, 3.0, 3.0, None, 1.0]
    groups = {"a": [0, 1, 2, 3, 4], "constant": [5, 6], "alone": [7, 8]}
    found, measured = advantages_of(rewards, groups, AdvantageConfig("pair"))
    assert found == [None, 1.0, None, -1.0] + [None] * 5
    assert measured["constant_share"] == pytest.approx(2 / 3)


PAIRS = {
    "logp": [[0.3, -0.2], [0.1, 0.4], [-1.0, 0.0], [0.2, 0.2]],  # group 1, group 0, ... in any order
    "old": [[0.0, 0.0], [0.1, 0.1], [0.0, -0.5], [0.0, 0.1]],
    "advantage": [1.0, -1.0, -1.0, 1.0],
    "group": [1, 0, 1, 0],
}


def test_preferences_of_sequences_by_hand() -> None:
    loss, measured = dpo(batch(**PAIRS), ObjectiveConfig("dpo", level="sequence", beta=0.5))
    margins = (0.2 + 0.1) - (0.0 + 0.3), (0.3 - 0.2) - (-1.0 + 0.5)
    by_hand = -sum(math.log(1 / (1 + math.exp(-0.5 * m))) for m in margins) / 2
    assert loss.item() == pytest.approx(by_hand)
    assert measured["margin"] == pytest.approx(sum(margins))
    assert measured["preferred"] == sum(m > 1e-12 for m in margins)
    assert measured["decisions"] == 2


def test_preferences_of_decisions_by_hand() -> None:
    loss, measured = dpo(batch(**PAIRS), ObjectiveConfig("dpo", level="decision", beta=2.0))
    margins = [0.2 - 0.0, 0.1 - 0.3, 0.3 + 1.0, -0.2 - 0.5]
    assert loss.item() == pytest.approx(sum(math.log(1 + math.exp(-2.0 * m)) for m in margins) / 4)
    assert measured["decisions"] == 4


@pytest.mark.parametrize("count", [3, 6])
def test_the_margin_of_scored_rounds_is_an_unbiased_estimate_of_the_whole_actions(count: int) -> None:
    g = torch.Generator().manual_seed(0)
    logp, mask, order = torch.randn(2, 12, generator=g), torch.ones(12, dtype=torch.bool), torch.arange(12) // 2
    whole = logp[0].sum() - logp[1].sum()
    margins = []
    for seed in range(400):
        chosen = [some_rounds(order, mask, count, 2 * seed + row) for row in range(2)]
        scored, weight = (torch.stack(rows) for rows in zip(*chosen, strict=True))
        zeros, advantage, group = torch.zeros(2, 12), torch.tensor([1.0, -1.0]), torch.zeros(2, dtype=torch.long)
        b = TurnBatch(logp, zeros, None, advantage, scored, weight / 24, group, weight)
        margins.append(dpo(b, ObjectiveConfig("dpo", level="sequence"))[1]["margin"])
    error = torch.tensor(margins).std() / 400**0.5
    assert abs(torch.tensor(margins).mean() - whole) <= 3 * error + 1e-5


def test_an_update_compares_the_margins_of_whole_drawings(start: Callable[..., Trainer]) -> None:
    """Every level has a log-ratio of its own, so the parts that an update may score average to the whole."""
    trainer = start("run", "online-dpo", scoring__rounds=1)
    trainer.step = 1
    trajectories, _, _ = trainer.experience.collect(1)
    (group, *_) = [
        trainer.update._group(item, rows, trajectories, [1.0, -1.0] * (len(trajectories) // 2), 0)[:2]
        for item, rows in group_rows(trajectories).items()
    ]
    told = Reference(logps=[torch.zeros(len(s.turn.action)) for s in group])
    batch = trainer.update._batch(group, "image", Totals(2, 2), trainer.config.objective.of("image"), told)
    assert batch.weight is not None
    assert batch.weight.sum(1).tolist() == [len(s.turn.action) for s in group]
    by_hand = (batch.advantage[:, None] * batch.weight * batch.logp * batch.mask).sum()
    assert dpo(batch, trainer.config.objective)[1]["margin"] == pytest.approx(float(by_hand.detach()))


def test_preferences_agree_with_trl() -> None:
    g = torch.Generator().manual_seed(0)
    logp, old = (-torch.randn(6, 5, generator=g, dtype=torch.float64).abs() for _ in range(2))
    logp.requires_grad_()
    b = batch(logp, old, [1.0, 1.0, 1.0, -1.0, -1.0, -1.0], [0, 1, 2, 0, 1, 2])
    losses = dpo(b, ObjectiveConfig("dpo", level="sequence", beta=0.3))[0], trl_loss(b, beta=0.3)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-9)
    gradients = [torch.autograd.grad(loss, logp)[0] for loss in losses]
    assert gradients[0].abs().max() > 1e-3
    assert torch.allclose(gradients[0], gradients[1], atol=1e-9)


def trl_loss(b: TurnBatch, beta: float) -> Tensor:
    """`DPOTrainer._compute_loss` itself on given log-probabilities, those of the best first."""
    from trl.trainer.dpo_trainer import DPOTrainer

    class Model:
        training = False

        def __call__(self, **_: Any) -> Any:
            zeros = torch.zeros_like(b.logp)
            return SimpleNamespace(log_probs=b.logp, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    same = lambda x: x  # noqa: E731
    trainer = SimpleNamespace(
        model=Model(),
        accelerator=SimpleNamespace(device="cpu", gather_for_metrics=same, gather=same),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        use_weighting=False,
        beta=beta,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    mask = torch.ones(b.mask.shape[0], b.mask.shape[1] + 1, dtype=torch.long)
    chosen, rejected = b.old_logp.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": mask,
        "completion_mask": mask,
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    return DPOTrainer._compute_loss(trainer, trainer.model, inputs, False)  # type: ignore[arg-type]


# -- DiffusionNFT -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("advantage", [-1.0, -0.4, 0.0, 0.7, 1.0])
def test_the_contrast_is_the_papers(beta: float, advantage: float) -> None:
    """Gradient and, up to the term without one, value of r |v+ - v|^2 + (1 - r) |v- - v|^2 (eq. 5), over beta."""
    g = torch.Generator().manual_seed(0)
    v, old, true = (torch.randn(3, 4, 7, generator=g, dtype=torch.float64) for _ in range(3))  # 3 drawings, 4 states
    v.requires_grad_()
    r = 0.5 + advantage / 2
    plus, minus = (1 - beta) * old + beta * v, (1 + beta) * old - beta * v
    paper = (r * (plus - true).square() + (1 - r) * (minus - true).square()).mean(-1) / beta  # [3, 4]
    without = (old - true).square().mean(-1) / beta
    logp, known = -(v - true).square().mean(-1), -(old - true).square().mean(-1)
    b = batch(logp, known, [advantage] * 3, [0, 0, 0], (v - old).square().mean(-1))
    loss, measured = nft(b, ObjectiveConfig("nft", beta=beta))
    scaled = ((paper - without) / (-logp.detach()).sqrt()).mean()
    assert loss.item() == pytest.approx(scaled.item())
    ours, theirs = (torch.autograd.grad(x, v, retain_graph=True)[0] for x in (loss, scaled))
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert ours.abs().max() > 1e-3
    assert measured["velocity_error"] == pytest.approx(-logp.sum().item())


def test_a_state_without_error_gives_a_finite_gradient() -> None:
    logp = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    loss, _ = nft(batch(logp, [[0.0]], [1.0], [0], torch.zeros(1, 1)), ObjectiveConfig("nft"))
    assert torch.autograd.grad(loss, logp)[0].isfinite().all()


# -- drawings as given ones -------------------------------------------------------------------------------------------


@pytest.fixture
def sketcher() -> Sketcher:
    return make()


def noised(sketcher: Sketcher, rounds: int = 0, seed: int = 0) -> list[Noised]:
    drawings = sketcher.draw(CONTEXTS[:2], replace(PLAIN, sde="ode"), range(2))
    scored = sketcher.select(drawings, ScoringConfig(drawings="noised", rounds=rounds), seed)
    assert all(s.old_logp is None and s.counted.all() for s in scored)
    return [cast(Noised, s.action) for s in scored]


def test_a_given_drawing_is_scored_by_its_flow_matching_loss(sketcher: Sketcher) -> None:
    given = noised(sketcher)
    scores = sketcher(CONTEXTS[:2], given)
    velocity = sketcher.velocity(CONTEXTS[:2], Sampling())
    for row, (drawing, logp) in enumerate(zip(given, scores, strict=True)):
        noise, latent = drawing.path[:-1], drawing.path[-1]
        for level, sigma in enumerate(drawing.sigmas[:-1]):
            x = (1 - sigma) * latent + sigma * noise[level]
            v = velocity(x[None], sigma[None], torch.tensor([row]))[0]
            assert logp[level].item() == pytest.approx(-(v - (noise[level] - latent)).square().mean().item(), rel=1e-4)


def test_siblings_share_the_noise_and_the_levels_of_their_schedule(sketcher: Sketcher) -> None:
    one, two = noised(sketcher)
    assert torch.equal(one.path[:-1], two.path[:-1])
    assert not torch.equal(one.path[-1], two.path[-1])
    drawn = cast(Latents, sketcher.draw(CONTEXTS[:1], PLAIN, [0])[0])
    assert torch.equal(one.sigmas, drawn.sigmas)
    assert not torch.equal(noised(sketcher, seed=1)[0].path[0], one.path[0])
    assert one.path[:-1].std() == pytest.approx(1, abs=0.1)


def test_some_levels_are_scored_with_weights_that_make_up_for_the_others(sketcher: Sketcher) -> None:
    given = noised(sketcher, rounds=2)
    assert [int(d.mask.sum()) for d in given] == [2, 2]
    scores = sketcher(CONTEXTS[:2], given)
    assert all(torch.equal(score != 0, d.mask) for score, d in zip(scores, given, strict=True))
    drawing, settings = sketcher.draw(CONTEXTS[:1], PLAIN, [0]), ScoringConfig(drawings="noised", rounds=2)
    drawn = torch.stack([sketcher.select(drawing, settings, seed)[0].share for seed in range(300)])
    assert (drawn.mean(0) - 1).abs().max() < 0.25


@pytest.mark.parametrize("chunk", [0, 3])
def test_the_divergence_of_given_drawings_is_the_distance_of_velocities(sketcher: Sketcher, chunk: int) -> None:
    sketcher.chunk = chunk  # type: ignore[assignment]
    sketcher.keep_reference()
    given = noised(sketcher)
    with torch.no_grad():
        for parameter in sketcher.network.parameters():
            parameter += 0.05
    with sketcher.reference():
        anchors, before = sketcher.anchors(CONTEXTS[:2], given), sketcher(CONTEXTS[:2], given)
    scores = sketcher(CONTEXTS[:2], given, anchors)
    now = noising.velocities(sketcher.velocity(CONTEXTS[:2], Sampling()), given)
    for score, anchor, velocity, old in zip(scores, anchors, now, before, strict=True):
        assert torch.allclose(score[1], (velocity - anchor).square().mean((1, 2, 3)), rtol=1e-4)
        assert (score[0] - old).abs().max() > 1e-4
        assert score[1].min() > 1e-4


# -- the reference that moves -----------------------------------------------------------------------------------------


def test_a_moving_reference_follows_the_trained_weights(sketcher: Sketcher) -> None:
    moving = sketcher.keep_reference(moving=True)
    before = {name: p.detach().clone() for name, p in sketcher.network.named_parameters()}
    with torch.no_grad():
        for parameter in sketcher.network.parameters():
            parameter += 1.0
    moving.follow(0.75)
    with sketcher.reference():
        for name, parameter in sketcher.network.named_parameters():
            assert torch.allclose(parameter, before[name] + 0.25)
    for name, parameter in sketcher.network.named_parameters():
        assert torch.equal(parameter, before[name] + 1.0)


# -- whole runs -------------------------------------------------------------------------------------------------------


def latent_run(items: Path, out: Path, algorithm: str, **changes: Any) -> RunConfig:
    base = configuration(items, out, optim__learning_rate=3e-3, scenario__image=replace(GUIDED, guidance=1.0))
    run = trained_by(base, algorithm)
    assert isinstance(run, RunConfig)
    for field, value in changes.items():
        section, _, inner = field.partition("__")
        run = replace(run, **{section: replace(getattr(run, section), **{inner: value}) if inner else value})
    return run


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Trainer]:
    """Makes trainers of a fresh model by the name of their folder, by an algorithm."""
    items = write_items(tmp_path / "items.jsonl")
    monkeypatch.setattr("unison.training.trainer.load_policy", lambda config: make())
    return lambda name, algorithm, resume=False, **changes: begin(
        latent_run(items, tmp_path / name, algorithm, **changes), resume
    )


@pytest.mark.parametrize("algorithm", LATENT)
def test_every_algorithm_of_denoising_raises_what_is_rewarded(start: Callable[..., Trainer], algorithm: str) -> None:
    rows = metrics(start("run", algorithm, optim__steps=30).train())
    means = [row["reward/mean"] for row in rows]
    assert sum(means[-5:]) / 5 > sum(means[:5]) / 5 + 0.1
    assert not any(row["skipped_step"] for row in rows)


def test_what_nft_and_diffusion_dpo_log(start: Callable[..., Trainer]) -> None:
    rows = metrics(start("nft", "diffusion-nft").train())
    assert rows[0]["image/kl"] == pytest.approx(0, abs=1e-9)  # the policy that samples is the trained one
    assert rows[1]["image/kl"] > 1e-9
    assert rows[0]["image/velocity_error"] > 0.1
    rows = metrics(start("dpo", "diffusion-dpo").train())
    assert rows[0]["image/margin"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["image/preferred"] > 0.5


def test_nft_samples_with_the_reference(start: Callable[..., Trainer]) -> None:
    trainer = start("run", "diffusion-nft")
    trainer.step = 1
    drawn = trainer.experience.sample(trainer.step)
    trainer.experience.batches = 0
    with torch.no_grad():
        for parameter in trainer.policy.network.parameters():
            parameter += 0.1
    again = trainer.experience.sample(trainer.step)
    assert torch.equal(path(drawn[0]), path(again[0]))


def path(trajectory: Trajectory) -> Tensor:
    return cast(Latents, trajectory.turns[0].action).path


@pytest.mark.parametrize("algorithm", ["diffusion-nft", "diffusion-dpo"])
def test_micro_batches_leave_loss_and_gradient_unchanged(start: Callable[..., Trainer], algorithm: str) -> None:
    rows = [
        metrics(start(f"{size}", algorithm, step__micro_batch_items=size, optim__steps=2).train()) for size in (1, 4)
    ]
    for one, all_ in zip(*rows, strict=True):
        assert one["grad_norm"] == pytest.approx(all_["grad_norm"], rel=1e-3)
        assert one["loss"] == pytest.approx(all_["loss"], rel=1e-3, abs=1e-5)


def stopped_and_resumed(start: Callable[..., Trainer], *settings: Any, **changes: Any) -> None:
    """A run that is cut short in its third step and gone on with has the metrics and weights of one that is not."""
    whole, resumed = whole_and_resumed(start, *settings, **changes)
    assert metrics(resumed.run) == metrics(whole.run)
    now = weights(resumed)
    assert all(torch.equal(value, now[name]) for name, value in weights(whole).items())


def test_a_run_with_a_moving_reference_resumes_bit_for_bit(start: Callable[..., Trainer]) -> None:
    stopped_and_resumed(start, "diffusion-nft")


SCRIPT = """
import sys
from pathlib import Path
import unison.training.trainer
from tests.recipes.test_algorithms import latent_run
from tests.training.test_train_latents import begin, make
unison.training.trainer.load_policy = lambda config: make()
items, out, algorithm = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
begin(latent_run(items, out, algorithm, step__refills=1)).train()
"""


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["diffusion-nft", "diffusion-dpo"])
def test_two_processes_take_the_same_steps_as_one(tmp_path: Path, algorithm: str) -> None:
    items, script = write_items(tmp_path / "items.jsonl"), tmp_path / "script.py"
    script.write_text(SCRIPT)
    repo = Path(__file__).parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo)}
    together = ["-m", "torch.distributed.run", "--nproc-per-node", "2"]
    for name, words in (("one", []), ("two", together)):
        command = [sys.executable, *words, str(script), str(items), str(tmp_path / name), algorithm]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for name in ("loss", "grad_norm", "image/grad_norm", "reward/mean"):
            assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5)


# -- dynamic sampling -------------------------------------------------------------------------------------------------


def rewarded(rewards: Sequence[Sequence[float | None]]) -> list[list[Trajectory]]:
    return [[Trajectory(Item(f"{n}"), (), reward=reward) for reward in group] for n, group in enumerate(rewards)]


def test_groups_that_tell_something_come_first_in_their_order() -> None:
    groups = rewarded([[1, 1], [0, 1], [None, 1], [2, 2], [0, 2], [3, 4]])
    flat = [t for group in groups for t in group]
    ids = lambda some: [group[0].item.id for group in some]  # noqa: E731
    assert ids(groups_of(flat)) == ["0", "1", "2", "3", "4", "5"]
    assert ids(most_telling(groups, 2)) == ["1", "4"]
    assert ids(most_telling(groups, 4)) == ["0", "1", "4", "5"]
    assert ids(most_telling(groups, 9)) == ["0", "1", "2", "3", "4", "5"]


def equal_for(ids: set[str]) -> Callable[..., list[float | None]]:
    """A reward that is the same for all siblings of these items."""
    return lambda ts, policy: [0.0 if t.item.id in ids else float(path(t)[-1].mean()) for t in ts]


def test_groups_of_equal_rewards_make_room_for_others(start: Callable[..., Trainer]) -> None:
    trainer = start("run", "mixgrpo", step__items=2, step__micro_batch_items=2, step__refills=3)
    trainer.step = 1
    order = [t.item.id for _ in range(4) for t in trainer.experience.sample(trainer.step)[::4]]
    assert len(set(order)) == 8
    trainer.experience.batches = 0
    trainer.rewards["jpeg_compressible"] = equal_for({order[0], order[2], order[3]})
    kept, measured, discarded = trainer.experience.collect(trainer.step)
    assert [t.item.id for t in kept[::4]] == [order[1], order[4]]
    assert discarded == 4
    assert trainer.experience.batches == 3
    assert measured["jpeg_compressible/abstained"] == 0


def test_refills_are_bounded_and_equal_groups_then_fill_the_batch(start: Callable[..., Trainer]) -> None:
    trainer = start("run", "mixgrpo", step__items=2, step__micro_batch_items=2, step__refills=2)
    trainer.rewards["jpeg_compressible"] = lambda ts, policy: [1.0] * len(ts)
    row = metrics(trainer.train())[0]
    assert row["groups/discarded"] == 4
    assert row["constant_step"] == 1
    assert trainer.experience.batches == 9


def test_a_step_draws_no_item_twice(start: Callable[..., Trainer]) -> None:
    trainer = start("run", "mixgrpo", step__refills=5)  # 6 rollouts of 4 of the 8 items there are
    trainer.rewards["jpeg_compressible"] = lambda ts, policy: [1.0] * len(ts)
    trainer.step = 1
    kept, _, discarded = trainer.experience.collect(trainer.step)
    assert len(kept) == 16
    assert discarded == 4


def test_a_run_with_refills_resumes_bit_for_bit(start: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.training.test_train_latents.brightness", equal_for({"0", "3", "5"}))
    changes = {"step__items": 2, "step__micro_batch_items": 2, "step__refills": 2}
    stopped_and_resumed(start, "dancegrpo", **changes)


# -- named presets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_changes_no_more_of_a_run_than_how_it_learns(name: str) -> None:
    before = corl.tiny_unified() if name not in LATENT else replace(corl.tiny_draw(), objective=ObjectiveConfig())
    after = trained_by(before, name)
    assert isinstance(after, RunConfig)
    assert (after.policy, after.data, after.seed, after.out) == (before.policy, before.data, before.seed, before.out)
    assert after.optim.learning_rate == before.optim.learning_rate
    assert after.scenario.group_size == before.scenario.group_size
    assert {**after.rewards, "overlong": 0.0} == {**before.rewards, "overlong": 0.0}
    undone, plainly = (trained_by(run, "grpo") for run in (after, before))
    assert isinstance(plainly, RunConfig)
    assert undone == replace(
        plainly,
        rewards=after.rewards,
        scenario=after.scenario,
        objective=ours(after),
        step=replace(after.step, refills=0),
        scoring=replace(after.scoring, drawings="rounds"),
    )
    assert summary(name)


def ours(run: RunConfig) -> ObjectiveConfig:
    """What GRPO leaves of a run's objective: clip ranges and penalties."""
    kept = replace(run.objective, name="grpo", level="decision", aggregation="sequence", reference_decay=1.0)
    return replace(kept, beta=ObjectiveConfig().beta)


def test_a_chain_is_trained_by_an_algorithm_stage_by_stage() -> None:
    chain = trained_by(find("corl/tiny")(), "dr-grpo")
    assert isinstance(chain, tuple)
    assert all(stage.config.advantage.kind == "mean" for stage in chain)
    assert [stage.config.objective.kl_beta for stage in chain] == [0.0, 0.02, 0.02, 0.02]  # the recipe's


def test_an_algorithm_leaves_stages_that_imitate_as_they_are() -> None:
    before = find("unirl-zero/tiny-think")()
    after = trained_by(before, "dr-grpo")
    assert isinstance(before, tuple)
    assert isinstance(after, tuple)
    assert after[0] == before[0]
    assert after[1].config.advantage.kind == "mean"


def test_an_unknown_algorithm_is_said_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="algorithm = 'dapoo' is unknown; did you mean 'dapo'"):
        trained_by(corl.tiny_unified(), "dapoo")


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["unison", *words])
    cli.main()


@pytest.mark.parametrize("option", [("--algorithm", "dapo"), ("--algorithm=dapo",)])
def test_a_command_names_an_algorithm_and_its_own_options_come_after(
    option: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("train", "corl/tiny-unified", *option, "--dry-run")
    run(monkeypatch, *words)
    assert "'overlong': 1.0" in " ".join(capsys.readouterr().out.split())
    run(monkeypatch, *words, "--rewards.overlong", "0")
    assert "overlong" not in capsys.readouterr().out


def test_algorithms_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "recipes")
    shown = capsys.readouterr().out
    assert all(name in shown for name in ALGORITHMS)


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [("dapoo", "algorithm = 'dapoo' is unknown"), ("diffusion-dpo", "scenario.name = 'unified' writes")],
)
def test_a_command_with_an_algorithm_that_cannot_be_is_refused_in_a_line(
    algorithm: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "train", "corl/tiny-unified", "--algorithm", algorithm, "--dry-run")
    assert message in capsys.readouterr().err


# -- what cannot work -------------------------------------------------------------------------------------------------

RAISED = RetentionConfig(on_fall="raise_kl")
IMITATION = {"objective": ObjectiveConfig("sft"), "advantage__kind": "reward"}


@pytest.mark.parametrize("algorithm", LATENT)
def test_algorithms_of_denoising_refuse_a_model_that_draws_in_tokens(
    checkpoint: Path, tmp_path: Path, algorithm: str
) -> None:
    run = trained_by(replace(corl.tiny_draw(), objective=ObjectiveConfig()), algorithm)
    assert isinstance(run, RunConfig)
    run = replace(run, policy=replace(run.policy, path=str(checkpoint)), out=tmp_path / "run", trackers=())
    with pytest.raises(ValueError, match="needs a model that can denoise drawings, but the janus family can only"):
        Trainer(run)


@pytest.mark.parametrize("algorithm", ["diffusion-nft", "diffusion-dpo"])
def test_objectives_of_states_refuse_a_scenario_that_writes(start: Callable[..., Trainer], algorithm: str) -> None:
    with pytest.raises(
        ValueError, match=r"compares noisy states of drawings, but scenario\.name = 'self_improve' writes"
    ):
        start("run", algorithm, scenario__name="self_improve")


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("diffusion-nft", {"scenario__image": GUIDED}, r"scenario\.image\.guidance = 2\.5.*1 with 'nft'"),
        ("diffusion-nft", {"scoring__drawings": "rounds"}, r"scoring\.drawings = 'rounds'.*'noised' with 'nft'"),
        (
            "diffusion-nft",
            {"objective__kl_beta": 0.1},
            r"objective\.kl_beta = 0\.1: must be 0\.0 with 'nft', which has no",
        ),
        (
            "diffusion-nft",
            {"objective__image_kl_beta": 0.1},
            r"objective\.image_kl_beta = 0\.1: must be None with 'nft'",
        ),
        (
            "diffusion-nft",
            {"objective__level": "sequence"},
            r"objective\.level = 'sequence': must be 'decision' with 'nft'",
        ),
        (
            "diffusion-nft",
            {"retention": RAISED},
            r"retention\.on_fall = 'raise_kl': must be 'report' or 'stop' with 'nft'",
        ),
        (
            "online-dpo",
            {"objective__image_kl_beta": 0.1},
            r"objective\.image_kl_beta = 0\.1.*None with 'dpo'.*'grpo' alone",
        ),
        ("online-dpo", {"objective__image_clip": 1e-4}, r"objective\.image_clip = 0\.0001: must be None with 'dpo'"),
        (
            "mixgrpo",
            {"objective__beta": 0.5},
            r"objective\.beta = 0\.5: must be 0\.1 with 'grpo'.*'dpo' and 'nft' alone",
        ),
        (
            "mixgrpo",
            {"objective__image_kl_beta": 0.0, "retention": RAISED},
            r"objective\.kl_beta = 0\.0: must be above 0",
        ),
        ("diffusion-nft", {"objective__reference_decay": 1.5}, r"reference_decay = 1\.5.*between 0 and 1"),
        ("diffusion-nft", {"objective__beta": 0.0}, r"objective\.beta = 0\.0.*above 0"),
        ("diffusion-dpo", {"scoring__rounds": 2}, r"scoring\.rounds = 2.*every level"),
        ("diffusion-dpo", {"step__micro_batch_images": 3}, r"step\.micro_batch_images = 3.*0: 'dpo' compares"),
        ("diffusion-dpo", {"advantage__kind": "group"}, r"advantage\.kind = 'group'.*'pair' with 'dpo'"),
        ("mixgrpo", {"advantage__kind": "pair"}, r"advantage\.kind = 'pair'.*'pair' with 'dpo' alone"),
        ("mixgrpo", {"objective__reference_decay": 0.5}, r"reference_decay = 0\.5.*has no reference"),
        ("mixgrpo", {"step__refills": -1}, r"step\.refills = -1"),
    ],
)
def test_settings_that_cannot_work_are_said(
    start: Callable[..., Trainer], algorithm: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start("run", algorithm, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective": ObjectiveConfig("sft", kl_beta=0.1)},
            r"objective\.kl_beta = 0\.1: must be 0\.0 with 'sft'.*'grpo'",
        ),
        (
            {"objective": ObjectiveConfig("sft", image_kl_beta=0.1)},
            r"objective\.image_kl_beta = 0\.1: .*None with 'sft'",
        ),
        ({"objective": ObjectiveConfig("sft", clip_low=0.1)}, r"objective\.clip_low = 0\.1: must be 0\.2 with 'sft'"),
        ({"retention": RAISED}, r"retention\.on_fall = 'raise_kl': must be 'report' or 'stop' with 'sft'"),
        ({"scoring__old_logp": "recomputed"}, r"scoring\.old_logp = 'recomputed': must be 'sampled' with 'sft'"),
    ],
)
def test_imitation_refuses_settings_that_it_would_ignore(
    start: Callable[..., Trainer], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        start("run", "grpo", **IMITATION | changes)


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if scenario.gives])
@pytest.mark.parametrize("algorithm", ["grpo", "online-dpo"])
def test_given_actions_are_for_imitation_alone(name: str, algorithm: str) -> None:
    run = trained_by(corl.tiny_unified(), algorithm)
    assert isinstance(run, RunConfig)
    run = replace(run, scenario=replace(run.scenario, name=name))
    message = rf"objective\.name = '\w+': must be 'sft' with scenario\.name = '{name}', whose actions are given"
    with pytest.raises(ValueError, match=message):
        check(run)


def test_scenarios_say_whether_actions_are_given() -> None:
    """Only what a policy sampled has log-probabilities that are not all 0."""
    given = {"imitate", "self_sft", "self_sft_split", "imitate_thought", "imitate_reflection"}
    assert {name for name, scenario in SCENARIOS.items() if scenario.gives} == given


def test_refills_need_siblings_that_are_compared() -> None:
    run = corl.tiny_cold_start()
    with pytest.raises(ValueError, match=r"step\.refills = 1.*0 where siblings are not compared"):
        replace(run, step=replace(run.step, refills=1))


# -- overlong replies -------------------------------------------------------------------------------------------------


def reply(length: int) -> Turn:
    ids = torch.zeros(length, dtype=torch.int64)
    mask = torch.ones(length, dtype=torch.bool)
    return Turn(Context(("?",)), Tokens("text", ids, ids, ids.float(), mask, Sampling(max_tokens=50)))


def test_replies_are_punished_as_they_run_out_of_room() -> None:
    from trl.rewards.other_rewards import get_soft_overlong_punishment

    lengths = [1, 39, 40, 41, 45, 50]
    found = overlong([Trajectory(Item("x"), (reply(length),)) for length in lengths], None)
    theirs = get_soft_overlong_punishment(50, 10)(completion_ids=[[0] * length for length in lengths])
    assert found == pytest.approx(theirs)
    assert found[-1] == pytest.approx(-1)
    assert overlong([Trajectory(Item("x"), (reply(1), reply(45)))], None) == pytest.approx([-0.5])
    assert overlong([Trajectory(Item("x"), ())], None) == [None]


# -- the benchmark ----------------------------------------------------------------------------------------------------


def test_every_algorithm_has_a_row_and_every_row_is_an_algorithm() -> None:
    named = {algorithm for rows in benchmark.ROWS.values() for algorithm in rows}
    assert named == set(ALGORITHMS)
    assert set(benchmark.OWN) <= {(kind, name) for kind, rows in benchmark.ROWS.items() for name in rows}


def records(drawn: float, right: float) -> Evaluation:
    judged = {"drawing_score": drawn, "drawing_correct": drawn == 1, "answer_correct": right, "format_ok": True}
    return Evaluation(0, [{"task": task, **judged} for task in ("colors", "position") for _ in range(3)])


def test_a_row_is_the_recipes_reward_before_and_after(tmp_path: Path) -> None:
    args = benchmark.Args(rows=("gspo",), out=tmp_path)
    for step, evaluation in ((0, records(0.5, 0.0)), (30, records(1.0, 1.0))):
        replace(evaluation, step=step).save(tmp_path / "tokens-gspo-0" / "eval")
    row = benchmark.table("tokens", args).splitlines()[-1]
    assert row == "| gspo | 1.300 | 3.600 | +2.300 [+2.300, +2.300] |"  # 0.5 + 0.8 and 1 + 1 + 0.8 + 0.8


@pytest.mark.slow
def test_a_model_that_draws_by_denoising_is_trained_and_tabled(
    metaquery: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metaquery.save(tmp_path / "model")
    small = ("--optim.steps=1", "--step.items=2", "--step.micro-batch-items=1", "--evaluation.items=6")
    benchmark.main(
        benchmark.Args(
            tables=("denoising",),
            rows=("diffusion-nft",),
            model=str(tmp_path / "model"),
            reward="jpeg_incompressible",
            out=tmp_path / "runs",
            workers=1,
            options=small,
        )
    )
    assert "| diffusion-nft | 0." in capsys.readouterr().out
