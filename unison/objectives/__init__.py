"""Objectives: pure functions from a batch of turns to a loss and its metrics, and what they ask of a run.

    base.py       what an objective is and asks for
    advantage.py  rewards of groups become advantages
    grpo.py       clipped policy gradient; how decisions share the loss of a step
    dpo.py        the best of a group is preferred to the worst
    nft.py        good and bad drawings are contrasted on the forward process
    sft.py        negative log-likelihood of given decisions

To add one: a file with a function of a batch and an `OBJECTIVE` that declares what it needs, and a line in OBJECTIVES;
a set of settings with a name is an algorithm (`recipes/algorithms.py`).
"""

from __future__ import annotations

from dataclasses import fields

from unison.config import ObjectiveConfig, RunConfig, pick, require
from unison.objectives import dpo, grpo, nft, sft
from unison.objectives.base import EVERYWHERE, Objective
from unison.types import MODALITIES, ImageSampling

OBJECTIVES: dict[str, Objective] = {
    "grpo": grpo.OBJECTIVE,
    "dpo": dpo.OBJECTIVE,
    "nft": nft.OBJECTIVE,
    "sft": sft.OBJECTIVE,
}


def find(config: ObjectiveConfig) -> Objective:
    """The objective of these settings.

    Raises:
        ValueError: unknown name.
    """
    return pick(OBJECTIVES, config.name, "objective.name")


# -- the reference ---------------------------------------------------------------------------------------------------


def needs_distance(config: ObjectiveConfig) -> bool:
    """Whether the batch holds the divergence from the reference; of settings for one modality."""
    return config.kl_beta > 0 or find(config).samples_reference


def has_penalty(config: ObjectiveConfig) -> bool:
    """Whether a divergence from the reference is a part of the loss of either modality."""
    return needs_distance(config) or needs_distance(config.of("image"))


def asks_reference(config: ObjectiveConfig) -> bool:
    """Whether an update asks the reference about what was sampled."""
    return has_penalty(config) or find(config).from_reference


def rolls_out_reference(config: RunConfig) -> bool:
    """Whether the reference takes part in rollouts."""
    return find(config.objective).samples_reference or config.scenario.asks_reference


def needs_reference(config: RunConfig) -> bool:
    """Whether the run keeps the weights that it starts from."""
    return asks_reference(config.objective) or config.scenario.asks_reference


# -- what settings ask of each other and of a model --------------------------------------------------------------------


def check(config: RunConfig, verbs: tuple[str, ...], given: bool = False) -> None:
    """Rejects settings that the objective has no meaning with, before anything is loaded.

    Args:
        verbs: what the scenario has the policy do.
        given: whether the scenario has actions trained that were given, not sampled.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    objective, name, kind = find(config.objective), config.objective.name, config.advantage.kind
    decay, rule = config.objective.reference_decay, "1: this run has no reference"
    require(decay == 1 or needs_reference(config), "objective.reference_decay", decay, rule)
    those = " or ".join(repr(n) for n, o in OBJECTIVES.items() if o.pairs)
    rule = f"'pair' with {those} alone; the objective is {name!r}"
    require((kind == "pair") == objective.pairs, "advantage.kind", kind, rule)
    those = " or ".join(repr(n) for n, o in OBJECTIVES.items() if o.imitates)
    rule = f"{those} with scenario.name = {config.scenario.name!r}, whose actions are given, not all sampled"
    require(objective.imitates or not given, "objective.name", name, rule)
    _check_read(config.objective)
    objective.check(config)
    states, retention = _compares_states(config.objective), config.retention
    rule = "one for tokens too with retention.replay_items"
    require(not states or not retention.replay_items, "objective.name", name, rule)
    _check_raised(config)
    if states and "write" in verbs:
        raise ValueError(
            f"objective.name = {name!r} at level {config.objective.level!r} compares noisy states of drawings, but "
            f"scenario.name = {config.scenario.name!r} writes: choose a scenario that draws alone, such as 't2i', or "
            "another objective"
        )


def _check_read(config: ObjectiveConfig) -> None:
    """Refuses settings that the objective does not read, so that none is without effect."""
    for field in fields(ObjectiveConfig):
        value, reads = getattr(config, field.name), (*EVERYWHERE, *find(config).reads)
        those = " and ".join(repr(name) for name, one in OBJECTIVES.items() if field.name in one.reads)
        rule = f"{field.default!r} with {config.name!r}, which has no use for it: {those} alone has"
        unused = value == field.default or not value
        require(unused or field.name in reads, f"objective.{field.name}", value, rule)


def _check_raised(config: RunConfig) -> None:
    """Refuses to raise a coefficient that is 0, or that the objective does not read."""
    raised, betas = config.retention.on_fall == "raise_kl", [config.objective.of(m).kl_beta for m in MODALITIES]
    rule = f"'report' or 'stop' with {config.objective.name!r}, which has no coefficient of a KL to raise"
    reads = "kl_beta" in find(config.objective).reads
    require(reads or not raised, "retention.on_fall", config.retention.on_fall, rule)
    rule = "above 0, or objective.image_kl_beta, with retention.on_fall = 'raise_kl'"
    require(any(betas) or not raised, "objective.kl_beta", config.objective.kl_beta, rule)


def demands(config: RunConfig) -> dict[str, str]:
    """What a policy must be able to do for the settings to have a meaning: the setting, in words, and the verb."""
    scoring, width, sde = config.scoring.drawings, config.scenario.window.width, config.scenario.image.sde
    asked = {
        f"scoring.drawings = {scoring!r}": {"rounds": "", "noised": "denoise drawings"}.get(
            scoring, "mask drawings anew"
        ),
        f"scenario.window.width = {width!r}": "denoise drawings" if width else "",
        f"scenario.image.sde = {sde!r}": "" if sde == ImageSampling().sde else "denoise drawings",
        f"objective.name = {config.objective.name!r} at level {config.objective.level!r}": (
            "denoise drawings" if _compares_states(config.objective) else ""
        ),
    }
    return {setting: verb for setting, verb in asked.items() if verb}


def _compares_states(config: ObjectiveConfig) -> bool:
    return config.level in find(config).states_at
