"""UniRL-Zero (arXiv 2510.17937): a language expert and a diffusion expert as one policy, in six scenarios.

A trajectory has one advantage, which trains its words and its denoising steps alike. Rewards are judged in the embedded
world for the tiny MetaQuery, by pretrained judges for the published checkpoints.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from unison.answers import QUESTION_SUFFIX, REPLY_FORMAT
from unison.config import (
    COLD_START,
    HELD_OUT,
    AdvantageConfig,
    Chain,
    DataConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimConfig,
    PolicyConfig,
    RunConfig,
    ScenarioConfig,
    Stage,
    StepConfig,
)
from unison.recipes.corl import DRAWN, EXACT
from unison.types import ImageSampling, TextSampling

EYES, LANGUAGE_MODEL, DRAWING = r"\.visual\.", r"^qwen", (r"^bridge", r"^transformer")
DRAW_QUERIES, EDIT_QUERIES, SOURCE = r"queries\.draw", r"queries\.edit", r"source_"
TRAINED = {  # by the kind of scenario, what is frozen; the paper trains what is left
    "text": (EYES, *DRAWING),
    "draw": (LANGUAGE_MODEL, EDIT_QUERIES, SOURCE),
    "edit": (LANGUAGE_MODEL, DRAW_QUERIES),
    "think": (EYES, EDIT_QUERIES, SOURCE),
    "reflect": (EYES,),
}
"""Language model alone; queries, connector and diffusion transformer alone; both. The vision tower and the autoencoder
are never trained."""

# -- the tiny MetaQuery ------------------------------------------------------------------------------------------------


def _tiny(name: str, kind: str, scenario: str, world: str, rewards: dict[str, float]) -> RunConfig:
    """`kind` is a key of TRAINED. Siblings start from one noise and differ by what the first 4 of 10 denoising steps
    inject, where a picture this small is decided; those alone are trained, so a drawing's advantage is theirs. Without
    guidance, which halves the time and leaves more to learn, and without a reference. Scenarios of several turns take
    half as many steps, for time."""
    run = RunConfig(
        recipe=f"unirl-zero/{name}",
        policy=PolicyConfig("assets/tiny-metaquery", frozen=TRAINED[kind]),
        data=DataConfig(world, world, question_suffix=REPLY_FORMAT),
        scenario=ScenarioConfig(
            scenario,
            group_size=8,
            text=TextSampling(max_tokens=64),
            image=ImageSampling(shared_start=True, noisy_steps=(0, 1, 2, 3)),
        ),
        rewards=rewards,
        advantage=AdvantageConfig(clamp=5.0),
        objective=ObjectiveConfig(image_clip=1e-4),
        step=StepConfig(items=12, micro_batch_items=6),
        optim=OptimConfig(
            steps=30 if kind in ("edit", "think", "reflect") else 60,
            learning_rate=1e-4,
            warmup_steps=3,
            betas=(0.9, 0.99),
        ),
        evaluation=EvalConfig(items=600, every=20, during_items=120, noiseless=True),
        out=Path(f"runs/unirl-zero-{name}"),
    )
    if kind in ("think", "reflect"):
        rates = {LANGUAGE_MODEL: run.optim.learning_rate / 6}  # the paper's proportion, 5e-7 to 3e-6
        run = replace(run, optim=replace(run.optim, part_learning_rates=rates))
    return run


def _measured(run: RunConfig, *names: str) -> RunConfig:
    return replace(run, evaluation=replace(run.evaluation, rewards=names))


ANSWERED = {"accuracy": 1.0, "format": 1.0}


def tiny_text() -> RunConfig:
    """UniRL-Zero's text understanding on the tiny MetaQuery: puzzles in words, the language model alone is trained."""
    return _tiny("tiny-text", "text", "understanding", "world:puzzles", ANSWERED)


def tiny_reasoning() -> RunConfig:
    """UniRL-Zero's multimodal reasoning, tiny: questions about pictures that take several steps to answer."""
    return _tiny("tiny-reasoning", "text", "understanding", "world:steps", ANSWERED)


def tiny_draw() -> RunConfig:
    """UniRL-Zero's text to image, tiny: the world's judge rewards, the language model is frozen."""
    return _tiny("tiny-draw", "draw", "t2i", "world", DRAWN)


