"""Who reads the model's own drawings in training: the policy, the frozen reference, or both."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unison import scenarios
from unison.config import EvalConfig, PolicyConfig, RunConfig, ScenarioConfig
from unison.evaluation.held_out import evaluate
from unison.planning.memory import estimate_memory
from unison.policies.base import Policy
from unison.recipes import unirl
from unison.rewards.text import accuracy
from unison.scenarios import SCENARIOS
from unison.scenarios.common import Seeds
from unison.training.trainer import Trainer
from unison.types import ImageSampling, Item, Sampling, TextSampling, Tokens, Trajectory

CONFIG = ScenarioConfig("self_improve", 3, text=TextSampling(max_tokens=5), image=ImageSampling(guidance=2.0, rounds=4))
ITEMS = [Item(name, prompt=prompt, question="What is it?", answer="red") for name, prompt in (("1", "a"), ("2", "b"))]


def rollout(policy: Policy, answerer: Any, items: list[Item] = ITEMS, name: str = "self_improve") -> list[Trajectory]:
    with torch.no_grad():
        return SCENARIOS[name].rollout(policy, items, replace(CONFIG, answerer=answerer), Seeds(0, 0))


def texts(trajectories: list[Trajectory]) -> list[str]:
    return [t.texts[-1] for t in trajectories]


def shaken(policy: Policy) -> Policy:
    """The policy with other weights than those that it keeps as its reference."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.3 * noise * (parameter.std() if parameter.numel() > 1 else 1) + 0.01 * noise)
    return policy


@pytest.fixture(params=["janus", "janus with LoRA", "show-o"])
def pair(request: pytest.FixtureRequest, make_policy: Any, make_showo: Any) -> tuple[Policy, Policy]:
    """A policy away from its reference, and another one that is the reference."""
    make: Callable[..., Policy] = make_showo if request.param == "show-o" else make_policy
    policy = make(lora_rank=2) if "LoRA" in request.param else make()
    policy.keep_reference()
    return shaken(policy), make()


def test_the_reference_reads_the_drawings_of_the_policy(pair: tuple[Policy, Policy]) -> None:
    policy, first = pair
    weights = {name: p.detach().clone() for name, p in policy.named_parameters()}
    own, judged = rollout(policy, "policy"), rollout(policy, "reference")
    assert all(torch.equal(p, weights[name]) for name, p in policy.named_parameters())
    for a, b in zip(own, judged, strict=True):
        assert [turn.action.modality for turn in b.turns] == ["image"]
        assert torch.equal(tokens(a, 0), tokens(b, 0))
    contexts = [t.turns[1].context for t in own]
    with torch.no_grad():
        said = first.decode(first.write(contexts, Sampling.of(CONFIG.text), Seeds(0, 0).of(ITEMS, 3, "write")))
    assert texts(judged) == said
    assert texts(own) != said


def tokens(trajectory: Trajectory, turn: int) -> torch.Tensor:
    action = trajectory.turns[turn].action
    assert isinstance(action, Tokens)
    return action.ids


def test_of_both_the_reference_is_judged_unless_it_is_right(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    policy.keep_reference()
    shaken(policy)
    own, reference = rollout(policy, "policy"), rollout(policy, "reference")
    right = texts(reference)[0]
    items = [replace(item, answer=right) for item in ITEMS]
    found = rollout(policy, "both", items)
    agrees = [bool(value) for value in accuracy([replace(t, item=items[0]) for t in reference], None)]
    assert agrees[0]
    assert not all(agrees)
    chosen = [o if a else r for a, o, r in zip(agrees, texts(own), texts(reference), strict=True)]
    assert texts(found) == chosen
    for a, b in zip(own, found, strict=True):
        assert all(torch.equal(tokens(a, turn), tokens(b, turn)) for turn in (0, 1)), "the own reply is trained"


def test_before_training_all_answerers_say_the_same(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    policy.keep_reference()
    own = texts(rollout(policy, "policy"))
    assert texts(rollout(policy, "reference")) == texts(rollout(policy, "both")) == own


def test_split_supervision_learns_the_true_answer_whoever_judges(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    policy.keep_reference()
    shaken(policy)
    found = rollout(policy, "reference", name="self_sft_split")
    assert texts(found) == texts(rollout(policy, "reference"))
    for trajectory in found:
        drawn, told = trajectory.turns
        assert told.context.parts[0] is drawn.action
        assert policy.decode([told.action]) == ["red"]


def test_an_evaluation_asks_the_policy_itself(make_policy: Callable[..., Policy]) -> None:
    policy = shaken(make_policy())  # keeps no reference: asking it would be an error
    own, judged = (
        evaluate(policy, ITEMS, replace(CONFIG, answerer=answerer), EvalConfig(own_drawings=True))
        for answerer in ("policy", "reference")
    )
    assert own.records == judged.records


# -- runs ------------------------------------------------------------------------------------------------------------


def small(checkpoint: Path, out: Path, answerer: Any) -> RunConfig:
    run = unirl.tiny_janus_grpo()
    return replace(
        run,
        policy=PolicyConfig(str(checkpoint)),
        scenario=replace(CONFIG, group_size=4, answerer=answerer),
        step=replace(run.step, items=2, micro_batch_items=2),
        optim=replace(run.optim, steps=2, warmup_steps=0),
        evaluation=EvalConfig(items=2, own_drawings=True, rewards=("jpeg_compressible",)),
        trackers=(),
        out=out,
    )


@pytest.mark.parametrize("answerer", ["reference", "both"])
def test_a_run_trains_what_the_answerer_leaves_to_train(answerer: Any, checkpoint: Path, tmp_path: Path) -> None:
    trainer = Trainer(small(checkpoint, tmp_path / "run", answerer))
    trainer.rewards["accuracy"] = lambda ts, policy: [float(tokens(t, 0).float().mean()) for t in ts]
    before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters() if p.requires_grad}
    run = trainer.train()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(("text/ratio" in row) is (answerer == "both") and row["image/grad_norm"] > 0 for row in rows)
    measured = [
        record["reward/jpeg_compressible"] for record in json.loads((run / "eval/000002.json").read_text())["records"]
    ]
    assert all(0 < value < 1 for value in measured)
    assert any(not torch.equal(p, before[name]) for name, p in trainer.policy.named_parameters() if name in before)


def test_the_reference_has_its_place_in_the_memory(checkpoint: Path, tmp_path: Path) -> None:
    runs = (small(checkpoint, tmp_path, answerer) for answerer in ("policy", "both"))
    own, judged = (
        estimate_memory(replace(run, objective=replace(run.objective, kl_beta=0.0))).lasting["reference"]
        for run in runs
    )
    assert own == 0 < judged


def test_a_scenario_without_judged_replies_has_no_answerer_to_choose() -> None:
    run = unirl.tiny_janus_sft()
    with pytest.raises(ValueError, match=r"scenario.answerer = 'both': must be 'policy' in 'self_sft'"):
        scenarios.check(replace(run, scenario=replace(run.scenario, answerer="both")))
