"""Rules between the sections of a run; what a section is made of it checks itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unison.config.data import is_prompts
from unison.config.fields import require
from unison.config.learning import COMPARISONS

if TYPE_CHECKING:
    from unison.config.policy import PolicyConfig
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
    require(own or not is_prompts(config.data.held_out), "evaluation.own_drawings", own, rule)
    image, rule = config.scenario.image, "False with 'ode', under which siblings of one start would be the same"
    require(image.sde != "ode" or not image.shared_start, "scenario.image.shared_start", image.shared_start, rule)
    decay, rule = config.optim.ema_decay, "0 under distributed.strategy = 'fsdp2', which has no average"
    require(config.distributed.strategy == "ddp" or not decay, "optim.ema_decay", decay, rule)
    _check_retention(config)
    _check_split(config)


def _check_retention(config: RunConfig) -> None:
    retention, kind, every = config.retention, config.advantage.kind, config.evaluation.every
    rule = "'group' or 'mean' with retention.replay_items, whose answers are compared within their group"
    require(kind in ("group", "mean") or not retention.replay_items, "advantage.kind", kind, rule)
    rule = "above 0 with retention.watch, which looks at evaluations during training"
    require(every > 0 or not retention.watch, "evaluation.every", every, rule)


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


def check_trained(policy: PolicyConfig) -> None:
    """Rejects training of weights that are not float32: steps smaller than half of what separates a weight from its
    neighbours are lost. A run that is only read, and evaluations, may have them.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    rule = "'float32' where weights are trained themselves: keep policy.compute_dtype 'bfloat16', or train adapters, "
    adapters = policy.lora_rank and not policy.lora_beside
    name, rest = "policy.dtype", "policy.lora_rank above 0 without policy.lora_beside"
    require(policy.dtype == "float32" or bool(adapters), name, policy.dtype, rule + rest)


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
