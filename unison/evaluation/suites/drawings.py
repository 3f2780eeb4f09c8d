"""N drawings of every prompt, for suites that judge pictures: drawn by the policy, or finished ones of a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from unison.data.rows import read_image
from unison.evaluation.suites.base import DrawOptions, Run, state_of
from unison.scenarios.common import Seeds, prompt_context
from unison.types import Item, Sampling

if TYPE_CHECKING:
    from PIL.Image import Image


GALLERY = 24  # at most so many prompts, evenly through the file, whose first drawing is kept in any case


@dataclass(frozen=True, kw_only=True)
class DrawingOptions(DrawOptions):
    """What is drawn, and how."""

    images: int = 4
    """Drawings of each prompt."""
    temperature: float = 1.0
    """Sampling temperature."""
    choice_temperature: float = 1.0
    """Noise in masked decoding's choice of positions."""
    seed: int = 0
    """Seed of all drawings."""
    batch_size: int = 16
    keep_pictures: bool = False
    """Save every drawing, in the folders that `--drawn` reads, not those of a few prompts alone."""
    drawn: bool = False
    """The checkpoint is such a folder of finished drawings, by whatever model: judge them."""

    @property
    def sampling(self) -> Sampling:
        masked = self.choice_temperature
        return replace(super().sampling, temperature=self.temperature, choice_temperature=masked, sde="ode")


class Key(NamedTuple):
    """One drawing: number of the prompt, and of the drawing among those of its prompt."""

    prompt: int
    number: int

    def __str__(self) -> str:
        """Its place in a folder as GenEval's scripts write them, without the ending."""
        return f"{self.prompt:05d}/samples/{self.number:04d}"


def share(prompts: int, count: int, process: int, processes: int) -> list[Key]:
    """The keys that one process makes: those of every `processes`-th prompt."""
    return [Key(prompt, number) for prompt in range(process, prompts, processes) for number in range(count)]


@dataclass(frozen=True)
class DrawingRun(Run):
    """An evaluation of N drawings of every prompt; a suite says how they are judged."""

    options: DrawingOptions
    items: Sequence[Item]

    def keys(self, process: int = 0, processes: int = 1) -> list[Key]:
        return share(len(self.items), self.options.images, process, processes)

    def drawn(self, keys: Sequence[Key]) -> tuple[list[Image], dict[Key, str]]:
        """The drawings of those keys, and where those that are kept lie, seen from the suite's file."""
        if self.options.drawn:
            return [self._read(key) for key in keys], {key: str(self._folder.absolute() / f"{key}.png") for key in keys}
        images = self._draw(keys)
        return images, self._kept(dict(zip(keys, images, strict=True)))

    def protocol(self) -> dict[str, Any]:
        """All that the drawings depend on, apart from the prompts.

        Raises:
            ValueError: a folder of drawings that is not there, or is of other prompts.
        """
        options, told = self.options, {"images_a_prompt": self.options.images}
        if options.drawn:
            self._check_folder()
            return {"drawings": self.job.checkpoint, "drawings_files": state_of(self._folder, "*.png")} | told
        sampled = options.told("guidance", "temperature", "rounds", "choice_temperature", "steps", "seed")
        return self.job.protocol() | sampled | told | {"pictures_kept": options.keep_pictures}

    @torch.no_grad()
    def _draw(self, keys: Sequence[Key]) -> list[Image]:
        """Drawings of the policy; each depends on the seed, the prompt's id and its own number alone."""
        policy, options = self.job.policy, self.options
        policy.require("draw", "drawing prompts")
        items = {key.prompt: self.items[key.prompt] for key in keys}
        contexts = {n: prompt_context(item) for n, item in items.items()}
        seeds = {n: Seeds(options.seed, 0).of([item], options.images, "draw") for n, item in items.items()}
        own = [seeds[key.prompt][key.number] for key in keys]
        return policy.decode(policy.draw([contexts[key.prompt] for key in keys], options.sampling, own))

    def _kept(self, images: Mapping[Key, Image]) -> dict[Key, str]:
        """Saves the drawings that are to be kept where `--drawn`, and GenEval's own scripts, find them."""
        every, files = math.ceil(len(self.items) / GALLERY), {}
        for key, image in images.items():
            if self.options.keep_pictures or (key.number == 0 and key.prompt % every == 0):
                files[key] = self.pictures.keep(str(key), image)
                note = {"tag": self.items[key.prompt].task, "prompt": self.items[key.prompt].prompt}
                _note(self.pictures.root / self.pictures.folder, key.prompt).write_text(json.dumps(note) + "\n")
        return files

    # -- finished drawings, `<prompt>/samples/<number>.png` of a folder, as GenEval's own scripts leave them --

    @property
    def _folder(self) -> Path:
        return Path(self.job.checkpoint)

    def _check_folder(self) -> None:
        """That it is there, and that its own notes of the prompts, if it has any, are the prompts."""
        if not self._folder.is_dir():
            raise ValueError(f"{str(self._folder)!r}: no such folder of drawings, {Key(0, 0)}.png and so on")
        for number, item in enumerate(self.items):
            path = _note(self._folder, number)
            told = json.loads(path.read_text())["prompt"] if path.is_file() else item.prompt
            if told != item.prompt:
                said = f"{path} is about {told!r}, but prompt {number} is {item.prompt!r}"
                raise ValueError(f"{said}: give the same prompts")

    def _read(self, key: Key) -> Image:
        try:
            return read_image(f"{key}.png", self._folder)
        except OSError as error:
            raise ValueError(f"{self._folder / str(key)}.png: no picture that can be read ({error})") from error


def _note(folder: Path, prompt: int) -> Path:
    """Where a folder of drawings says what a prompt is."""
    return folder / f"{prompt:05d}" / "metadata.jsonl"
