"""Drawings judged in one call of a reward, against one call per drawing: python -m benchmarks.speed.rewards [--quick]

Prints the table and writes it between its markers in docs/benchmarks.md (not with --quick, whose figures say little).
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
import tyro
from PIL import Image, ImageDraw, ImageFont

from benchmarks import judges
from benchmarks.pages import publish
from benchmarks.speed.compare import Row, interleaved
from unison.config import PolicyConfig
from unison.data.objects import COCO
from unison.policies import load_policy
from unison.policies.base import Policy
from unison.rewards import MINILM, REWARDS, load_rewards
from unison.rewards.geneval.detect import AT_ONCE
from unison.rewards.models import BATCH
from unison.rewards.similarity import PAIRS
from unison.types import TASKS, Clause, Context, Item, RewardFn, Sampling, Tokens, Trajectory, Turn, Wanted
from unison.world.render import render
from unison.world.scene import caption, sample

HEADER = "| reward | one call, median [min, max] | a call per drawing | ratio | how |\n|---|---|---|---|---|"
SIZE = judges.JudgeSize(width=128, layers=4, image=224)
WORDS = ("open", "exit", "hello", "cafe")
PASS = f"{BATCH} in one pass"
ROW_BY_ROW = "no model, row by row"
RANDOM = "random weights"
DETECTED = f"{AT_ONCE} in one pass of a DETR of {RANDOM}"
HOW = dict.fromkeys(REWARDS, ROW_BY_ROW) | {
    "llm_judge": f"{PASS}, equal replies once, Llama of {RANDOM}",
    "llm_judge_soft": f"{PASS}, equal replies once, Llama of {RANDOM}",
    "brisque": "row by row: the package judges one picture a call",
    "ocr": "row by row: the package reads one picture a call",
    "ssim": f"{PAIRS} pairs a pass, no model",
    "mse": f"{PAIRS} pairs a pass, no model",
    "psnr": f"{PAIRS} pairs a pass, no model",
    "lpips_vgg": f"{PAIRS} pairs a pass, VGG-16",
    "lpips_alex": f"{PAIRS} pairs a pass, AlexNet",
    "matching": f"{PASS}, tiny Janus",
    "self_bertscore": f"{PASS}, captions of tiny Janus, MiniLM",
    "self_embedding": f"{PASS}, captions of tiny Janus, MiniLM",
    "blip_bertscore": f"{PASS}, captions of a BLIP of {RANDOM}, MiniLM",
    "blip_embedding": f"{PASS}, captions of a BLIP of {RANDOM}, MiniLM",
    "clip": f"{PASS}, CLIP of {RANDOM}",
    "clip_direction": f"{BATCH // 2} pairs a pass, CLIP of {RANDOM}",
    "clip_reconstruction": f"{BATCH // 2} pairs a pass, CLIP of {RANDOM}",
    "pickscore": f"{PASS}, CLIP of {RANDOM}",
    "hps": f"{PASS}, CLIP of {RANDOM}",
    "aesthetic": f"{PASS}, CLIP of {RANDOM}",
    "image_reward": f"{PASS}, BLIP of {RANDOM}",
    "geneval": f"{DETECTED}, CLIP of {RANDOM}",
    "geneval_strict": f"{DETECTED}, CLIP of {RANDOM}",
    "geneval_verdict": f"{DETECTED}, CLIP of {RANDOM}",
    "geneval_improvement": f"{DETECTED}, CLIP of {RANDOM}, first and last drawings",
}
"""How each reward goes through a batch."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """Four drawings and one repetition: does everything run?"""
    rewards: tuple[str, ...] = tuple(REWARDS)
    """Rewards by name."""
    batch: int = 64
    """Drawings of a batch."""
    threads: int = 0
    """CPU threads; 0 takes PyTorch's choice."""
    repeats: int = 3
    """Repetitions of each side, in turns."""
    cpu_time: bool = False
    """Count the seconds that the process computes, not those that pass: for a machine that others keep busy."""


