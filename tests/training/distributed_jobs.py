"""Runs of tiny networks for tests of several processes, `python -m torch.distributed.run distributed_jobs.py <jobs>`.

Each job is a training run; a launch does several, since starting Python is what takes time. Not a test by itself.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import zlib
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.distributed.tensor import DTensor

from unison.config import PolicyConfig, RunConfig
from unison.policies import load_policy
from unison.policies.base import Policy
from unison.recipes import corl
from unison.training import trainer as trainers
from unison.training.distributed import leave, whole_tensor
from unison.training.trainer import Trainer
from unison.types import Sampling, TextSampling, Tokens, Trajectory


@dataclass(frozen=True)
class Job:
    """One run."""

    checkpoint: str
    out: str
    strategy: str = "ddp"
    changes: dict[str, Any] = field(default_factory=dict)
    """Other settings, by dotted field with __ for the dot."""
    resume: bool = False
    stop: int = 0
    """Stop after this step, which is saved, as if the process had been interrupted."""
    fault: str = ""
    """What goes wrong on the last process at step 2: "reward", "rollout" or "killed"."""
    abstains: bool = False
    """Whether the reward cannot judge about half of the items, so that processes have unequal work."""


def configuration(job: Job) -> RunConfig:
    """Drawing and answering in every step, with a divergence from the reference and rates of two parts."""
    config = corl.tiny_unified()
    image = Sampling(guidance=2.0, rounds=3, steps=3, noisy_steps=(0,))
    config = replace(
        config,
        policy=PolicyConfig(job.checkpoint),
        scenario=replace(config.scenario, group_size=2, text=TextSampling(max_tokens=4), image=image),
        rewards={"world": 1.0},
        reward_normalisation="running",
        objective=replace(config.objective, kl_beta=0.1),
        step=replace(config.step, items=4, micro_batch_items=2),
        optim=replace(
            config.optim,
            steps=3,
            warmup_steps=0,
            learning_rate=1e-7,  # so small that no token differs by rounding, whose sign Adam's first step takes
            part_learning_rates={"norm": 1e-8},
            max_grad_norm=0.5,
        ),
        evaluation=replace(config.evaluation, items=2, during_items=2, every=0),
        distributed=replace(config.distributed, strategy=job.strategy, timeout=120.0),
        checkpoint_every=1,
        trackers=(),
        out=Path(job.out),
    )
    return changed(config, job.changes)


def changed(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    """The run with other settings, by dotted field with __ for the dot."""
    for name, value in changes.items():
        section, _, inner = name.partition("__")
        value = replace(getattr(config, section), **{inner: value}) if inner else value
        config = replace(config, **{section: value})
    return config


def liked(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """A reward that differs between siblings, which random weights rarely earn."""
    actions = [t.turns[0].action for t in trajectories]
    return [float(a.ids.float().mean() if isinstance(a, Tokens) else a.path[-1].mean()) for a in actions]


def at_times(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """The same, where it can judge."""
    judged = [zlib.crc32(t.item.id.encode()) % 2 == 0 for t in trajectories]
    return [value if able else None for value, able in zip(liked(trajectories, policy), judged, strict=True)]


def run(job: Job) -> Trainer:
    """Does a job; every step's gradient, as it is before clipping, is kept in the run's folder."""
    with mock.patch.object(trainers, "load_policy", _loaded_alone):
        trainer = Trainer(configuration(job), job.resume)
    trainer.rewards["world"] = at_times if job.abstains else liked
    _keep_gradients(trainer)
    if job.stop:
        _stop_after(trainer, job.stop)
    if job.fault and trainer.processes.index == trainer.processes.count - 1:
        _fail_at_2(trainer, job.fault)
    with suppress(KeyboardInterrupt):
        trainer.train()
    if trainer.processes.is_main:
        (trainer.run / "held.json").write_text(json.dumps(held(trainer)))
    return trainer


def _loaded_alone(config: PolicyConfig) -> Policy:
    """New weights differ between processes, unless they become the first's."""
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    return load_policy(config)


def held(trainer: Trainer) -> float:
    """What share of the trained weights, of their two moments and of the reference lies on this process."""
    assert trainer.policy._frozen_copy
    trained, reference = trainer.weights.trained.values(), trainer.policy._frozen_copy.state_dict().values()
    moments = [state[name] for state in trainer.update.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    tensors = [*trained, *moments, *reference]
    own = [x.to_local() if isinstance(x, DTensor) else x for x in tensors]
    return sum(x.numel() for x in own) / sum(x.numel() for x in tensors)


def _keep_gradients(trainer: Trainer) -> None:
    clip = trainer.weights.clip

    def kept(largest: float) -> float:
        named = trainer.weights.trained.items()
        gradients = {name: whole_tensor(p.grad).clone() for name, p in named if p.grad is not None}
        if trainer.processes.is_main:
            torch.save(gradients, trainer.run / f"gradient-{trainer.step}.pt")
        return clip(largest)

    trainer.weights.clip = kept


def _stop_after(trainer: Trainer, step: int) -> None:
    sample = trainer.experience.sample

    def stopping(step: int, known: Set[str] = frozenset()) -> list[Trajectory]:
        if trainer.step == step + 1:
            raise KeyboardInterrupt
        return sample(step, known)

    trainer.experience.sample = stopping  # type: ignore[method-assign]


def _fail_at_2(trainer: Trainer, fault: str) -> None:
    def failing(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            if trainer.step == 2 and fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if trainer.step == 2:
                raise ArithmeticError("the oracle is silent")
            return call(*args)

        return called

    if fault == "reward":
        trainer.rewards["world"] = failing(liked)
    else:
        trainer.experience.sample = failing(trainer.experience.sample)  # type: ignore[method-assign]


def write(jobs: Sequence[Job], file: Path) -> Path:
    """The jobs as a file for the launcher."""
    file.write_text(json.dumps([asdict(job) for job in jobs]))
    return file


if __name__ == "__main__":
    for fields in json.loads(Path(sys.argv[1]).read_text()):
        run(Job(**fields))
    leave()
