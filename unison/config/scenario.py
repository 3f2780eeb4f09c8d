"""How the policy acts on an item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unison.config.fields import CountOrNone, Section, check_fields, require
from unison.types import Count, ImageSampling, Positive, TextSampling


@dataclass(frozen=True)
class WindowConfig:
    """Which denoising steps inject noise and are trained as a run goes on, while the others are deterministic and cost
    no gradient (MixGRPO, arXiv 2507.21802). One choice a step, so siblings always share it."""

    width: CountOrNone = 0
    """Neighbouring denoising steps of a window that moves through the path and then starts over; 0 takes those of
    `image.noisy_steps` throughout."""
    every: Count = 25
    """Training steps after which the window moves on by one denoising step."""


@dataclass(frozen=True)
class ScenarioConfig(Section, place="scenario"):
    """How the policy acts on an item."""

    name: str = "unified"
    """One of the scenarios listed by `unison recipes`."""
    group_size: Count = 8
    """Trajectories per item, G."""
    text: TextSampling = TextSampling()
    image: ImageSampling = ImageSampling(guidance=5.0)
    answerer: Literal["policy", "reference", "both"] = "policy"
    """Whose reply about the model's own drawing is judged: the policy's; the frozen reference's, and then drawing alone
    is trained; or of both the policy's where the reference's is right, else the reference's."""
    window: WindowConfig = WindowConfig()
    relax_temperature: Positive = 1.0
    """Gumbel-softmax temperature where a loss is differentiated through a drawing; lower is closer to one-hot."""

    def check(self) -> None:
        check_sampling(self.image, "scenario.image")
        steps, width = self.image.steps, self.window.width
        require(width <= steps, "scenario.window.width", width, f"at most scenario.image.steps = {steps}")

    @property
    def asks_reference(self) -> bool:
        """Whether the frozen reference takes part in rollouts."""
        return self.answerer != "policy"


def check_sampling(image: ImageSampling, place: str = "") -> None:
    """Rejects settings that no policy can draw with.

    Args:
        place: what precedes the field's name where the user states it.

    Raises:
        ValueError: names the field, its value and the remedy.
    """
    check_fields(image, place)
    dot = f"{place}." if place else ""
    cps = image.sde == "cps"
    require(not cps or image.noise_level <= 1, f"{dot}noise_level", image.noise_level, "between 0 and 1 for 'cps'")
    noisy, rule = image.noisy_steps, f"different steps from 0 to {image.steps - 1}"
    require(len({*noisy} & {*range(image.steps)}) == len(noisy), f"{dot}noisy_steps", noisy, rule)
