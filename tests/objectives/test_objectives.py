"""Advantages, the clipped objective and its weights: by hand, by REINFORCE, by trl, and in micro-batches."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from unison.config import AdvantageConfig, ObjectiveConfig
from unison.objectives.advantage import advantages_of, group_advantages
from unison.objectives.grpo import Totals, decision_shares, grpo, totals
from unison.policies.base import Policy
from unison.policies.decisions.tokens import divergence
from unison.types import Context, Sampling, Tokens, Turn, TurnBatch, pad_stack

AGGREGATIONS = ["sequence", "token", 512]


# -- advantages ---------------------------------------------------------------------------------------------------


def advantages(groups: Sequence[Sequence[float | None]], **fields: Any) -> tuple[list[list[Any]], dict[str, float]]:
    """Advantages in the shape of the given groups of rewards, and the metrics."""
    flat = [reward for group in groups for reward in group]
    rows = iter(range(len(flat)))
    numbered = {f"item {i}": [next(rows) for _ in group] for i, group in enumerate(groups)}
    found, metrics = group_advantages(flat, numbered, AdvantageConfig(**fields))
    return [[found[row] for row in numbered[item]] for item in numbered], metrics


@pytest.mark.parametrize("kind", ["group", "mean"])
def test_advantages_of_a_group_sum_to_zero(kind: str) -> None:
    rewards = torch.rand(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    for group in advantages(rewards, kind=kind)[0]:
        assert abs(sum(group)) < 1e-9
        assert any(group)


def test_advantages_are_standard_scores_within_the_group() -> None:
    (group,), _ = advantages([[0.0, 1.0, 2.0, 5.0]])
    std = torch.tensor([0.0, 1.0, 2.0, 5.0]).std().item()  # as trl: over n - 1
    assert group == pytest.approx([(r - 2) / (std + 1e-4) for r in (0, 1, 2, 5)], abs=1e-6)


def test_without_the_division_advantages_are_differences_to_the_mean() -> None:
    assert advantages([[0.0, 1.0, 2.0, 5.0]], kind="mean")[0] == [[-2.0, -1.0, 0.0, 3.0]]


def test_advantages_may_be_constant_or_the_rewards_themselves() -> None:
    rewards, groups = [0.0, 1.0, None, 0.5], {"one": [0, 1], "two": [2, 3]}
    found = {kind: advantages_of(rewards, groups, AdvantageConfig(kind))[0] for kind in ("constant", "reward")}  # type: ignore[arg-type]
    assert found == {"constant": [1.0] * 4, "reward": rewards}


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1e8 / 3])
@pytest.mark.parametrize("kind", ["group", "mean"])
def test_a_constant_group_has_exactly_zero_advantage(value: float, kind: str) -> None:
    groups, metrics = advantages([[value] * 6, [0.0, 1.0]], kind=kind)
    assert groups[0] == [0.0] * 6
    assert metrics["constant_share"] == 0.5


def test_a_sample_without_a_reward_leaves_its_group() -> None:
    groups, metrics = advantages([[0.0, None, 1.0], [2.0, 3.0, 7.0]], kind="mean")
    assert groups == [[-0.5, None, 0.5], [-2.0, -1.0, 3.0]]
    assert metrics["abstained"] == 1
    assert metrics["mean"] == pytest.approx(13 / 5)


def test_a_lone_survivor_has_nothing_to_be_compared_with() -> None:
    assert advantages([[None, 3.0, None]])[0] == [[None, 0.0, None]]


def test_a_step_without_any_reward_is_no_error() -> None:
    groups, metrics = advantages([[None, None]])
    assert groups == [[None, None]]
    assert metrics["abstained"] == 2
    assert metrics["constant_share"] == 1


def test_clamped_advantages_stay_within_their_limit() -> None:
    (group,), _ = advantages([[0.0] * 9 + [1.0]], clamp=1.5)
    assert max(group) == 1.5
    assert advantages([[0.0] * 9 + [1.0]])[0][0][-1] > 1.5


def test_groups_are_compared_within_and_not_across() -> None:
    near, _ = advantages([[0.0, 1.0], [0.0, 1.0]])
    far, metrics = advantages([[0.0, 1.0], [100.0, 101.0]])
    assert near == far
    assert metrics["std"] == pytest.approx(math.sqrt(0.5))


def test_groups_need_not_lie_next_to_each_other() -> None:
    found, _ = group_advantages([0.0, 10.0, 1.0, 14.0], {"a": [0, 2], "b": [1, 3]}, AdvantageConfig("mean"))
    assert found == [-0.5, -2.0, 0.5, 2.0]


# -- weights ------------------------------------------------------------------------------------------------------

MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
TOTAL = Totals(turns=5, decisions=20)  # the update holds more than these rows


@pytest.mark.parametrize(
    ("aggregation", "first", "second"),
    [("sequence", 1 / 15, 1 / 5), ("token", 1 / 20, 1 / 20), (100, 1 / 500, 1 / 500)],
)
def test_decision_shares_by_hand(aggregation: Any, first: float, second: float) -> None:
    config = ObjectiveConfig(aggregation=aggregation)
    expected = torch.tensor([[first] * 3 + [0.0], [second, 0.0, 0.0, 0.0], [0.0] * 4])
    assert torch.allclose(decision_shares(MASK, TOTAL, config), expected)


def tokens_of(mask: Tensor) -> Tokens:
    length = len(mask)
    return Tokens("text", torch.zeros(length).long(), torch.arange(length), torch.zeros(length), mask, Sampling())


def test_totals_count_turns_and_trained_decisions() -> None:
    assert totals(list(MASK)) == Totals(3, 4)


# -- the clipped objective ----------------------------------------------------------------------------------------


def batch(logp: Any, old: Any = None, advantage: Any = 1.0, reference: Any = None, weight: float = 1.0) -> TurnBatch:
    """One decision a row, unless `logp` is already [B, L]."""
    logp = torch.as_tensor(logp, dtype=torch.float64)
    logp = logp if logp.ndim == 2 else logp[:, None]
    shape = logp.shape
    expand = lambda x: torch.as_tensor(x, dtype=torch.float64).reshape(-1, 1).expand(shape)  # noqa: E731
    return TurnBatch(
        logp=logp,
        old_logp=logp.detach() if old is None else expand(old),
        kl=None if reference is None else divergence(logp, expand(reference)),
        advantage=torch.as_tensor(advantage, dtype=torch.float64).expand(shape[0]),
        mask=torch.ones(shape, dtype=torch.bool),
        share=torch.full(shape, weight, dtype=torch.float64),
        group=torch.zeros(shape[0], dtype=torch.int64),
    )


def random_batch(beta: bool = False, drift: float = 0.3) -> TurnBatch:
    """Six turns of unequal lengths, with rubbish where masked."""
    g = torch.Generator().manual_seed(0)
    noise = lambda: torch.randn(6, 5, generator=g, dtype=torch.float64)  # noqa: E731
    mask = torch.arange(5) < torch.tensor([5, 3, 1, 4, 2, 5])[:, None]
    old = -noise().abs()
    logp = torch.where(mask, old + drift * noise(), noise()).requires_grad_()
    return TurnBatch(
        logp=logp,
        old_logp=old,
        kl=divergence(logp, reference_of(old)) if beta else None,
        advantage=torch.randn(6, generator=g, dtype=torch.float64),
        mask=mask,
        share=torch.zeros(6, 5),
        group=torch.tensor([0, 0, 1, 1, 2, 2]),
    )


def reference_of(old: Tensor) -> Tensor:
    """Log-probabilities of a reference near the policy that sampled."""
    return old + 0.3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1), dtype=old.dtype)


def weighted(b: TurnBatch, config: ObjectiveConfig) -> TurnBatch:
    total = Totals(len(b.mask), float(b.mask.sum()))
    return replace(b, share=decision_shares(b.mask, total, config))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_at_ratio_one_the_gradient_is_reinforces(aggregation: Any) -> None:
    b = weighted(random_batch(), ObjectiveConfig(aggregation=aggregation))
    b = replace(b, old_logp=b.logp.detach())
    reinforce = -(b.share * b.advantage[:, None] * b.logp).sum()
    loss, metrics = grpo(b, ObjectiveConfig())
    ours, theirs = (torch.autograd.grad(x, b.logp)[0] for x in (loss, reinforce))
    assert torch.allclose(ours, theirs, atol=1e-12)
    assert ours.abs().max() > 0
    assert metrics["ratio"] == metrics["decisions"]
    assert metrics["clip_fraction"] == metrics["logp_difference"] == metrics["kl"] == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.1, 2.0, -2.2, False),
        (1.5, 2.0, -2.56, True),  # 1.28 * 2
        (0.5, 2.0, -1.0, False),  # going back is never clipped
        (0.9, -1.0, 0.9, False),
        (0.5, -1.0, 0.8, True),
        (1.5, -1.0, 1.5, False),
        (3.0, 0.0, 0.0, False),
    ],
)
def test_clip_bounds_by_hand(ratio: float, advantage: float, loss: float, clipped: bool) -> None:
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    found, metrics = grpo(batch(logp, [0.0], advantage), ObjectiveConfig(clip_low=0.2, clip_high=0.28))
    assert found.item() == pytest.approx(loss)
    assert metrics["clip_fraction"] == clipped
    gradient = torch.autograd.grad(found, logp)[0].item()
    assert gradient == pytest.approx(0 if clipped else -ratio * advantage)


def test_kl_by_hand() -> None:
    loss, metrics = grpo(batch([-1.0], advantage=0.0, reference=[-0.5]), ObjectiveConfig(kl_beta=0.1))
    assert metrics["kl"] == pytest.approx(math.exp(0.5) - 0.5 - 1)
    assert loss.item() == pytest.approx(0.1 * (math.exp(0.5) - 1.5))


def test_kl_is_zero_for_equal_policies_and_never_negative() -> None:
    logp = torch.linspace(-5, 0, 9, dtype=torch.float64)
    assert grpo(batch(logp, advantage=0.0, reference=logp), ObjectiveConfig(kl_beta=1.0))[0] == 0
    for shift in (-0.5, 0.5):
        assert grpo(batch(logp, advantage=0.0, reference=logp + shift), ObjectiveConfig(kl_beta=1.0))[0] > 0


def test_zero_advantage_without_kl_moves_nothing() -> None:
    b = replace(weighted(random_batch(), ObjectiveConfig()), advantage=torch.zeros(6, dtype=torch.float64))
    loss, _ = grpo(b, ObjectiveConfig())
    assert loss == 0
    assert not torch.autograd.grad(loss, b.logp)[0].any()


@pytest.mark.parametrize("rubbish", [math.inf, math.nan, 1e6])
def test_what_is_masked_has_no_influence(rubbish: float) -> None:
    config = ObjectiveConfig(kl_beta=0.1)
    b = weighted(random_batch(beta=True), config)
    logp = b.logp.detach().masked_fill(~b.mask, rubbish).requires_grad_()
    kl = torch.where(b.mask, divergence(torch.where(b.mask, logp, 0.0), reference_of(b.old_logp)), rubbish)
    poisoned = replace(b, logp=logp, kl=kl)
    results = [grpo(x, config) for x in (b, poisoned)]
    assert results[0][1] == pytest.approx(results[1][1])
    gradients = [torch.autograd.grad(loss, x.logp)[0] for (loss, _), x in zip(results, (b, poisoned), strict=True)]
    assert torch.allclose(gradients[0], gradients[1])


def test_metrics_are_sums_over_decisions() -> None:
    b = batch([math.log(1.5), math.log(0.5), 0.0], [0.0, 0.0, 0.0], [1.0, -1.0, 1.0])
    _, metrics = grpo(b, ObjectiveConfig())
    assert metrics["decisions"] == 3
    assert metrics["ratio"] == pytest.approx(3.0)
    assert metrics["clip_fraction"] == 2
    assert metrics["logp_difference"] == pytest.approx(math.log(1.5) + math.log(2))
    assert metrics["entropy"] == 0


# -- against trl --------------------------------------------------------------------------------------------------


def trl_inputs(b: TurnBatch) -> dict[str, Tensor]:
    """What trl's trainers take of a batch, apart from log-probabilities."""
    return {
        "prompt_ids": torch.zeros(len(b.mask), 1).long(),
        "prompt_mask": torch.ones(len(b.mask), 1).long(),
        "completion_ids": torch.zeros(b.mask.shape).long(),
        "completion_mask": b.mask.long(),
        "advantages": b.advantage,
    }


