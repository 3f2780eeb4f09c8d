"""How the tiny models are taught: supervised steps, a log, held-out figures, small files."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unison.answers import REPLY_FORMAT
from unison.config import EvalConfig, ScenarioConfig
from unison.data.world import WorldItems
from unison.evaluation.held_out import evaluate
from unison.policies.base import Policy
from unison.pretrain.corpus import (
    CorpusConfig,
    Pair,
    answer_pair,
    drawing_pair,
)
from unison.pretrain.vq import (
    ImageTokenizerConfig,
)
from unison.types import Sampling, TextSampling


@dataclass(frozen=True)
class LanguageConfig:
    """How the language model is trained."""

    start: str = ""
    """Checkpoint to go on from; empty starts from random weights."""
    steps: int = 2000
    """Optimiser steps."""
    cycle: int = 3000
    """Length of the learning rate's cycle; stopping before its end leaves reinforcement learning more to do."""
    drawings: int = 32
    """Drawings a step."""
    answers: int = 16
    """Answers a step; they are the longer sequences."""
    learning_rate: float = 2e-3
    """Peak AdamW learning rate (one-cycle cosine)."""
    snapshot_every: int = 500
    """Steps between evaluations on held-out items, each with a saved checkpoint."""
    seed: int = 0
    """Seed of weights, corpus and order."""


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of a bundled model from scratch."""

    out: Path = Path("runs/pretrain-janus")
    """Folder of the checkpoint and of pretrain.jsonl."""
    tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    """The image tokenizer."""
    language: LanguageConfig = LanguageConfig()
    """The language model."""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    """The pretraining corpus."""


class Course(Protocol):
    """How long and how fast a model is trained; `LanguageConfig` says what the fields mean."""

    @property
    def steps(self) -> int: ...
    @property
    def cycle(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def snapshot_every(self) -> int: ...


def train_language(
    policy: Policy, config: LanguageConfig, corpus: CorpusConfig, log: Log, snapshot: Callable[[int], None]
) -> None:
    """Supervised training on drawing and answering in equal parts; `snapshot(step)` is called now and then."""
    rng = random.Random(config.seed)

    def losses() -> dict[str, Tensor]:
        made = (("draw", drawing_pair, config.drawings), ("answer", answer_pair, config.answers))
        return {name: token_mean(policy, [make(rng, corpus) for _ in range(count)]) for name, make, count in made}

    optimise(policy, config, losses, log, snapshot, "language")


def optimise(
    policy: Policy,
    config: Course,
    losses: Callable[[], dict[str, Tensor]],
    log: Log,
    snapshot: Callable[[int], None],
    stage: str,
) -> None:
    """Minimises the sum of losses over the policy's trained parameters; `snapshot(step)` is called now and then."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=max(config.cycle, config.steps),
        pct_start=0.05,
        final_div_factor=100,
    )
    for step in track(range(config.steps), stage):
        found = losses()
        optimizer.zero_grad()
        sum(found.values()).backward()  # type: ignore[union-attr]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == config.steps - 1:
            figures = {name: loss.item() for name, loss in found.items()}
            log({"stage": stage, "step": step, "grad_norm": norm.item(), **figures})
        if (step + 1) % config.snapshot_every == 0 or step == config.steps - 1:
            snapshot(step + 1)


def token_mean(policy: Policy, pairs: Sequence[Pair]) -> Tensor:
    """Negative log-likelihood per token: a mean per reply would teach bare answers ten times as hard as long ones."""
    logps = policy([p.context for p in pairs], policy.encode([p.target for p in pairs]))
    return -torch.cat(logps).mean()


class Log:
    """Appends timed lines to pretrain.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.monotonic()

    def __call__(self, line: dict[str, object]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"seconds": round(time.monotonic() - self.start), **line}) + "\n")


def once(file: Path, trained: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Weights of a trained part, from an earlier run where it got this far."""
    if not file.exists():
        save_file({name: weight.contiguous() for name, weight in trained().state_dict().items()}, file)
    return load_file(file)


def teach(policy: Policy, config: PretrainConfig, image: Sampling, held_out_items: int, log: Log) -> Path:
    """Trains a policy's language side, with figures and a saved checkpoint now and then; returns the checkpoint."""

    def snapshot(step: int) -> None:
        log({"stage": "held-out", "step": step, **held_out(policy, image, held_out_items)})
        save_small(policy, config.out / "model")

    train_language(policy, config.language, config.corpus, log, snapshot)
    return config.out / "model"


def held_out(policy: Policy, image: Sampling | None, items: int) -> dict[str, object]:
    """Figures of the model on held-out items, drawings sampled as given; of answers alone without."""
    suite = WorldItems("eval", "mixed", REPLY_FORMAT, seed=0, size=items)
    asked = [suite[i] for i in range(items)]
    if image is None:
        asked = [dataclasses.replace(item, prompt=None) for item in asked]
    scenario = ScenarioConfig(text=TextSampling(max_tokens=48), image=image or Sampling())
    result = evaluate(policy, asked, scenario, EvalConfig(items=items))
    return {name: str(estimate) for name, estimate in result.overall().items()}


def save_small(policy: Policy, folder: Path) -> None:
    """Saves the model in bfloat16, which halves the package."""
    small = copy.deepcopy(policy)
    small.network.to(torch.bfloat16)
    small.save(folder)


def image_tokenizer(
    config: PretrainConfig, build: Callable[[], Any], train: Callable[[Any, ImageTokenizerConfig, Log], None], log: Log
) -> dict[str, torch.Tensor]:
    """Weights of the trained image tokenizer, from the folder of an earlier run where it was finished."""

    def trained() -> nn.Module:
        torch.manual_seed(config.tokenizer.seed)
        tokenizer = build()
        train(tokenizer, config.tokenizer, log)
        return tokenizer

    return once(config.out / "image_tokenizer.safetensors", trained)
