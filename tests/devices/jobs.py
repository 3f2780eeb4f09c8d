"""Runs of tiny networks on the CPU and on the second device: `python -m tests.devices.jobs <jobs>`.

Each job is a recipe, the algorithm that it is trained by, other settings, and the checkpoint that takes the place of
the recipe's; the folder of a job holds its run on each device. Not a test by itself.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from accelerate.state import AcceleratorState

from tests.devices import second
from tests.training.distributed_jobs import changed, liked
from unison import recipes
from unison.config import RunConfig
from unison.config.device import VARIABLE
from unison.recipes.algorithms import trained_by
from unison.training import throughput
from unison.training.trainer import Trainer
from unison.types import TextSampling


@dataclass(frozen=True)
class Job:
    """One recipe, or every stage of one, on both devices."""

    recipe: str
    checkpoint: str
    out: str
    algorithm: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    """Other settings, by dotted field with __ for the dot."""
    resumed: bool = False
    """Whether the second step is that of a run which goes on."""


def runs(job: Job) -> Iterator[RunConfig]:
    """A step or two on two items, each with two siblings."""
    recipe = recipes.find(job.recipe)()
    recipe = trained_by(recipe, job.algorithm) if job.algorithm else recipe
    for config in [recipe] if isinstance(recipe, RunConfig) else [stage.config for stage in recipe]:
        image = replace(config.scenario.image, rounds=2, steps=4, noisy_steps=config.scenario.image.noisy_steps[:2])
        group = min(2, config.scenario.group_size)
        config = replace(
            config,
            policy=replace(config.policy, path=job.checkpoint),
            scenario=replace(config.scenario, group_size=group, text=TextSampling(max_tokens=4), image=image),
            step=replace(config.step, items=2, micro_batch_items=1),
            optim=replace(config.optim, steps=2 if job.resumed else 1, warmup_steps=0),
            evaluation=replace(config.evaluation, items=2, during_items=2, every=0),
            checkpoint_every=1,
            trackers=(),
        )
        yield changed(config, job.changes)


def train(config: RunConfig, out: Path, device: str, resumed: bool) -> None:
    """One run on one device."""
    os.environ[VARIABLE] = device
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    AcceleratorState._reset_state(reset_partial_state=True)
    parts = [replace(config, out=out, optim=replace(config.optim, steps=1)), config] if resumed else [config]
    for number, part in enumerate(parts):
        trainer = Trainer(replace(part, out=out), resume=number > 0)
        assert trainer.policy.device.type == device
        trainer.rewards.update(dict.fromkeys(trainer.rewards, liked))
        trainer.train()


if __name__ == "__main__":
    throughput.SIDES.update(dict.fromkeys(("cpu", second.NAME), 64))  # how fast it multiplies is of no interest
    for fields in json.loads(Path(sys.argv[1]).read_text()):
        job = Job(**fields)
        for number, config in enumerate(runs(job)):
            for device in ("cpu", second.NAME):
                train(config, Path(job.out) / f"{number}-{device}", device, job.resumed)