def tiny_jpeg_compressible() -> RunConfig:
    """UniRL-Zero's check of text to image, tiny: files of drawings are to become small."""
    return _tiny_jpeg("tiny-jpeg-compressible", -1.0)


def tiny_jpeg_incompressible() -> RunConfig:
    """UniRL-Zero's check of text to image, tiny: files of drawings are to become large."""
    return _tiny_jpeg("tiny-jpeg-incompressible", 1.0)


def _jpeg(run: RunConfig) -> RunConfig:
    return _measured(run, "jpeg_kilobytes")


def _tiny_jpeg(name: str, weight: float) -> RunConfig:
    """Half as many steps as drawing for the judge: an empty picture is as small as they get."""
    run = _jpeg(_tiny(name, "draw", "t2i", "world", {"jpeg_kilobytes": weight}))
    return replace(run, optim=replace(run.optim, steps=30))


def tiny_edit() -> RunConfig:
    """UniRL-Zero's cycle edit, tiny: lambda1 to lambda3 weigh instruction, cycle and quality.

    The instruction reward is the judge's for the edit, the cycle reward its agreement of the picture that comes back
    with the one that was edited, the quality reward the share of pixels the world could be painted in. A model that
    leaves pictures alone earns the whole cycle reward: lambda1 is the paper's 4 to 1.
    """
    rewards = {"world_first": 4.0, "world_cycle": 1.0, "world_clean": 1.0}
    return _measured(_tiny("tiny-edit", "edit", "cycle_edit", "world:edits", rewards), "world_cycle", "world_clean")


def _tiny_cold_start(run: RunConfig, kind: str, scenario: str, world: str) -> RunConfig:
    """Imitation of the world's own thoughts, verdicts and pictures, of which the diffusion side alone learns."""
    return replace(
        _imitating(run, scenario, TRAINED[kind]),
        data=replace(run.data, train=world, eval=world),
        step=replace(run.step, items=48, micro_batch_items=48),
        optim=replace(run.optim, steps=60, part_learning_rates={}),
    )


def _imitating(run: RunConfig, scenario: str, frozen: tuple[str, ...]) -> RunConfig:
    """The cold start of a run: supervised, the language model frozen, for losses of text degrade it (the paper)."""
    return replace(
        run,
        policy=replace(run.policy, frozen=(LANGUAGE_MODEL, *frozen)),
        scenario=replace(run.scenario, name=scenario, group_size=1),
        rewards={},
        advantage=AdvantageConfig(kind="constant"),
        objective=ObjectiveConfig(name="sft"),
        scoring=replace(run.scoring, old_logp="sampled"),
    )


def _chain(cold_start: RunConfig, run: RunConfig) -> Chain:
    return Stage(COLD_START, cold_start), Stage("rl", run, start=COLD_START)


def tiny_think() -> Chain:
    """UniRL-Zero's thought-enhanced drawing, tiny: riddles; a cold start, then words and drawings trained together."""
    run = _tiny("tiny-think", "think", "think_then_draw", "world:riddles", DRAWN | {"format": 1.0})
    return _chain(_tiny_cold_start(run, "think", "imitate_thought", "world:riddles"), run)


def tiny_reflect() -> Chain:
    """UniRL-Zero's reflective drawing, tiny: draw, judge, correct; a cold start, then all three turns are trained.

    The last drawing, the verdict on the first and the improvement are rewarded; a right drawing that stays right counts
    as the greatest improvement. The language model learns with it, which the paper leaves open: `--policy.frozen ^qwen`
    freezes it. Held-out questions about pictures say whether it forgets how to answer.
    """
    rewards = DRAWN | {"verdict_right": 1.0, "improvement": 1.0}
    run = _tiny("tiny-reflect", "reflect", "reflect", "world", rewards)
    run = _measured(run, "world_first_strict", "verdict_right", "improvement")
    return _chain(_tiny_cold_start(run, "reflect", "imitate_reflection", "world:reflections"), run)


# -- published checkpoints ---------------------------------------------------------------------------------------------

JOINT = "Qwen/Qwen2.5-VL-3B-Instruct+Efficient-Large-Model/Sana_1600M_1024px_diffusers"
"""Joined on loading. Drawings mean nothing before the bridge between them is trained: a checkpoint whose bridge is,
in the layout that `unison join` writes, takes its place with `--policy.path <folder>`."""
GENEVAL = {"geneval": 1.0}


