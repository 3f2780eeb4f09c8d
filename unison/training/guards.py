"""Which updates are not taken: of a loss or gradient that is not finite, or of a gradient out of all proportion. And
where sampling and scoring disagree by more than they may."""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import NamedTuple, get_args

from unison.config import ObjectiveConfig
from unison.types import Metrics, Modality

WINDOW, LEAST = 64, 8
MOST_BAD = 3
"""Updates skipped in a row after which a run saves its state and stops."""


class NormGuard:
    """Compares each gradient norm with the median of the last WINDOW finite ones, once LEAST of them are known.

    Norms that were refused count too, so a run whose gradients grow for good gets used to them. (Clipping by a share of
    recent norms is known from AutoClip, arXiv 2007.14469; here the update is left out instead, since after a bad batch
    the direction is no better than the length.)
    """

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self._norms: deque[float] = deque(maxlen=WINDOW)

    def is_outlier(self, norm: float) -> bool:
        """Whether a finite norm is above `ratio` times the median of those before it, and remembers it."""
        known, limit = len(self._norms) >= LEAST, self.ratio * median(self._norms or [0.0])
        if math.isfinite(norm):
            self._norms.append(norm)
        return self.ratio > 0 and known and math.isfinite(norm) and norm > limit

    def state_dict(self) -> dict[str, list[float]]:
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        self._norms = deque(state["norms"], maxlen=WINDOW)


class Gap(NamedTuple):
    """A difference of sampled and scored log-probabilities that is too large."""

    figure: str
    value: float
    bound: float


def gaps(metrics: Metrics, objective: ObjectiveConfig) -> list[Gap]:
    """The modalities whose log-probabilities are further apart, on average, than the clip lets a ratio move: by that
    much samples are of another policy than the one that is trained, before it has learnt anything."""
    found = []
    for modality in get_args(Modality):
        own = objective.of(modality)
        figure, bound = f"{modality}/sampling_difference", min(own.clip_low, own.clip_high)
        if metrics.get(figure, 0.0) > bound:
            found.append(Gap(figure, metrics[figure], bound))
    return found


def complaint(bad: int, step: int, folder: str) -> str:
    """What to tell the user where a run stops for that."""
    return (
        f"step {step}: {bad} times in a row the loss or its gradient was not finite, or the gradient too large "
        f"(optim.max_norm_ratio), and no weight was changed; the state is saved in {folder}: lower "
        "optim.learning_rate, or look at the rewards of these steps, then `unison train --resume`"
    )
