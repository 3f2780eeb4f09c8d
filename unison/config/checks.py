"""What a configuration must fulfil, checked as soon as it is made."""

from __future__ import annotations

import re
from typing import get_args

from unison.config import OptimConfig, RunConfig, ScenarioConfig, Scoring, Strategy
from unison.types import Sampling

COMPARISONS = ("group", "rloo", "pair")
"""Kinds of advantage that compare siblings."""


def check(config: RunConfig) -> None:
    """Rejects settings that cannot work, before anything is loaded.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    optim, group = config.optim, config.scenario.group_size
    if config.advantage.kind in COMPARISONS:
        _require(group >= 2, "scenario.group_size", group, "at least 2: advantages compare siblings of one item")
    if config.advantage.kind != "constant":
        _require(bool(config.rewards), "rewards", config.rewards, "at least one name=weight")
    for name in ("steps", "items_per_step", "micro_batch_items", "updates_per_rollout"):
        _require(getattr(optim, name) >= 1, f"optim.{name}", getattr(optim, name), "at least 1")
    _require(
        optim.items_per_step % optim.updates_per_rollout == 0,
        "optim.updates_per_rollout",
        optim.updates_per_rollout,
        f"a divisor of optim.items_per_step = {optim.items_per_step}",
    )
    per_update = optim.items_per_step // optim.updates_per_rollout
    _require(
        per_update % min(optim.micro_batch_items, per_update) == 0,
        "optim.micro_batch_items",
        optim.micro_batch_items,
        f"a divisor of the {per_update} items of an update",
    )
    _require(
        config.scenario.relax_temperature > 0,
        "scenario.relax_temperature",
        config.scenario.relax_temperature,
        "above 0",
    )
    _require(
        not config.scenario.asks_reference or config.scenario.name in ("self_improve", "self_sft_split"),
        "scenario.answerer",
        config.scenario.answerer,
        f"'policy' in {config.scenario.name!r}: self_improve and self_sft_split alone have replies about own drawings "
        "that are judged",
    )
    _require(
        config.data.eval != "prompts" or config.evaluation.own_drawings,
        "evaluation.own_drawings",
        config.evaluation.own_drawings,
        "True with data.eval = 'prompts', whose questions are about the model's own drawings",
    )
    _check_scoring(optim)
    _check_guards(optim)
    _check_objective(config)
    images = optim.micro_batch_images
    _require(images >= 0, "optim.micro_batch_images", images, "at least 0 (0 scores all of a micro-batch at once)")
    _require(optim.refills >= 0, "optim.refills", optim.refills, "at least 0 (0 is off)")
    compared = config.advantage.kind in COMPARISONS
    _require(compared or not optim.refills, "optim.refills", optim.refills, "0 where siblings are not compared")
    _require(config.data.streaming >= 0, "data.streaming", config.data.streaming, "at least 0 (0 is off)")
    _require(optim.learning_rate > 0, "optim.learning_rate", optim.learning_rate, "above 0")
    for pattern, rate in optim.part_learning_rates.items():
        _require(_is_regular(pattern), "optim.part_learning_rates: the name", pattern, "a regular expression")
        _require(rate > 0, f"optim.part_learning_rates[{pattern!r}]", rate, "above 0 (freeze with policy.frozen)")
    for name in ("image_clip", "image_kl_beta"):
        value = getattr(config.objective, name)
        _require(value is None or value >= 0, f"objective.{name}", value, "at least 0, or None")
    _check_denoising(config.scenario)
    _check_retention(config)
    for name, sampling in (("text", config.scenario.text), ("image", config.scenario.image)):
        check_sampling(sampling, f"scenario.{name}.")
    for name in ("timeout", "patience"):
        _require(getattr(config.remote, name) > 0, f"remote.{name}", getattr(config.remote, name), "above 0")
    for name in ("requests", "rows"):
        _require(getattr(config.remote, name) >= 1, f"remote.{name}", getattr(config.remote, name), "at least 1")
    strategy, timeout = config.distributed.strategy, config.distributed.timeout
    choices = get_args(Strategy)
    _require(strategy in choices, "distributed.strategy", strategy, f"one of {', '.join(choices)}")
    _require(timeout > 0, "distributed.timeout", timeout, "above 0")
    _check_split(config)
    averaged = strategy == "ddp" or not optim.ema_decay
    _require(
        averaged, "optim.ema_decay", optim.ema_decay, "0 under distributed.strategy = 'fsdp2', which has no average"
    )
    _require(config.checkpoint_every >= 1, "checkpoint_every", config.checkpoint_every, "at least 1")
    _require(config.peak_flops >= 0, "peak_flops", config.peak_flops, "at least 0 (0 measures it)")
    _require(config.profile >= 0, "profile", config.profile, "at least 0 (0 is off)")


def _check_split(config: RunConfig) -> None:
    """Siblings on several processes know of each other's rewards and of nothing else."""
    name, split = "distributed.processes_per_group", config.distributed.processes_per_group
    _require(split >= 1, name, split, "at least 1 (1 leaves groups whole)")
    if split == 1:
        return
    group = config.scenario.group_size
    _require(group % split == 0, name, split, f"a divisor of scenario.group_size = {group}")
    whole = {
        "advantage.kind = 'pair'": config.advantage.kind == "pair",
        "optim.refills": bool(config.optim.refills),
        "reward_normalisation = 'group'": config.reward_normalisation == "group",
        "scenario.image.shared_start": config.scenario.image.shared_start,
    }
    for setting, used in whole.items():
        _require(not used, name, split, f"1 with {setting}, which wants a group in one place")


