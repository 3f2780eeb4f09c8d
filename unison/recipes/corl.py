"""CoRL (arXiv 2505.17534): drawing and answering in one group, one reward, one update."""

from __future__ import annotations

from pathlib import Path

from unison.config import (
    DataConfig,
    EvalConfig,
    GRPOConfig,
    OptimConfig,
    PolicyConfig,
    RunConfig,
    ScenarioConfig,
)
from unison.types import Sampling
from unison.world.scene import REPLY_FORMAT

LANGUAGE_MODEL_ONLY = (r"vision_model", r"\baligner", r"vqmodel", r"generation_")
"""CoRL trains the language model alone: vision encoder, VQ model, aligners, generation head and embeddings stay."""

QUESTION_SUFFIX = (
    "First reason step by step between <think> and </think>, then give only the final answer (the option letter, or "
    "1 to 3 words) between <answer> and </answer>."
)


def tiny() -> RunConfig:
    """CoRL's unified stage on the bundled tiny Janus and the embedded world: 2 CPU cores, a few minutes.

    `unison train corl/tiny`. Follows stage 1 of the paper: group advantages over pairs of a drawing and an answer,
    token mean then batch mean, no KL, language model only. Differences, all for size: the world's exact judge (partial
    credit and strict decision) stands in for the cycle and matching rewards, guidance is 1.75 in place of 5, and the
    learning rate is for 0.8 M trained parameters.
    """
    return RunConfig(
        recipe="corl/tiny",
        policy=PolicyConfig("assets/tiny-janus", frozen=LANGUAGE_MODEL_ONLY),
        data=DataConfig(questions="open_ended", question_suffix=REPLY_FORMAT),
        scenario=ScenarioConfig("unified", group_size=8, text=Sampling(max_tokens=48), image=Sampling(guidance=1.75)),
        rewards={"world": 1.0, "world_strict": 1.0, "accuracy": 0.8, "format": 0.8},
        objective=GRPOConfig(),
        optim=OptimConfig(
            steps=80, items_per_step=12, micro_batch_items=12, learning_rate=3e-4, warmup_steps=3, betas=(0.9, 0.99)
        ),
        evaluation=EvalConfig(items=600, every=20, during_items=120),
        out=Path("runs/corl-tiny"),
    )


def janus_pro_1b() -> RunConfig:
    """CoRL's unified stage on Janus-Pro-1B with the paper's numbers (one 80 GB GPU or more).

    `unison train corl/janus-pro-1b --dry-run` checks it without a download. From the paper: group 8, batch 16, learning
    rate 4e-6, no KL, lambda 0.8 on accuracy and format, guidance 5, one epoch of `mm-vl/x2x_rft_22k`. Of the paper's
    rewards accuracy and format are here; the cycle and matching rewards of the drawing are not yet.
    """
    return RunConfig(
        recipe="corl/janus-pro-1b",
        policy=PolicyConfig("deepseek-community/Janus-Pro-1B", frozen=LANGUAGE_MODEL_ONLY, compute_dtype="bfloat16"),
        data=DataConfig(train="mm-vl/x2x_rft_22k", eval="world", question_suffix=QUESTION_SUFFIX),
        scenario=ScenarioConfig("unified", group_size=8, text=Sampling(max_tokens=512), image=Sampling(guidance=5.0)),
        rewards={"accuracy": 0.8, "format": 0.8},
        optim=OptimConfig(steps=1375, items_per_step=16, micro_batch_items=1, rollout_items=2, learning_rate=4e-6),
        evaluation=EvalConfig(items=300, every=200, during_items=60, batch_size=8),
        out=Path("runs/corl-janus-pro-1b"),
        checkpoint_every=100,
    )