def measure(options: Options, folders: dict[str, str | Path], policy: Policy) -> Iterator[Row]:
    """The rows of the table, one after another."""
    batch, repeats = (4, 1) if options.quick else (options.batch, options.repeats)
    for name in options.rewards:
        spec = judges.spec(name, folders)
        reward, rows = load_rewards([spec])[spec], drawings(name, batch)
        reward(rows[:2], policy)  # reads its weights
        clock = time.process_time if options.cpu_time else time.perf_counter
        seconds = interleaved(sides(reward, rows, policy), repeats, clock, warm_up=False)
        yield Row(f"`{name}`", seconds["together"], seconds["alone"], "", "s", HOW[name])


def sides(reward: RewardFn, rows: list[Trajectory], policy: Policy) -> dict[str, Callable[[], list[float | None]]]:
    """Both ways to the values of the rows."""
    return {
        "together": lambda: reward(rows, policy),
        "alone": lambda: [value for row in rows for value in reward([row], policy)],
    }


def drawings(reward: str, count: int) -> list[Trajectory]:
    """What the reward judges: scenes of the world at their own size for its judge, else textured pictures of 384 pixels
    that show a word which their prompt quotes."""
    rng, rows = random.Random(0), []
    answer, given = (r"\frac{1}{2}", "0.5") if reward == "math" else ("a circle", "circle")
    for i in range(count):
        description, scene = sample(rng, TASKS[i % len(TASKS)], "train")
        word, image = WORDS[i % len(WORDS)], render(scene)
        if reward.startswith("world"):
            item = Item(str(i), prompt=description.prompt, source_caption=caption(scene))
        else:
            real, image = _textured(image, word, 2 * i), _textured(image, word, 2 * i + 1)
            item = Item(
                str(i),
                prompt=f'{description.prompt} "{word}"',
                image=real,
                question="?",
                answer=answer,
                source_caption="a red circle",
                target_caption=description.prompt,
                wanted=Wanted("colors", (Clause(COCO[i % 80], 1, "red"),)),
            )
        reply = f"<think> so </think><answer> {given} </answer>"
        turns = (_written(10 + i),) if reward == "overlong" else ()
        rows.append(Trajectory(item, turns, images=(image,), texts=(reply,)))
    return rows


def _written(length: int) -> Turn:
    """A reply of so many tokens, of 16 that it may have."""
    ids = torch.arange(length)
    reply = Tokens("text", ids, ids, torch.zeros(length), torch.ones(length, dtype=torch.bool), Sampling(max_tokens=16))
    return Turn(Context(()), reply)


def _textured(image: Image.Image, word: str, seed: int) -> Image.Image:
    """A picture enlarged, with noise of the size of a few pixels and a word on it."""
    large = np.asarray(image.convert("RGB").resize((384, 384), Image.Resampling.BICUBIC), np.float32)
    noise = np.random.default_rng(seed).normal(0, 20, (96, 96)).astype(np.float32)
    grain = np.asarray(Image.fromarray(noise).resize((384, 384), Image.Resampling.BICUBIC))[..., None]
    made = Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8))
    ImageDraw.Draw(made).text((140, 330), word, fill="black", font=ImageFont.load_default(36))
    return made


def main(options: Options) -> None:
    """Measures, prints, writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    sizes = f"width {SIZE.width}, {SIZE.layers} layers and {SIZE.image} pixels for what has {RANDOM}; else as published"
    written = not options.quick and options.rewards == tuple(REWARDS)
    with tempfile.TemporaryDirectory() as folder:
        folders: dict[str, str | Path] = {**judges.build(Path(folder), SIZE), "encoder": MINILM}
        rows = measure(options, folders, load_policy(PolicyConfig("assets/tiny-janus")))
        publish("benchmarks.speed.rewards", rows, options.repeats, sizes, written=written, header=HEADER)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
