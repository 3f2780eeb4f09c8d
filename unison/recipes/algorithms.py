"""Algorithms by name: functions from a run to the same run trained by another algorithm.

An algorithm here is a set of settings, not a trainer: `unison train <recipe> --algorithm dapo` changes these fields of
the recipe and nothing else. Every field can still be given its own value after it, the resolved configuration says what
was done, and a resumed run knows no name. Numbers are the papers'; learning rate, group size and the number of steps
stay the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from unison import scenarios
from unison.config import AdvantageConfig, Chain, ObjectiveConfig, RunConfig, WindowConfig, pick
from unison.objectives import OBJECTIVES

DENOISING_CLIP = 1e-4
"""Clip range of ratios of denoising steps, whose log-probabilities are means over latent dimensions (Flow-GRPO)."""


# -- of tokens and denoising steps -----------------------------------------------------------------------------------


def grpo(run: RunConfig) -> RunConfig:
    """GRPO (arXiv 2402.03300): standard scores within a group, clipped ratios, mean over each action."""
    kept: dict[str, Any] = {name: getattr(run.objective, name) for name in OBJECTIVES["grpo"].reads}
    objective = replace(ObjectiveConfig(**kept), level="decision")
    scoring = run.scoring
    if scoring.drawings == "noised":
        scoring = replace(scoring, drawings="rounds")
    step = replace(run.step, refills=0)
    return replace(run, advantage=AdvantageConfig(), objective=objective, step=step, scoring=scoring)


def dr_grpo(run: RunConfig) -> RunConfig:
    """Dr. GRPO (arXiv 2503.20783): no division by the group's spread or by an action's length."""
    run = grpo(run)
    length = run.scenario.text.max_tokens
    return replace(
        run,
        advantage=AdvantageConfig("mean"),
        objective=replace(run.objective, aggregation=length),
    )


def dapo(run: RunConfig) -> RunConfig:
    """DAPO (arXiv 2503.14476): clip-higher, mean over all tokens, dynamic sampling, soft overlong punishment, no KL."""
    run = grpo(run)
    writes = "write" in scenarios.find(run.scenario.name).verbs
    return replace(
        run,
        rewards=run.rewards | ({"overlong": 1.0} if writes else {}),
        objective=replace(
            run.objective, clip_low=0.2, clip_high=0.28, kl_beta=0.0, image_kl_beta=None, aggregation="token"
        ),
        step=replace(run.step, refills=3),
    )


def gspo(run: RunConfig) -> RunConfig:
    """GSPO (arXiv 2507.18071): one ratio for a whole action, its length's root, in the authors' clip range."""
    run = grpo(run)
    return replace(run, objective=replace(run.objective, level="sequence", clip_low=3e-4, clip_high=4e-4))


def rloo(run: RunConfig) -> RunConfig:
    """RLOO (arXiv 2402.14740): reward minus the mean of the siblings', on the log-probability of the whole action."""
    run = grpo(run)
    return replace(
        run,
        advantage=AdvantageConfig("rloo"),
        objective=replace(run.objective, aggregation=1),
    )


def online_dpo(run: RunConfig) -> RunConfig:
    """Online DPO (arXiv 2305.18290; 2402.04792): the best of a group is preferred to the worst, as whole actions."""
    run = grpo(run)
    return replace(run, advantage=AdvantageConfig("pair"), objective=ObjectiveConfig("dpo", level="sequence", beta=0.1))


# -- of drawings by denoising ----------------------------------------------------------------------------------------


def mix_grpo(run: RunConfig) -> RunConfig:
    """MixGRPO (arXiv 2507.21802): noise and training in a window of 4 denoising steps that slides every 25 steps."""
    run = grpo(run)
    image = replace(run.scenario.image, sde="flow_grpo", noise_level=0.7, noisy_steps=())
    window = WindowConfig(width=min(4, image.steps), every=25)
    return replace(
        run,
        scenario=replace(run.scenario, image=image, window=window),
        objective=replace(run.objective, image_clip=DENOISING_CLIP),
    )


def dance_grpo(run: RunConfig) -> RunConfig:
    """DanceGRPO (arXiv 2505.07818): siblings start from one noise, which is injected at a constant rate; 60% of the
    denoising steps are trained, at random, without KL."""
    run = grpo(run)
    image = replace(run.scenario.image, sde="dance_grpo", noise_level=0.3, noisy_steps=(), shared_start=True)
    return replace(
        run,
        scenario=replace(run.scenario, image=image, window=WindowConfig()),
        objective=replace(run.objective, image_clip=DENOISING_CLIP, kl_beta=0.0, image_kl_beta=None),
        scoring=replace(run.scoring, rounds=max(1, round(0.6 * image.steps))),
    )


def diffusion_nft(run: RunConfig) -> RunConfig:
    """DiffusionNFT (arXiv 2509.16117): good and bad drawings contrasted on the forward process, without guidance.

    The policy that samples follows the trained one by halves, where the authors' eta rises to a half.
    """
    run = grpo(run)
    image = replace(
        run.scenario.image, sde="ode", guidance=1.0, source_guidance=1.0, noisy_steps=(), shared_start=False
    )
    objective = ObjectiveConfig("nft", beta=1.0, reference_decay=0.5)
    return replace(
        run,
        scenario=replace(run.scenario, image=image, window=WindowConfig()),
        advantage=AdvantageConfig(clamp=1.0),
        objective=objective,
        scoring=replace(run.scoring, drawings="noised"),
    )


def diffusion_dpo(run: RunConfig) -> RunConfig:
    """Diffusion-DPO (arXiv 2311.12908), online: the best drawing is preferred to the worst at every level of noise.

    beta is the authors' 5,000 with the half that their code puts before it.
    """
    run = online_dpo(run)
    return replace(
        run,
        objective=replace(run.objective, level="decision", beta=2500.0),
        scoring=replace(run.scoring, drawings="noised"),
    )


ALGORITHMS: dict[str, Callable[[RunConfig], RunConfig]] = {
    "grpo": grpo,
    "dr-grpo": dr_grpo,
    "dapo": dapo,
    "gspo": gspo,
    "rloo": rloo,
    "online-dpo": online_dpo,
    "mixgrpo": mix_grpo,
    "dancegrpo": dance_grpo,
    "diffusion-nft": diffusion_nft,
    "diffusion-dpo": diffusion_dpo,
}


def trained_by(recipe: RunConfig | Chain, name: str) -> RunConfig | Chain:
    """A recipe, or every stage of one, trained by the algorithm of that name; stages that imitate stay as they are.

    Raises:
        ValueError: unknown name, or settings of the recipe that cannot go with it.
    """
    algorithm = pick(ALGORITHMS, name, "algorithm")
    if isinstance(recipe, RunConfig):
        return algorithm(recipe)
    imitating = [scenarios.find(stage.config.scenario.name).gives for stage in recipe]
    return tuple(
        stage if imitates else replace(stage, config=algorithm(stage.config))
        for stage, imitates in zip(recipe, imitating, strict=True)
    )


def summary(name: str) -> str:
    """One line on an algorithm."""
    return (ALGORITHMS[name].__doc__ or "").strip().splitlines()[0]
