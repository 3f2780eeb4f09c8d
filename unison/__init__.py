"""Unison: reinforcement learning for unified multimodal models, one policy that reads, writes and draws.

    answers.py     what a reply is asked to look like, how it is read, when it is right
    assets/        the bundled tiny models
    cli/           the command line
    config/        what a run is made of; every section checks itself
    data/          items: from where, and in what order
    evaluation/    held-out figures with intervals, suites, drift
    hub.py         a folder, a bundled model or a hub id
    objectives/    losses and advantages
    planning/      the dry run
    policies/      the families of models: sampling and scoring are the same code
    pretrain/      the bundled models from scratch
    recipes/       runs by name, and algorithms that change them
    reports/       a run's page, two checkpoints side by side
    rewards/       what judges trajectories, here or on a server
    scenarios/     programs over the policy's verbs, from items to trajectories
    training/      the loop, the experience of a step, its update, several processes
    types.py       the nouns, and a glossary
    world/         the embedded world of coloured shapes, with an exact judge

The names below are the Python interface; each is loaded when it is first used, so that `import unison` is quick.
`examples/loop.py` puts them together without the trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unison.config import RunConfig
    from unison.evaluation.held_out import evaluate
    from unison.policies import load_policy
    from unison.recipes import find as recipe
    from unison.rewards import judge, load_rewards, weigh
    from unison.scenarios.rollout import roll_out
    from unison.training.trainer import Trainer
    from unison.types import Context, Item, Sampling, Trajectory

__all__ = [
    "Context",
    "Item",
    "RunConfig",
    "Sampling",
    "Trainer",
    "Trajectory",
    "evaluate",
    "judge",
    "load_policy",
    "load_rewards",
    "recipe",
    "roll_out",
    "weigh",
]

_PLACES = {
    "RunConfig": "config",
    "Trainer": "training.trainer",
    "evaluate": "evaluation.held_out",
    "judge": "rewards",
    "load_policy": "policies",
    "load_rewards": "rewards",
    "roll_out": "scenarios.rollout",
    "weigh": "rewards",
}


def __getattr__(name: str) -> Any:
    if name == "recipe":
        return import_module("unison.recipes").find
    if name not in __all__:
        raise AttributeError(f"module 'unison' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"unison.{_PLACES.get(name, 'types')}"), name)
