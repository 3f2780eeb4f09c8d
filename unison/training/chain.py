"""A chain of runs: stages that start from one another's final checkpoints, each in a run folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from unison.config import COLD_START, Chain, RunConfig, from_json, to_json
from unison.training.checkpoint import last_state

FILE = "chain.json"


def placed(chain: Chain, out: Path) -> list[RunConfig]:
    """The configuration of every stage with its run folder, and its start, inside `out`.

    Raises:
        ValueError: a name is used twice, or a stage starts from one that does not come before it.
    """
    configs: dict[str, RunConfig] = {}
    for stage in chain:
        if stage.name in configs:
            raise ValueError(f"stage {stage.name!r} comes twice: give every stage of a chain a name of its own")
        if stage.start and stage.start not in configs:
            known = ", ".join(configs) or "none, it is the first"
            raise ValueError(f"stage {stage.name!r} starts from {stage.start!r}, which is no earlier stage ({known})")
        policy = stage.config.policy
        if stage.start:
            policy = replace(policy, path=str(out / stage.start / "checkpoints" / "final"))
        configs[stage.name] = replace(stage.config, out=out / stage.name, policy=policy)
    return list(configs.values())


def without_cold_start(chain: Chain) -> Chain:
    """The chain without its cold start; what would start from that starts from its own checkpoint.

    Raises:
        ValueError: there is none.
    """
    if COLD_START not in [stage.name for stage in chain]:
        raise ValueError(f"--skip-cold-start: the recipe has no cold start, a stage named {COLD_START!r}")
    return tuple(
        replace(stage, start="" if stage.start == COLD_START else stage.start)
        for stage in chain
        if stage.name != COLD_START
    )


def save(configs: Sequence[RunConfig], out: Path) -> None:
    """Writes chain.json, from which `unison train --resume` goes on."""
    out.mkdir(parents=True, exist_ok=True)
    (out / FILE).write_text(json.dumps([json.loads(to_json(config)) for config in configs], indent=2))


def load(out: Path) -> list[RunConfig]:
    """The stages of a chain's folder.

    Raises:
        ValueError: the file is damaged, or holds an unknown field or a value of the wrong type.
    """
    try:
        stages = json.loads((out / FILE).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{out / FILE} is not valid JSON: {error}") from error
    return [from_json(json.dumps(stage)) for stage in stages]


def run(configs: Sequence[RunConfig], train: Callable[[RunConfig, bool], object]) -> None:
    """Runs the stages in order; what is finished is left, what was cut short goes on.

    Args:
        train: trains a configuration, from its last checkpoint if the second argument is true.
    """
    for number, config in enumerate(configs, start=1):
        state = "finished" if is_finished(config.out) else "goes on" if last_state(config.out) else "starts"
        print(f"stage {number} of {len(configs)}: {config.out.name} ({config.recipe}) {state}", flush=True)
        if state != "finished":
            train(config, state == "goes on")


def is_finished(run: Path) -> bool:
    """Whether the run has exported its final checkpoint, the last thing that it does."""
    return (run / "checkpoints" / "final").is_dir()