def _check_objective(config: RunConfig) -> None:
    objective, optim, name = config.objective, config.optim, config.objective.name
    _require(objective.beta > 0, "objective.beta", objective.beta, "above 0")
    decay = objective.reference_decay
    _require(0 <= decay <= 1, "objective.reference_decay", decay, "between 0 and 1")
    _require(decay == 1 or config.needs_reference, "objective.reference_decay", decay, "1: this run has no reference")
    kind, paired = config.advantage.kind, name == "dpo"
    _require((kind == "pair") == paired, "advantage.kind", kind, f"'pair' with 'dpo' alone; the objective is {name!r}")
    if name in ("dpo", "nft"):
        held = (objective.kl_beta, objective.image_kl_beta)
        _require(not any(held), "objective.kl_beta, image_kl_beta", held, f"0 with {name!r}, which beta holds back")
    if paired:
        images = optim.micro_batch_images
        _require(not images, "optim.micro_batch_images", images, "0: 'dpo' compares the two drawings of a pair")
    if paired and objective.level == "decision":
        rounds = optim.scored_rounds
        _require(not rounds, "optim.scored_rounds", rounds, "0: 'dpo' compares both drawings at every level of noise")
    if name == "nft":
        _require(optim.scoring == "noised", "optim.scoring", optim.scoring, "'noised' with 'nft'")
        _require(
            config.scenario.image.guidance == 1,
            "scenario.image.guidance",
            config.scenario.image.guidance,
            "1 with 'nft', which learns from what the model draws without guidance",
        )


def _check_scoring(optim: OptimConfig) -> None:
    choices = get_args(Scoring)
    _require(optim.scoring in choices, "optim.scoring", optim.scoring, f"one of {', '.join(choices)}")
    _require(optim.scored_rounds >= 0, "optim.scored_rounds", optim.scored_rounds, "at least 0 (0 scores all)")
    whole, share = optim.scored_rounds == 0, optim.least_masked
    rule = f"0 with optim.scoring = {optim.scoring!r}, which scores "
    in_rounds = optim.scoring in ("rounds", "noised")
    _require(whole or in_rounds, "optim.scored_rounds", optim.scored_rounds, f"{rule}no rounds")
    _require(share == 0 or optim.scoring == "random_masks", "optim.least_masked", share, f"{rule}no random part")
    _require(0 <= share <= 1, "optim.least_masked", share, "between 0 and 1")


