"""GRPO on a bundled model in one file, without the trainer: python examples/loop.py

The four calls of every step are those of `unison train`: roll out, judge, take advantages, update. What the trainer
adds is left out: micro-batches, several processes, a reference, evaluation, checkpoints, reports. Change SCENARIO,
REWARDS or the objective and it is another experiment; `--steps 40` is about three minutes on two cores.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence

import torch

from unison.answers import REPLY_FORMAT
from unison.config import AdvantageConfig, ObjectiveConfig, PolicyConfig, ScenarioConfig
from unison.data.world import WorldItems
from unison.objectives.advantage import advantages_of
from unison.objectives.grpo import decision_shares, grpo, totals
from unison.policies import load_policy
from unison.policies.base import Policy
from unison.recipes.corl import LANGUAGE_MODEL_ONLY
from unison.rewards import judge, load_rewards, weigh
from unison.scenarios import find
from unison.scenarios.common import Seeds
from unison.scenarios.rollout import roll_out
from unison.types import ImageSampling, TextSampling, Trajectory, Turn, TurnBatch, group_rows, pad_stack

SCENARIO = "unified"  # draw a prompt and answer a question, one reward
REWARDS = {"world": 1.0, "accuracy": 1.0, "format": 0.5}
HOW = ScenarioConfig(SCENARIO, group_size=8, text=TextSampling(max_tokens=48), image=ImageSampling(guidance=1.75))
GRPO, COMPARED = ObjectiveConfig(), AdvantageConfig()


def batch_of(policy: Policy, turns: Sequence[tuple[Turn, float, int]]) -> TurnBatch:
    """Turns of one modality with their advantages and the numbers of their groups, scored with gradients."""
    contexts, actions = [turn.context for turn, _, _ in turns], [turn.action for turn, _, _ in turns]
    logp = pad_stack(policy(contexts, actions))  # [B, L]
    mask = pad_stack([action.mask for action in actions]).to(logp.device)
    return TurnBatch(
        logp=logp,
        old_logp=pad_stack([action.logp for action in actions]).to(logp.device),
        kl=None,
        advantage=torch.tensor([advantage for _, advantage, _ in turns], device=logp.device),
        mask=mask,
        share=decision_shares(mask, totals([action.mask for action in actions]), GRPO).to(logp.device),
        group=torch.tensor([group for _, _, group in turns], device=logp.device),
    )


def update(
    policy: Policy, optimizer: torch.optim.Optimizer, rolled: Sequence[Trajectory], advantages: Sequence[float | None]
) -> dict[str, float]:
    """One optimiser step: every turn has the advantage of its trajectory."""
    groups = {item: number for number, item in enumerate(group_rows(rolled))}
    figures: dict[str, float] = {}
    for modality in ("text", "image"):
        turns = [
            (turn, advantage, groups[trajectory.item.id])
            for trajectory, advantage in zip(rolled, advantages, strict=True)
            for turn in trajectory.turns
            if advantage is not None and turn.action.modality == modality
        ]
        if turns:
            loss, sums = grpo(batch_of(policy, turns), GRPO)
            loss.backward()
            figures[f"{modality} ratio"] = sums["ratio"] / sums["decisions"]
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return figures


def learn(steps: int, items_per_step: int, seed: int = 0, learning_rate: float = 3e-4) -> list[float]:
    """Trains the tiny Janus; returns the mean reward of every step."""
    policy = load_policy(PolicyConfig("assets/tiny-janus", frozen=LANGUAGE_MODEL_ONLY))
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    scenario, rewards = find(SCENARIO), load_rewards(REWARDS)
    items = WorldItems("train", "mixed", REPLY_FORMAT, seed, 100_000)
    scenario.require(policy, items[0])
    means: list[float] = []
    for step in range(1, steps + 1):
        chosen = [items[i] for i in random.Random(f"{seed}:{step}").sample(range(len(items)), items_per_step)]
        rolled = roll_out(policy, scenario, chosen, HOW, Seeds(seed, step), chunk=items_per_step)
        judge(rolled, rewards, policy)
        weigh(rolled, REWARDS)
        advantages, spread = advantages_of([t.reward for t in rolled], group_rows(rolled), COMPARED)
        figures = update(policy, optimizer, rolled, advantages)
        means.append(spread["mean"])
        told = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        print(f"step {step:3d}: reward {spread['mean']:.3f} of {sum(REWARDS.values()):g}, {told}", flush=True)
    return means


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GRPO on the bundled tiny Janus, without the trainer")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--items", type=int, default=12, help="items of a step, each with a group of 8")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    learn(options.steps, options.items, options.seed)
