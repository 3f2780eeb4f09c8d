"""Rollouts in a type of their own: what sampling and scoring then disagree by, and where it shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from unison import recipes
from unison.config import ObjectiveConfig, PolicyConfig, RunConfig, ScoringConfig
from unison.objectives.grpo import grpo, sampling_difference
from unison.policies.decoding import causal
from unison.policies.janus.policy import Janus
from unison.policies.metaquery.policy import MetaQuery
from unison.policies.showo.policy import ShowO
from unison.training.trainer import Trainer
from unison.types import Context, Item, Sampling, Trajectory, Turn, TurnBatch

Made = Callable[..., Janus | ShowO | MetaQuery]
CONTEXTS = [Context(("what is red?",))] * 2


@pytest.fixture(params=["make_policy", "make_showo", "make_metaquery"])
def make(request: pytest.FixtureRequest) -> Made:
    return request.getfixturevalue(request.param)


def differences(policy: Janus | ShowO | MetaQuery) -> Tensor:
    """Selected minus sampled log-probabilities of a few replies."""
    replies = policy.write(CONTEXTS, Sampling(max_tokens=8), range(2))
    with torch.no_grad():
        scored = torch.cat(policy(CONTEXTS, replies))
    return scored - torch.cat([reply.logp for reply in replies])


def test_rollouts_in_bfloat16_are_near_what_is_scored_and_not_it(make: Made) -> None:
    gap = differences(make(rollout_dtype="bfloat16")).abs()
    assert 1e-4 < gap.max() < 1
    assert differences(make()).abs().max() < 1e-4
    assert differences(make(rollout_dtype="float32")).abs().max() < 1e-4


def test_the_type_of_scoring_is_left_alone(make_policy: Callable[..., Janus]) -> None:
    own, theirs = make_policy(rollout_dtype="bfloat16"), make_policy()
    replies = own.write(CONTEXTS, Sampling(max_tokens=8), range(2))
    with torch.no_grad():
        assert torch.allclose(torch.cat(own(CONTEXTS, replies)), torch.cat(theirs(CONTEXTS, replies)), atol=1e-6)


def test_exact_logits_are_those_of_the_weights_type() -> None:
    torch.manual_seed(0)
    head, hidden = nn.Linear(64, 50), torch.randn(3, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        plain = causal.Speaker(nn.Identity(), nn.Identity(), head)
        own = replace(plain, config=PolicyConfig("", rollout_dtype="bfloat16"))
        with causal.to_logits(own) as to_logits:
            exact = to_logits(hidden)
        with causal.to_logits(plain) as to_logits:
            rounded = to_logits(hidden)
    with torch.no_grad():
        expected = head(hidden)
    assert (exact.dtype, rounded.dtype) == (torch.float32, torch.bfloat16)
    assert torch.allclose(exact, expected, atol=1e-5)
    assert not torch.allclose(rounded.float(), expected, atol=1e-4)


def test_old_log_probabilities_are_those_of_sampling_unless_they_are_to_be_computed_anew(
    make_policy: Callable[..., Janus],
) -> None:
    policy = make_policy()
    replies = policy.write(CONTEXTS, Sampling(max_tokens=4), range(2))
    for scored, reply in zip(policy.select(replies, ScoringConfig(), 0), replies, strict=True):
        assert scored.old_logp is reply.logp
    for scored in policy.select(replies, ScoringConfig(old_logp="recomputed"), 0):
        assert scored.old_logp is None


def test_the_logged_differences_are_those_of_their_definition() -> None:
    sampled = [torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5]), torch.zeros(3)]  # the last one was given
    logp = torch.tensor([[-1.1, -2.0, -2.7], [-1.5, 0.0, 0.0], [-4.0, -5.0, -6.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, True]])
    batch = TurnBatch(logp, logp.clone(), None, torch.zeros(3), mask, mask / 7, torch.zeros(3, dtype=torch.long))
    gaps = sampling_difference(batch, sampled)
    assert gaps.tolist() == pytest.approx([0.1, 0.0, 0.3, 0.0], abs=1e-6)
    reused = replace(batch, old_logp=torch.nn.utils.rnn.pad_sequence(sampled, batch_first=True))
    assert grpo(reused, ObjectiveConfig())[1]["logp_difference"] == pytest.approx(0.4 + 15)
    assert torch.equal(sampling_difference(reused, sampled), gaps)


@pytest.mark.slow
@pytest.mark.parametrize("old", ["sampled", "recomputed"])
def test_the_log_shows_what_sampling_and_scoring_disagree_by(old: str, tmp_path: Path) -> None:
    recipe = recipes.find("corl/tiny-unified")()
    assert isinstance(recipe, RunConfig)
    config = replace(
        recipe,
        policy=replace(recipe.policy, rollout_dtype="bfloat16"),
        step=replace(recipe.step, items=1, micro_batch_items=1),
        scoring=replace(recipe.scoring, old_logp=old),
        out=tmp_path,
        trackers=(),
    )
    trainer = Trainer(config)
    replies = trainer.policy.write(CONTEXTS, Sampling(max_tokens=8), range(2))
    with torch.no_grad():
        scored = trainer.policy(CONTEXTS, replies)
    group = [Trajectory(Item("one"), (Turn(CONTEXTS[0], reply),)) for reply in replies]
    metrics = trainer.update(group, [1.0, -1.0], trainer.step)
    gaps = torch.cat([(row - reply.logp).abs() for row, reply in zip(scored, replies, strict=True)])
    assert metrics["text/sampling_difference"] == pytest.approx(float(gaps.mean()), rel=1e-4)
    assert metrics["text/sampling_difference_max"] == pytest.approx(float(gaps.max()), rel=1e-4)
    assert 1e-5 < gaps.mean() < 1
    if old == "recomputed":
        assert metrics["text/logp_difference"] == 0
    else:
        assert metrics["text/logp_difference"] == pytest.approx(float(gaps.mean()), rel=1e-4)