def _check_guards(optim: OptimConfig) -> None:
    ratio, decay = optim.max_norm_ratio, optim.ema_decay
    _require(ratio == 0 or ratio > 1, "optim.max_norm_ratio", ratio, "above 1, or 0 (0 is off)")
    _require(optim.max_bad_steps >= 1, "optim.max_bad_steps", optim.max_bad_steps, "at least 1")
    _require(0 <= decay < 1, "optim.ema_decay", decay, "at least 0 (0 is off) and below 1")
    rule = "'trained' with optim.ema_decay = 0, which keeps no average"
    _require(decay > 0 or optim.exported == "trained", "optim.exported", optim.exported, rule)


def _check_denoising(scenario: ScenarioConfig) -> None:
    image, window = scenario.image, scenario.window
    _require(image.steps >= 1, "scenario.image.steps", image.steps, "at least 1")
    _require(image.shift > 0, "scenario.image.shift", image.shift, "above 0 (1 is off)")
    most = 1.0 if image.sde == "cps" else float("inf")
    rule = f"between 0 and {most:g} for {image.sde!r}"
    _require(0 <= image.noise_level <= most, "scenario.image.noise_level", image.noise_level, rule)
    rule = "False with 'ode', under which siblings of one start would be the same"
    _require(image.sde != "ode" or not image.shared_start, "scenario.image.shared_start", image.shared_start, rule)
    known = set(range(image.steps))
    rule = f"different steps from 0 to {image.steps - 1}"
    different = len(set(image.noisy_steps)) == len(image.noisy_steps)
    _require(different and known.issuperset(image.noisy_steps), "scenario.image.noisy_steps", image.noisy_steps, rule)
    if window.kind != "given":
        rule = f"from 1 to scenario.image.steps = {image.steps}"
        _require(1 <= window.size <= image.steps, "scenario.window.size", window.size, rule)
        _require(window.every >= 1, "scenario.window.every", window.every, "at least 1")
        _require(window.stride >= 1, "scenario.window.stride", window.stride, "at least 1")


def _check_retention(config: RunConfig) -> None:
    retention, kind = config.retention, config.advantage.kind
    for name in ("probe_items", "replay_items"):
        value = getattr(retention, name)
        _require(value >= 0, f"retention.{name}", value, "at least 0 (0 is off)")
    rule = "'group' with retention.replay_items, whose answers are compared within their group"
    _require(kind == "group" or not retention.replay_items, "advantage.kind", kind, rule)
    words, rule = not config.objective.compares_states, "one for tokens too with retention.replay_items"
    _require(words or not retention.replay_items, "objective.name", config.objective.name, rule)
    rule = "above 0 with retention.watch, which looks at evaluations during training"
    _require(config.evaluation.every > 0 or not retention.watch, "evaluation.every", config.evaluation.every, rule)
    penalty = config.objective.has_penalty or retention.on_fall != "raise_kl"
    rule = "above 0, or objective.image_kl_beta, with retention.on_fall = 'raise_kl'"
    _require(penalty, "objective.kl_beta", config.objective.kl_beta, rule)
    _require(retention.kl_factor > 1, "retention.kl_factor", retention.kl_factor, "above 1")


def _is_regular(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


def check_sampling(sampling: Sampling, prefix: str = "") -> None:
    """Rejects settings that no policy can sample with.

    Args:
        prefix: what precedes the field's name where the user states it.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    _require(sampling.temperature > 0, f"{prefix}temperature", sampling.temperature, "above 0")
    _require(sampling.guidance >= 1, f"{prefix}guidance", sampling.guidance, "at least 1 (1 is off)")
    _require(sampling.rounds >= 1, f"{prefix}rounds", sampling.rounds, "at least 1")
    first = sampling.choice_temperature
    _require(first >= 0, f"{prefix}choice_temperature", first, "at least 0 (0 is off)")


def teams_of(config: RunConfig, processes: int) -> int:
    """How many sets of processes there are that have groups to themselves.

    Raises:
        ValueError: processes, groups or items of a step do not divide over them.
    """
    name, split = "distributed.processes_per_group", config.distributed.processes_per_group
    items, teams = config.optim.items_per_step, processes // split
    _require(processes % split == 0, name, split, f"a divisor of the {processes} processes")
    told = f" over {name} = {split}" if split > 1 else ""
    _require(items % teams == 0, "optim.items_per_step", items, f"a multiple of the {processes} processes{told}")
    return teams


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r}: must be {rule}")
