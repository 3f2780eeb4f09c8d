"""Rules between the sections of a run; what a section is made of it checks itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unison.config.data import is_prompts
from unison.config.fields import require
from unison.config.learning import COMPARISONS

if TYPE_CHECKING:
    from unison.config.run import RunConfig


def check_together(config: RunConfig) -> None:
    """Rejects sections that cannot work together, before anything is loaded.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    kind, refills, own = config.advantage.kind, config.step.refills, config.evaluation.own_drawings
    compared, group = kind in COMPARISONS, config.scenario.group_size
    rule = "at least 2: advantages compare siblings of one item"
    require(group >= 2 or not compared, "scenario.group_size", group, rule)
    require(bool(config.rewards) or kind == "constant", "rewards", config.rewards, "at least one name=coefficient")
    require(compared or not refills, "step.refills", refills, "0 where siblings are not compared")
    rule = "True with data.eval = 'prompts', whose questions are about the model's own drawings"
    require(own or not is_prompts(config.data.eval), "evaluation.own_drawings", own, rule)
    image, rule = config.scenario.image, "False with 'ode', under which siblings of one start would be the same"
    require(image.sde != "ode" or not image.shared_start, "scenario.image.shared_start", image.shared_start, rule)
    decay, rule = config.optim.ema_decay, "0 under distributed.strategy = 'fsdp2', which has no average"
    require(config.distributed.strategy == "ddp" or not decay, "optim.ema_decay", decay, rule)
    _check_objective(config)
    _check_retention(config)
    _check_split(config)


def _check_objective(config: RunConfig) -> None:
    objective, scoring, kind = config.objective, config.scoring, config.advantage.kind
    name, decay, guidance = objective.name, objective.reference_decay, config.scenario.image.guidance
    rule = "1: this run has no reference"
    require(decay == 1 or config.needs_reference, "objective.reference_decay", decay, rule)
    rule = f"'pair' with 'dpo' alone; the objective is {name!r}"
    require((kind == "pair") == (name == "dpo"), "advantage.kind", kind, rule)
    if name in ("dpo", "nft"):
        held = (objective.kl_beta, objective.image_kl_beta)
        require(not any(held), "objective.kl_beta, image_kl_beta", held, f"0 with {name!r}, which beta holds back")
    if name == "dpo":
        images, rule = config.step.micro_batch_images, "0: 'dpo' compares the two drawings of a pair"
        require(not images, "step.micro_batch_images", images, rule)
        whole, rule = objective.level == "sequence", "0: 'dpo' compares both drawings at every level of noise"
        require(whole or not scoring.rounds, "scoring.rounds", scoring.rounds, rule)
    if name == "nft":
        require(scoring.drawings == "noised", "scoring.drawings", scoring.drawings, "'noised' with 'nft'")
        rule = "1 with 'nft', which learns from what the model draws without guidance"
        require(guidance == 1, "scenario.image.guidance", guidance, rule)


def _check_retention(config: RunConfig) -> None:
    """Answers that are replayed are compared within their group, by an objective that knows tokens."""
    retention, kind, every = config.retention, config.advantage.kind, config.evaluation.every
    replayed, objective = retention.replay_items, config.objective
    rule = "'group' or 'mean' with retention.replay_items, whose answers are compared within their group"
    require(kind in ("group", "mean") or not replayed, "advantage.kind", kind, rule)
    rule = "one for tokens too with retention.replay_items"
    require(not objective.compares_states or not replayed, "objective.name", objective.name, rule)
    rule = "above 0 with retention.watch, which looks at evaluations during training"
    require(every > 0 or not retention.watch, "evaluation.every", every, rule)
    raised, rule = retention.on_fall == "raise_kl", "above 0, or objective.image_kl_beta, with retention.on_fall = {!r}"
    require(objective.has_penalty or not raised, "objective.kl_beta", objective.kl_beta, rule.format("raise_kl"))


def _check_split(config: RunConfig) -> None:
    """Siblings on several processes know of each other's rewards and of nothing else."""
    name, split = "distributed.processes_per_group", config.distributed.processes_per_group
    group = config.scenario.group_size
    require(group % split == 0, name, split, f"a divisor of scenario.group_size = {group}")
    whole = {
        "advantage.kind = 'pair'": config.advantage.kind == "pair",
        "step.refills": bool(config.step.refills),
        "reward_normalisation = 'group'": config.reward_normalisation == "group",
        "scenario.image.shared_start": config.scenario.image.shared_start,
    }
    for setting, used in whole.items():
        require(split == 1 or not used, name, split, f"1 with {setting}, which wants a group in one place")


def teams_of(config: RunConfig, processes: int) -> int:
    """How many sets of processes there are that have groups to themselves.

    Raises:
        ValueError: processes, groups or items of a step do not divide over them.
    """
    name, split = "distributed.processes_per_group", config.distributed.processes_per_group
    items, teams = config.step.items, processes // split
    require(processes % split == 0, name, split, f"a divisor of the {processes} processes")
    told = f" over {name} = {split}" if split > 1 else ""
    require(items % teams == 0, "step.items", items, f"a multiple of the {processes} processes{told}")
    return teams