def trl_loss(b: TurnBatch, config: ObjectiveConfig, loss_type: str) -> Tensor:
    """`GRPOTrainer._compute_loss` itself on given log-probabilities; only what computes those is replaced."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (b.logp, torch.zeros_like(b.logp), None),
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token" if config.level == "decision" else config.level,
        beta=config.kl_beta,
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        loss_type=loss_type,
        epsilon_low=config.clip_low,
        epsilon_high=config.clip_high,
        use_vllm=False,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        max_completion_length=config.aggregation,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
    )
    inputs = trl_inputs(b) | {
        "old_per_token_logps": b.old_logp,
        "ref_per_token_logps": reference_of(b.old_logp),
        "num_items_in_batch": b.mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize(
    ("aggregation", "loss_type"), [("sequence", "grpo"), ("token", "bnpo"), ("token", "dapo"), (7, "dr_grpo")]
)
def test_loss_and_gradient_agree_with_trl(aggregation: Any, loss_type: str, beta: float) -> None:
    config = ObjectiveConfig(clip_low=0.2, clip_high=0.28, kl_beta=beta, aggregation=aggregation)
    b = weighted(random_batch(beta=True), config)
    b = b if beta else replace(b, kl=None)
    ours, metrics = grpo(b, config)
    theirs = trl_loss(b, config, loss_type)
    assert 0 < metrics["clip_fraction"] < metrics["decisions"]  # the batch exercises clipping
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, b.logp)[0] for loss in (ours, theirs)]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_a_ratio_of_whole_sequences_agrees_with_trl(beta: float) -> None:
    config = ObjectiveConfig(level="sequence", clip_low=0.02, clip_high=0.03, kl_beta=beta)
    b = weighted(random_batch(beta=True), config)
    b = b if beta else replace(b, kl=None)
    ours, metrics = grpo(b, config)
    theirs = trl_loss(b, config, "grpo")
    assert 0 < metrics["clip_fraction"] < metrics["decisions"]
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, b.logp)[0] for loss in (ours, theirs)]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


def test_the_ratio_of_a_sequence_by_hand() -> None:
    logp = torch.tensor([[0.1, 0.3], [0.0, -0.4]], dtype=torch.float64)
    b = batch(logp, [0.0, 0.0], [1.0, -2.0], weight=0.25)  # two turns of two decisions
    loss, metrics = grpo(b, ObjectiveConfig(level="sequence"))
    ratios = math.exp(0.2), math.exp(-0.2)  # of the means 0.2 and -0.2
    assert loss.item() == pytest.approx((-min(ratios[0], 1.2) + 2 * max(ratios[1], 0.8)) / 2)
    assert metrics["ratio"] == pytest.approx(2 * sum(ratios))


def test_the_ratio_of_a_sequence_of_which_some_decisions_are_scored_weighs_each_by_what_it_stands_for() -> None:
    whole = batch([[0.1, 0.3]], [0.0])
    b = replace(whole, weight=torch.tensor([[1.0, 3.0]]))
    assert grpo(b, ObjectiveConfig(level="sequence"))[1]["ratio"] == pytest.approx(2 * math.exp((0.1 + 3 * 0.3) / 4))


@pytest.mark.parametrize("divide", [True, False])
def test_advantages_agree_with_trls_formula(divide: bool) -> None:
    rewards = torch.rand(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    theirs = rewards - rewards.mean(1, keepdim=True)  # GRPOTrainer, scale_rewards="group" and "none"
    if divide:
        theirs = theirs / (rewards.std(1, keepdim=True) + 1e-4)
    ours = torch.tensor(advantages(rewards.tolist(), kind="group" if divide else "mean")[0], dtype=torch.float64)
    assert torch.allclose(ours, theirs)


# -- rloo ---------------------------------------------------------------------------------------------------------


def test_leaving_one_out_compares_with_the_mean_of_the_others() -> None:
    (group,), metrics = advantages([[1.0, 2.0, 6.0]], kind="rloo")
    assert group == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])
    assert metrics["mean"] == 3
    (group,), _ = advantages([[1.0, None, 6.0]], kind="rloo")
    assert group == [-5.0, None, 5.0]
    assert advantages([[None, 3.0]], kind="rloo")[0] == [[None, 0.0]]


def test_rloos_gradient_agrees_with_trl_where_the_policy_has_not_moved() -> None:
    """`RLOOTrainer._compute_loss` itself, whose ratio is of whole sequences."""
    from trl.trainer.rloo_trainer import RLOOTrainer

    config = ObjectiveConfig(aggregation=1)
    b = weighted(random_batch(), config)
    b = replace(b, old_logp=b.logp.detach())
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (b.logp, torch.zeros_like(b.logp), None),
        aux_loss_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.2,
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(num_processes=1, gather=lambda x: x, reduce=lambda x, **_: x),
        _metrics={"train": defaultdict(list)},
    )
    inputs = trl_inputs(b) | {
        "old_logps": (b.old_logp * b.mask).sum(1),
    }
    theirs = RLOOTrainer._compute_loss(trainer, None, inputs)  # type: ignore[arg-type]
    ours, _ = grpo(b, config)
    gradients = [torch.autograd.grad(loss, b.logp)[0] for loss in (ours, theirs)]
    assert gradients[0].abs().max() > 0
    assert torch.allclose(gradients[0], gradients[1], atol=1e-7)


# -- 4. micro-batches ---------------------------------------------------------------------------------------------


def part(b: TurnBatch, rows: slice) -> TurnBatch:
    return TurnBatch(
        b.logp[rows],
        b.old_logp[rows],
        None if b.kl is None else b.kl[rows],
        b.advantage[rows],
        b.mask[rows],
        b.share[rows],
        b.group[rows].unique(return_inverse=True)[1],
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_add_up_to_the_whole(aggregation: Any, size: int) -> None:
    config = ObjectiveConfig(aggregation=aggregation, kl_beta=0.1)
    b = weighted(random_batch(beta=True), config)
    whole, metrics = grpo(b, config)
    parts = [grpo(part(b, slice(i, i + size)), config) for i in range(0, 6, size)]
    total = torch.stack([loss for loss, _ in parts]).sum()
    assert torch.allclose(total, whole, atol=1e-6)
    gradients = [torch.autograd.grad(loss, b.logp, retain_graph=True)[0] for loss in (total, whole)]
    assert torch.allclose(gradients[0], gradients[1], atol=1e-6)
    for name, value in metrics.items():
        assert sum(m[name] for _, m in parts) == pytest.approx(value)


def turn_batch(
    policy: Policy, turns: Sequence[Turn], advantage: Tensor, total: Totals, config: ObjectiveConfig
) -> TurnBatch:
    """Turns of one modality as the objective sees them."""
    actions = [turn.action for turn in turns]
    mask = pad_stack([action.mask for action in actions]).bool()
    return TurnBatch(
        pad_stack(policy([turn.context for turn in turns], actions)),
        pad_stack([action.logp for action in actions]),
        None,
        advantage,
        mask,
        decision_shares(mask, total, config),
        torch.zeros(len(turns), dtype=torch.int64),
    )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("modality", ["text", "image"])
def test_micro_batches_leave_the_policys_gradient_unchanged(policy: Policy, modality: str, aggregation: Any) -> None:
    """Though they pad differently and compute shared prefixes again."""
    contexts = [Context((text,)) for text in ("a red circle", "two blue squares and a ring") for _ in range(3)]
    verb, sampling = (
        (policy.write, Sampling(max_tokens=9)) if modality == "text" else (policy.draw, Sampling(guidance=2.0))
    )
    turns = [Turn(c, a) for c, a in zip(contexts, verb(contexts, sampling, range(6)), strict=True)]
    if modality == "text":
        turns[1:3] = [Turn(t.context, shortened(t.action, 4)) for t in turns[1:3]]
    advantage, config = torch.linspace(-1, 1, 6), ObjectiveConfig(aggregation=aggregation)
    total = totals([turn.action.mask for turn in turns])
    trained = [p for p in policy.parameters() if p.requires_grad]

    def gradient(size: int) -> list[Tensor]:
        sums = [torch.zeros_like(p) for p in trained]
        for i in range(0, 6, size):
            rows = slice(i, i + size)
            loss, _ = grpo(turn_batch(policy, turns[rows], advantage[rows], total, config), config)
            for s, g in zip(sums, torch.autograd.grad(loss, trained, allow_unused=True), strict=True):
                s += 0 if g is None else g
        return sums

    whole = gradient(6)
    largest = max(g.abs().max() for g in whole)
    assert largest > 0
    for size in (1, 2, 4):
        for a, b in zip(gradient(size), whole, strict=True):
            assert (a - b).abs().max() <= 1e-5 * max(1, largest)


def shortened(action: Any, length: int) -> Tokens:
    return replace(action, **{name: getattr(action, name)[:length] for name in ("ids", "order", "logp", "mask")})
