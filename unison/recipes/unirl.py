"""UniRL (arXiv 2505.23380): models that improve themselves, by what they answer about their own drawings.

No picture and no judge take part in training. The world's exact judge scores the held-out drawings of an evaluation,
and nothing else; evaluations also ask about those drawings, for the imbalance of both sides and for drift.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unison.config import (
    AdvantageConfig,
    DataConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimConfig,
    PolicyConfig,
    RunConfig,
    ScenarioConfig,
)
from unison.recipes import corl
from unison.types import Sampling

# -- the tiny Janus ----------------------------------------------------------------------------------------------------


def _tiny(name: str, scenario: str) -> RunConfig:
    run = corl.tiny_unified()
    return replace(
        run,
        recipe=f"unirl/{name}",
        data=replace(run.data, questions="open_ended"),
        scenario=replace(run.scenario, name=scenario),
        rewards={"accuracy": 1.0},
        evaluation=replace(run.evaluation, own_drawings=True),
        out=Path(f"runs/unirl-{name}"),
    )


def _supervised(run: RunConfig, advantage: AdvantageConfig) -> RunConfig:
    """SFT on as many drawings a step as the groups of GRPO hold together, each of a prompt of its own."""
    drawings = run.optim.items_per_step * run.scenario.group_size
    return replace(
        run,
        advantage=advantage,
        scenario=replace(run.scenario, group_size=1),
        objective=ObjectiveConfig(name="sft"),
        optim=replace(run.optim, items_per_step=drawings, micro_batch_items=drawings // 4),
    )


def tiny_janus_grpo() -> RunConfig:
    """UniRL's GRPO on the bundled tiny Janus and the embedded world's prompts and questions: 2 CPU cores, 3 minutes.

    From the paper: 8 drawings a prompt, one answer about each, which rewards both. The paper's questions have sentences
    for answers that state all that was asked for; the world's have a word, so the reply's thought, which names every
    object, is held against the prompt as well (`world_thought`): rewarded for the word alone, drawings got worse and
    the model agreed with itself (docs/log.md). Learning rate, steps and batch are those of `corl/tiny-unified`, no KL.
    docs/unirl.md has the figures.
    """
    return _thoughtful(_tiny("tiny-janus-grpo", "self_improve"))


def _thoughtful(run: RunConfig) -> RunConfig:
    return replace(run, rewards={"accuracy": 1.0, "world_thought": 2.0})


def tiny_janus_sft() -> RunConfig:
    """UniRL's SFT, end to end, on the tiny Janus: the true answer's loss is differentiated through the drawing.

    As many drawings a step as `unirl/tiny-janus-grpo`, one a prompt. Open in the paper and chosen here: Gumbel-softmax
    at temperature 1 on the logits that the drawing was drawn from, guided as in sampling, with noise under which the
    drawing itself wins; the target is the bare answer; a tenth of GRPO's learning rate, for at 1e-4 and above drawings
    are spoilt (docs/log.md). `scenario.image.score_conditional` takes the conditional logits alone; a higher
    `scenario.relax_temperature` lessens the share of the gradient that goes through the drawing.
    """
    run = _supervised(_tiny("tiny-janus-sft", "self_sft"), AdvantageConfig(kind="constant"))
    return _at(replace(run, rewards={}), 3e-5)


def tiny_janus_sft_split() -> RunConfig:
    """UniRL's SFT, not end to end, on the tiny Janus: true answers for answering, right drawings for drawing.

    As many drawings a step as `unirl/tiny-janus-grpo`, one a prompt. Open in the paper and chosen here: the answer's
    loss counts whatever the drawing shows, the drawing's where the model's own sampled answer about it was right, both
    as means over all drawings of the step; a third of GRPO's learning rate.
    """
    return _at(_supervised(_tiny("tiny-janus-sft-split", "self_sft_split"), AdvantageConfig(kind="reward")), 1e-4)


def _at(run: RunConfig, learning_rate: float) -> RunConfig:
    return replace(run, optim=replace(run.optim, learning_rate=learning_rate))


# -- published checkpoints ---------------------------------------------------------------------------------------------


def _published(name: str, path: str) -> RunConfig:
    return RunConfig(
        recipe=f"unirl/{name}",
        policy=PolicyConfig(path, frozen=corl.LANGUAGE_MODEL_ONLY, compute_dtype="bfloat16"),
        data=DataConfig(train="prompts", eval="world"),
        scenario=ScenarioConfig("self_improve", group_size=8, text=Sampling(max_tokens=64)),
        rewards={"accuracy_soft": 1.0},
        objective=ObjectiveConfig(kl_beta=0.2),
        optim=OptimConfig(steps=500, items_per_step=8, micro_batch_items=1, rollout_items=2, learning_rate=1e-5),
        evaluation=EvalConfig(items=300, every=100, during_items=60, batch_size=8, own_drawings=True),
        out=Path(f"runs/unirl-{name}"),
        checkpoint_every=100,
    )


def janus_pro_1b_grpo() -> RunConfig:
    """UniRL's GRPO on Janus-Pro-1B with the paper's numbers (one 80 GB GPU or more).

    From the paper: group 8, learning rate 1e-5, six categories of prompts over 160 objects; KL 0.2 from the name of a
    released checkpoint. Open there and chosen here: the language model alone is trained, 500 steps of 8 prompts, and
    free text is judged by its words' F1, where the paper asks a judge model, as `--rewards.accuracy-soft 0
    --rewards.llm-judge 1` does. `--data.excluded` with GenEval's
    evaluation_metadata.jsonl keeps its test prompts out. Only the dry run has been run.
    """
    return _published("janus-pro-1b-grpo", "deepseek-community/Janus-Pro-1B")


def janus_pro_1b_sft() -> RunConfig:
    """UniRL's SFT, end to end, on Janus-Pro-1B with the paper's numbers (one 80 GB GPU or more).

    From the paper: one drawing a prompt, learning rate 1e-5. Open there and chosen here: as `unirl/tiny-janus-sft`, but
    the extra pass takes the conditional logits alone, which is how the paper's text reads and half the cost; 64 prompts
    a step, as many drawings as GRPO's groups hold; no KL. Only the dry run has been run.
    """
    run = _published("janus-pro-1b-sft", "deepseek-community/Janus-Pro-1B")
    run = _supervised(run, AdvantageConfig(kind="constant"))
    return replace(
        run,
        scenario=replace(run.scenario, name="self_sft", image=Sampling(guidance=5.0, score_conditional=True)),
        rewards={},
        optim=replace(run.optim, micro_batch_items=2, rollout_items=16),
    )
