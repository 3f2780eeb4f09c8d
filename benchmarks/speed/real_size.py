"""A published Janus's shape with random weights through a few steps of a recipe: does it fit, and how fast is it.

    python -m benchmarks.speed.real_size corl/janus-pro-1b-unified --out runs/real-size

needs a GPU of the recipe's size and no download: the weights are random, so only times and memory mean anything. Memory
is held against the dry run's estimate of the same configuration.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unison import recipes
from unison.config import EvalConfig, RunConfig
from unison.planning.dry_run import GIB
from unison.planning.memory import estimate_memory
from unison.policies.janus.shape import PUBLISHED
from unison.pretrain.janus import CHAT_TEMPLATE, CorpusConfig, build_tokenizer
from unison.training.trainer import Trainer


@dataclass(frozen=True)
class Args:
    """Run a few steps of a recipe on random weights of its checkpoint's shape."""

    recipe: tyro.conf.Positional[str]
    """A recipe of one run on a published Janus."""
    out: Path = Path("runs/real-size")
    """Folder of the random checkpoint and the run."""
    steps: int = 2
    """Optimiser steps; the first one warms up."""
    items: int = 0
    """Items a step; 0 takes the recipe's."""
    max_tokens: int = 64
    """Longest reply: a model with random weights never stops by itself."""


def write_random_janus(config: Any, folder: Path) -> None:
    """Writes a Janus with random weights, the world's tokenizer and the real processor.

    Args:
        config: its `JanusConfig`; its image token becomes the tokenizer's.
    """
    tokenizer = build_tokenizer(CorpusConfig())
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image_placeholder>")
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        network = JanusForConditionalGeneration(config)
    network.save_pretrained(folder)
    images = JanusImageProcessorPil(size={"height": 384, "width": 384}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    # converted checkpoints turn the system prompt on, which the policy turns off again
    processor = JanusProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE, use_default_system_prompt=True)
    processor.save_pretrained(folder)


def named(recipe: str) -> RunConfig:
    """The recipe.

    Raises:
        ValueError: a chain, or on another checkpoint than a published Janus.
    """
    run = recipes.find(recipe)()
    if not isinstance(run, RunConfig) or run.policy.path not in PUBLISHED:
        raise ValueError(f"recipe {recipe!r}: must be of one run, on one of {', '.join(PUBLISHED)}")
    return run


def configured(args: Args) -> RunConfig:
    """The recipe on the random checkpoint and the embedded world, without rewards that download their judges."""
    run = named(args.recipe)
    items = args.items or run.optim.items_per_step
    return replace(
        run,
        policy=replace(run.policy, path=str(args.out / "checkpoint")),
        data=replace(run.data, train="world", eval="world"),
        scenario=replace(run.scenario, text=replace(run.scenario.text, max_tokens=args.max_tokens)),
        rewards={"world": 1.0, "accuracy": 1.0} if run.rewards else {},
        optim=replace(
            run.optim,
            steps=args.steps,
            items_per_step=items,
            micro_batch_items=min(items, run.optim.micro_batch_items),
        ),
        evaluation=EvalConfig(items=2, batch_size=2, gallery=1),
        out=args.out / "run",
        trackers=(),
        checkpoint_every=10 * args.steps,
    )


def main(args: Args) -> None:
    """Writes the weights, trains, prints seconds of each phase and memory."""
    config = configured(args)
    write_random_janus(PUBLISHED[named(args.recipe).policy.path].config(), args.out / "checkpoint")
    estimate = estimate_memory(config).peak
    trainer = Trainer(config)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trainer.train()
    lines = [json.loads(line) for line in (config.out / "timings.jsonl").read_text().splitlines()]
    print(json.dumps(lines[-1]))
    print(f"estimated {estimate / GIB:.1f} GiB")
    if torch.cuda.is_available():
        print(f"peak {torch.cuda.max_memory_allocated() / GIB:.1f} GiB allocated on {torch.cuda.get_device_name()}")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
