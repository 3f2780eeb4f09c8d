"""N drawings of every prompt, for suites that judge pictures: drawn by the policy, or finished ones of a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from unison.config import check_sampling
from unison.data.rows import read_image
from unison.evaluation.suites.common import Job, state_of
from unison.policies.base import Policy
from unison.scenarios.common import Seeds, prompt_context
from unison.types import Item, Sampling

if TYPE_CHECKING:
    from accelerate import PartialState
    from PIL.Image import Image


GALLERY = 24  # at most so many prompts, evenly through the file, whose first drawing is kept in any case


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """What is drawn, and how."""

    images: int = 4
    """Drawings of each prompt."""
    guidance: float = 5.0
    """Guidance scale of drawings."""
    temperature: float = 1.0
    """Sampling temperature."""
    rounds: int = 18
    """Rounds of masked decoding, in models that draw by it."""
    choice_temperature: float = 1.0
    """Noise in masked decoding's choice of positions."""
    steps: int = 10
    """Denoising steps without noise, in models that draw by flow matching."""
    seed: int = 0
    """Seed of all drawings."""
    batch_size: int = 16
    """Drawings made and judged at a time."""
    keep_pictures: bool = False
    """Save every drawing, in the folders that `--drawn` reads, not those of a few prompts alone."""
    drawn: bool = False
    """The checkpoint is such a folder of finished drawings, by whatever model: judge them."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            guidance=self.guidance,
            rounds=self.rounds,
            choice_temperature=self.choice_temperature,
            steps=self.steps,
            sde="ode",
        )

    def check(self) -> None:
        """Rejects numbers that nothing can be drawn with.

        Raises:
            ValueError: names the option, its value and the remedy.
        """
        check_sampling(self.sampling)
        for name, value in (("images", self.images), ("batch_size", self.batch_size), ("steps", self.steps)):
            if value < 1:
                raise ValueError(f"{name} = {value}: must be at least 1")

    def drawings(self, job: Job, items: Sequence[Item]) -> Drawings:
        """What makes the drawings of the items, or reads them."""
        if self.drawn:
            return Finished(Path(job.checkpoint), items)
        return Drawn(job.policy, items, self.images, self.sampling, self.seed)

    def protocol(self, job: Job) -> dict[str, Any]:
        """All that the drawings depend on, apart from the prompts."""
        if self.drawn:
            folder = Path(job.checkpoint)
            state = state_of(folder, "*.png") if folder.is_dir() else ""
            return {"drawings": job.checkpoint, "drawings_files": state, "images_a_prompt": self.images}
        return job.protocol() | {
            "guidance": self.guidance,
            "temperature": self.temperature,
            "rounds": self.rounds,
            "choice_temperature": self.choice_temperature,
            "steps": self.steps,
            "seed": self.seed,
            "images_a_prompt": self.images,
            "pictures_kept": self.keep_pictures,
        }

    def keep(
        self, job: Job, suite: str, keys: Sequence[Key], images: Sequence[Image], items: Sequence[Item]
    ) -> dict[Key, str]:
        """Saves the drawings that are to be kept; returns where each one is, seen from the suite's file."""
        if self.drawn:
            return {key: str(Path(job.checkpoint).absolute() / f"{key}.png") for key in keys}
        every = math.ceil(len(items) / GALLERY)
        kept = {
            key: image
            for key, image in zip(keys, images, strict=True)
            if self.keep_pictures or (key.number == 0 and key.prompt % every == 0)
        }
        folder = job.pictures(suite)
        keep_pictures(folder, list(kept), list(kept.values()), items)
        return {key: f"{folder.name}/{key}.png" for key in kept}


class Key(NamedTuple):
    """One drawing: number of the prompt, and of the drawing among those of its prompt."""

    prompt: int
    number: int

    def __str__(self) -> str:
        """Its place in a folder as GenEval's scripts write them, without the ending."""
        return f"{self.prompt:05d}/samples/{self.number:04d}"


class Drawings(Protocol):
    """Where drawings come from."""

    def __call__(self, keys: Sequence[Key]) -> list[Image]:
        """The drawings of those keys."""
        ...


def shares(prompts: int, count: int, processes: PartialState) -> tuple[list[Key], list[Key]]:
    """All keys, and those that this process makes."""
    return share(prompts, count, 0, 1), share(prompts, count, processes.process_index, processes.num_processes)


def share(prompts: int, count: int, process: int, processes: int) -> list[Key]:
    """The keys that one process makes: those of every `processes`-th prompt."""
    return [Key(prompt, number) for prompt in range(process, prompts, processes) for number in range(count)]


class Drawn:
    """Drawings of a policy; each depends on the seed, the prompt's id and its own number alone."""

    def __init__(self, policy: Policy, items: Sequence[Item], count: int, sampling: Sampling, seed: int) -> None:
        policy.require("draw", "drawing prompts")
        self.policy, self.items, self.count, self.sampling = policy, items, count, sampling
        self.seeds = Seeds(seed, 0)

    @torch.no_grad()
    def __call__(self, keys: Sequence[Key]) -> list[Image]:
        contexts = {n: prompt_context(self.items[n]) for n in dict.fromkeys(key.prompt for key in keys)}
        seeds = {n: self.seeds.of([self.items[n]], self.count, "draw") for n in contexts}
        actions = self.policy.draw(
            [contexts[key.prompt] for key in keys], self.sampling, [seeds[key.prompt][key.number] for key in keys]
        )
        return self.policy.decode(actions)


class Finished:
    """Pictures `<prompt>/samples/<number>.png` of a folder, as GenEval's own scripts leave them."""

    def __init__(self, folder: Path, items: Sequence[Item]) -> None:
        if not folder.is_dir():
            raise ValueError(f"{str(folder)!r}: no such folder of drawings, {Key(0, 0)}.png and so on")
        self.folder = folder
        for number, item in enumerate(items):
            self._check(number, item)

    def _check(self, number: int, item: Item) -> None:
        """That the folder's own note of the prompt, if it has one, is the prompt."""
        path = self.folder / f"{number:05d}" / "metadata.jsonl"
        told = json.loads(path.read_text())["prompt"] if path.is_file() else item.prompt
        if told != item.prompt:
            raise ValueError(f"{path} is about {told!r}, but prompt {number} is {item.prompt!r}: give the same prompts")

    def __call__(self, keys: Sequence[Key]) -> list[Image]:
        return [self._read(f"{key}.png") for key in keys]

    def _read(self, name: str) -> Image:
        try:
            return read_image(name, self.folder)
        except OSError as error:
            raise ValueError(f"{self.folder / name}: no picture that can be read ({error})") from error


def keep_pictures(folder: Path, keys: Sequence[Key], images: Sequence[Image], items: Sequence[Item]) -> None:
    """Saves drawings where `Finished`, and GenEval's own scripts, find them."""
    for key, image in zip(keys, images, strict=True):
        path = folder / f"{key}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        note = {"tag": items[key.prompt].task, "prompt": items[key.prompt].prompt}
        (path.parent.parent / "metadata.jsonl").write_text(json.dumps(note) + "\n")