def _published(name: str, kind: str, scenario: str, data: DataConfig, rewards: dict[str, float]) -> RunConfig:
    """From the paper: group 8, 8 prompts a step, advantages within 5, KL 0.01 for tokens and 4e-3 for steps, steps'
    ratios within 1e-4 of 1; 10 steps at noise 0.7 and shift 3, guidance 3.5; learning rate 1e-5. Held-out drawings are
    made without noise, as in Flow-GRPO."""
    return RunConfig(
        recipe=f"unirl-zero/{name}",
        policy=PolicyConfig(JOINT, frozen=TRAINED[kind], compute_dtype="bfloat16", states_per_pass=2),
        data=data,
        scenario=ScenarioConfig(
            scenario, group_size=8, text=TextSampling(max_tokens=512), image=ImageSampling(guidance=3.5)
        ),
        rewards=rewards,
        advantage=AdvantageConfig(clamp=5.0),
        objective=ObjectiveConfig(
            clip_low=1.0,  # ratios of tokens are not clipped in the released code
            clip_high=1e3,
            kl_beta=0.01,
            image_clip=1e-4,
            image_kl_beta=4e-3,
        ),
        scoring=EXACT,
        step=StepConfig(items=8, micro_batch_items=1, rollout_items=1),
        optim=OptimConfig(steps=500, learning_rate=1e-5, modality_grad_norms=False),
        evaluation=EvalConfig(items=300, every=100, during_items=60, batch_size=8, noiseless=True),
        out=Path(f"runs/unirl-zero-{name}"),
        checkpoint_every=100,
    )


def _at(run: RunConfig, learning_rate: float, **parts: float) -> RunConfig:
    return replace(run, optim=replace(run.optim, learning_rate=learning_rate, part_learning_rates=parts))


def _written(run: RunConfig) -> RunConfig:
    return _at(run, 1e-6)  # open in the paper


def text() -> RunConfig:
    """UniRL-Zero's text understanding on Qwen2.5-VL-3B: GSM8K, right as mathematics.

    The paper leaves the learning rate open: 1e-6. Only the dry run has been run.
    """
    columns = {"question": "question", "answer": "answer"}
    data = DataConfig("openai/gsm8k:main", "openai/gsm8k:main", columns=columns, question_suffix=QUESTION_SUFFIX)
    return _written(_published("text", "text", "understanding", data, {"math": 1.0, "format": 1.0}))


def reasoning() -> RunConfig:
    """UniRL-Zero's multimodal reasoning on Qwen2.5-VL-3B: pictures with multiple-choice questions.

    The paper leaves data and learning rate open: CoRL's questions, of which each 40th is held out, and 1e-6. Only the
    dry run has been run.
    """
    data = DataConfig("mm-vl/mcot_r1_mcq_66k", HELD_OUT, question_suffix=QUESTION_SUFFIX)
    return _written(_published("reasoning", "text", "understanding", data, ANSWERED))


PROMPTS = DataConfig("coco-prompts", "coco-prompts", question_suffix=QUESTION_SUFFIX)
"""Whose nouns GenEval can judge, in training and held out."""


def draw() -> RunConfig:
    """UniRL-Zero's text to image on Qwen2.5-VL-3B and SANA-1.6B with the paper's numbers, rewarded by GenEval.

    Partial credit, as in the released code; `--rewards.clip 1` adds CLIPScore. What differs from that code, here and in
    all recipes of this family that draw:

    - The diffusion transformer is SANA 1.0's (1.6B, 1024 pixels), theirs SANA 1.5's of that size.
    - Advantages divide by the sample's standard deviation (Bessel), theirs by the population's: at group 8 theirs are
      1.07 times as large. `--algorithm` drops the clamp of 5, which no group of 8 reaches.
    - Supervised noise levels of cold starts have the schedule's time shift, theirs have none.
    - Prompts name COCO's 80 objects alone, in GenEval's categories.

    Only the dry run has been run.
    """
    return _measured(_published("draw", "draw", "t2i", PROMPTS, GENEVAL), "geneval_strict")


def jpeg_compressible() -> RunConfig:
    """UniRL-Zero's check of text to image with the paper's numbers: files of drawings are to become small.

    Differs from the released code as `unirl-zero/draw`.
    """
    return _jpeg(_published("jpeg-compressible", "draw", "t2i", PROMPTS, {"jpeg_kilobytes": -1 / 500}))


