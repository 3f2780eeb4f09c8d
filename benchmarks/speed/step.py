"""A whole step of CoRL, Unison's trainer against `benchmarks.speed.plain`: sampling, scoring, backward pass, optimiser.

One item: a group of drawings of its prompt and a group of replies to its question about a picture, in pairs, whose
advantages train both. Neither side paints or judges: the reward is the share of even ids, which costs nothing. For
memory each side runs in a process of its own, which reports the growth of its peak resident memory over the model.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import transformers
from torch import Tensor

from benchmarks.speed.memory import peak_megabytes
from benchmarks.speed.model import MEASURED, Drawing, build_policy, picture, speak
from benchmarks.speed.plain import Plain
from benchmarks.speed.rollout import PROMPT
from benchmarks.speed.scoring import QUESTION
from unison.config import AdvantageConfig, DataConfig, OptimConfig, PolicyConfig, RunConfig, ScenarioConfig
from unison.objectives.advantage import group_advantages
from unison.policies.base import tokens_of
from unison.policies.janus.policy import Janus
from unison.policies.janus.shape import JanusShape
from unison.recipes.corl import LANGUAGE_MODEL_ONLY
from unison.training.trainer import Trainer
from unison.types import Context, Item, Sampling, Trajectory, Turn

Side = Literal["unison", "plain"]
SIDES: tuple[Side, ...] = ("unison", "plain")
ITEM = Item("one", prompt=PROMPT, question=QUESTION)


@dataclass(frozen=True)
class Problem:
    """What a step does."""

    side: int
    """A picture is `side ** 2` tokens."""
    codes: int
    group: int
    reply: int
    """Tokens of a reply, at most."""
    guidance: float
    conditional: bool
    """Score the conditional branch of drawings alone, as the CoRL authors' code does."""
    dtype: Literal["float32", "bfloat16"]
    images: int = 2
    """Drawings that Unison scores in one pass, whose activations it keeps; 0 takes all, and they are recomputed."""

    @property
    def drawing(self) -> Drawing:
        return Drawing(self.side, self.codes)

    @property
    def image(self) -> Sampling:
        return Sampling(guidance=self.guidance, score_conditional=self.conditional)

    @property
    def text(self) -> Sampling:
        return Sampling(max_tokens=self.reply)


def write_checkpoint(problem: Problem, folder: Path, shape: JanusShape = MEASURED) -> None:
    """Random weights, for `open_trainer`."""
    build_policy(shape, problem.drawing).save(folder / "checkpoint")


def open_trainer(problem: Problem, folder: Path) -> Trainer:
    """Unison's trainer on the folder's weights."""
    trainer = Trainer(
        RunConfig(
            recipe="benchmarks.speed.step",
            policy=PolicyConfig(
                str(folder / "checkpoint"),
                frozen=LANGUAGE_MODEL_ONLY,
                dtype=problem.dtype,
                recompute="never" if problem.images else "auto",
            ),
            data=DataConfig(),
            scenario=ScenarioConfig("unified", group_size=problem.group, text=problem.text, image=problem.image),
            rewards={"format": 1.0},  # never asked
            optim=OptimConfig(items_per_step=1, micro_batch_items=1, micro_batch_images=problem.images),
            out=folder / "run",
            trackers=(),
        )
    )
    assert isinstance(trainer.policy, Janus)
    speak(trainer.policy.network, trainer.policy.processor)
    return trainer


class Steps:
    """Steps of both sides on the same weights; every step has seeds of its own."""

    def __init__(self, trainer: Trainer, problem: Problem) -> None:
        assert isinstance(trainer.policy, Janus)
        self.trainer, self.policy, self.problem = trainer, trainer.policy, problem
        self.plain = Plain(self.policy, trainer.config.optim)
        self.seeds = iter(range(0, 10**9, problem.group))

    def sides(self) -> dict[str, Callable[[], object]]:
        return {
            "unison": lambda: self.update(self.roll_out()),
            "plain": lambda: self.update_plainly(*self.roll_out_plainly()),
        }

    def roll_out(self) -> list[Trajectory]:
        """A group as Unison samples it."""
        first, group = next(self.seeds), self.problem.group
        prompt, question = self._contexts()
        drawings = self.policy.draw([prompt] * group, self.problem.image, range(first, first + group))
        replies = self.policy.write([question] * group, self.problem.text, range(first, first + group))
        return [
            Trajectory(ITEM, (Turn(prompt, drawing), Turn(question, reply)))
            for drawing, reply in zip(drawings, replies, strict=True)
        ]

    def update(self, trajectories: list[Trajectory]) -> tuple[float, float]:
        """The trainer's update; the loss and the gradient's norm before clipping."""
        drawings, replies = ids_of(trajectories)
        metrics = self.trainer.update(trajectories, _advantages(drawings, replies).tolist())
        return metrics["loss"], metrics["grad_norm"]

    def roll_out_plainly(self) -> tuple[Tensor, list[Tensor]]:
        """A group as `generate` samples it."""
        torch.manual_seed(next(self.seeds))
        prompt, question = self._contexts()
        drawings = self.plain.draw(prompt, self.problem.group, self.problem.guidance)
        return drawings, self.plain.write(question, self.problem.group, self.problem.reply)

    def update_plainly(self, drawings: Tensor, replies: list[Tensor]) -> tuple[float, float]:
        """The plain update of the same group."""
        prompt, question = self._contexts()
        advantages = _advantages(drawings, replies)
        return self.plain.update(prompt, drawings, question, replies, self.problem.image, advantages)

    def _contexts(self) -> tuple[Context, Context]:
        return Context((PROMPT,)), Context((picture(self.problem.drawing), QUESTION))


def ids_of(trajectories: list[Trajectory]) -> tuple[Tensor, list[Tensor]]:
    """The drawings [G, N] and the replies, each [L], of a group."""
    drawings, replies = zip(*([tokens_of(turn.action).ids for turn in t.turns] for t in trajectories), strict=True)
    return torch.stack(drawings), list(replies)


def _advantages(drawings: Tensor, replies: list[Tensor]) -> Tensor:
    """Of the share of even ids, within the group. [G]"""
    pairs = [torch.cat(pair) for pair in zip(drawings, replies, strict=True)]
    rewards = [float((pair % 2 == 0).float().mean()) for pair in pairs]
    advantages, _ = group_advantages(rewards, {"one": range(len(rewards))}, AdvantageConfig())
    return torch.tensor(advantages, dtype=torch.float32)


# -- memory ----------------------------------------------------------------------------------------------------------


def measure_memory(side: Side, problem: Problem, threads: int, folder: Path) -> float:
    """Peak resident megabytes of one step over those of the model, in a fresh process that reads it from the folder."""
    job = json.dumps({"which": side, "threads": threads, "folder": str(folder), **asdict(problem)})
    command = [sys.executable, "-m", "benchmarks.speed.step", job]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    return json.loads(done.stdout.splitlines()[-1])


def _run(side: Side, problem: Problem, folder: Path) -> float:
    steps = Steps(open_trainer(problem, folder), problem)
    before = peak_megabytes()
    steps.sides()[side]()
    return peak_megabytes() - before


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    which, folder = job.pop("which"), Path(job.pop("folder"))
    torch.set_num_threads(job.pop("threads"))
    transformers.logging.set_verbosity_error()
    print(json.dumps(_run(which, Problem(**job), folder)))
