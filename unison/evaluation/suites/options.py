"""How suites sample, said once; each suite adds options of its own, and may take other defaults."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from unison.config.checks import check_sampling
from unison.types import Sampling


@dataclass(frozen=True, kw_only=True)
class Options(ABC):
    """What every suite has."""

    least: ClassVar[Mapping[str, float]] = dict.fromkeys(("images", "batch_size", "steps", "max_tokens"), 1)
    """The least of what a suite has of these."""

    batch_size: int = 32
    """Items drawn, edited or asked at a time; figures do not depend on it."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """How drawings, or else replies, are sampled."""

    def check(self) -> None:
        """Rejects numbers that nothing can be sampled with.

        Raises:
            ValueError: names the option, its value and the remedy.
        """
        check_sampling(self.sampling)
        for name, value in self.told(*self.least).items():
            if value < self.least[name]:
                raise ValueError(f"{name} = {value}: must be at least {self.least[name]}")

    def told(self, *names: str) -> dict[str, Any]:
        """The options of those names that the suite has, for its protocol."""
        return {name: vars(self)[name] for name in names if name in vars(self)}


@dataclass(frozen=True, kw_only=True)
class DrawOptions(Options):
    """How prompts are drawn."""

    guidance: float = 5.0
    """Guidance scale of drawings."""
    rounds: int = 18
    """Rounds of masked decoding, in models that draw by it."""
    steps: int = 10
    """Denoising steps without noise, in models that draw by flow matching."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(guidance=self.guidance, rounds=self.rounds, steps=self.steps)