def jpeg_incompressible() -> RunConfig:
    """UniRL-Zero's check of text to image with the paper's numbers: files of drawings are to become large.

    Differs from the released code as `unirl-zero/draw`.
    """
    return _jpeg(_published("jpeg-incompressible", "draw", "t2i", PROMPTS, {"jpeg_kilobytes": 1.0}))


def edit() -> RunConfig:
    """UniRL-Zero's cycle edit with the paper's numbers, on HQ-Edit, whose edits have a way back.

    From the paper: 4 for the CLIP direction of the edit, 1 for the CLIP similarity of the picture that comes back, KL
    3e-4, guidance 3 for the text and 1 for the source. Open there: the data, and the quality term, here LAION's
    aesthetic score at weight 1. Each 40th row is held out. Differs from the released code as `unirl-zero/draw`.
    Only the dry run has been run.
    """
    columns = {
        "prompt": "edit",
        "reverse": "inverse_edit",
        "image": "input_image",
        "source_caption": "input",
        "target_caption": "output",
    }
    data = DataConfig("UCSC-VLAA/HQ-Edit", HELD_OUT, columns=columns)
    rewards = {"clip_direction": 4.0, "clip_reconstruction": 1.0, "aesthetic": 1.0}
    run = _published("edit", "edit", "cycle_edit", data, rewards)
    return _measured(
        replace(
            run,
            scenario=replace(run.scenario, image=ImageSampling(guidance=3.0)),
            objective=replace(run.objective, image_kl_beta=3e-4),
        ),
        "clip_direction",
        "clip_reconstruction",
    )


def _published_cold_start(run: RunConfig, kind: str, scenario: str, world: str) -> RunConfig:
    """10,000 examples, as in the paper; batch and rate are open there."""
    return replace(
        _imitating(run, scenario, TRAINED[kind]),
        data=DataConfig(world, run.data.held_out),
        step=replace(run.step, items=32, rollout_items=8),
        optim=replace(run.optim, steps=312, learning_rate=1e-5, part_learning_rates={}),
    )


def think() -> Chain:
    """UniRL-Zero's thought-enhanced drawing with the paper's numbers: a cold start, then both experts together.

    From the paper: at most 512 tokens of thought, learning rate 5e-7 for the language model and 3e-6 for the diffusion
    side, GenEval and format, a cold start of 10,000 examples with the language model frozen. Where the released code
    asks for an answer block alone, rewards that there is one, and draws from the text inside it, a thought is asked for
    and rewarded as well, and the whole reply conditions the drawing; the cold start's levels of noise are
    sigmoid(N(0, 1)) in the scheduler's time shift, as SANA was trained, where the released code has no shift; else this
    differs as `unirl-zero/draw`. The data of the cold start is not published: the world's riddles stand in, `--data
    coco-prompts cold-start=rows.parquet` takes yours (columns `prompt`, `qa_reply`, `real_image`). Only the dry run has
    been run.
    """
    run = _published("think", "think", "think_then_draw", PROMPTS, GENEVAL | {"format": 1.0})
    run = _measured(_at(run, 3e-6, **{LANGUAGE_MODEL: 5e-7}), "geneval_strict")
    return _chain(_published_cold_start(run, "think", "imitate_thought", "world:riddles"), run)


def reflect() -> Chain:
    """UniRL-Zero's reflective drawing: a cold start, then drawing, verdict and correction together.

    Open in the paper: what is trained and at what rates, and the rewards' formulas; here as in `unirl-zero/think`, with
    GenEval's strict decision on the first drawing as the verdict's truth. Else this differs as `unirl-zero/draw`,
    the cold start's noise as in `unirl-zero/think`. The data of the cold start is not published: the world's verdicts
    stand in, `--data coco-prompts cold-start=rows.parquet` takes yours (columns `prompt`, `real_image`, `qa_reply`,
    `target_image`). Only the dry run has been run.
    """
    rewards = GENEVAL | {"geneval_verdict": 1.0, "geneval_improvement": 1.0}
    run = _published("reflect", "reflect", "reflect", PROMPTS, rewards)
    run = _at(run, 3e-6, **{LANGUAGE_MODEL: 5e-7})
    run = _measured(run, "geneval_strict", "geneval_verdict", "geneval_improvement")
    return _chain(_published_cold_start(run, "reflect", "imitate_reflection", "world:reflections"), run)
