"""One scale for all rewards before their weighted sum: by the group, or by what the run has seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

EPSILON = 1e-4  # added to the standard deviation, as in the advantage


@dataclass(frozen=True)
class Moments:
    """How many values, their mean, and the sum of their squared deviations from it."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    @classmethod
    def of(cls, values: Sequence[float]) -> Moments:
        mean = math.fsum(values) / max(len(values), 1)
        return cls(len(values), mean, math.fsum((value - mean) ** 2 for value in values))

    def __or__(self, other: Moments) -> Moments:
        """Those of both sets of values together (Chan et al. 1979)."""
        count = self.count + other.count
        if not count:
            return self
        gap, share = other.mean - self.mean, other.count / count
        return Moments(count, self.mean + gap * share, self.squares + other.squares + gap**2 * self.count * share)

    def standardise(self, value: float) -> float:
        """How many standard deviations a value lies above the mean."""
        return (value - self.mean) / (math.sqrt(self.squares / max(self.count - 1, 1)) + EPSILON)


class Normaliser:
    """Standardises each reward, `none` leaving it as it is.

    `group` uses mean and standard deviation of the siblings, `running` those of all values of the run up to and with
    the present step, over all processes; these are its state. What a reward cannot judge stays None and counts nowhere.
    """

    def __init__(self, kind: Literal["none", "group", "running"]) -> None:
        self.kind = kind
        self.seen: dict[str, Moments] = {}

    def __call__(
        self, name: str, values: Sequence[float | None], groups: Mapping[str, Sequence[int]]
    ) -> list[float | None]:
        """One reward's values on a common scale.

        Args:
            name: the reward.
            values: one per trajectory, None where it cannot judge.
            groups: row numbers of the siblings of each item.
        """
        if self.kind == "none":
            return list(values)
        if self.kind == "group":
            of_group = {key: Moments.of(_known([values[row] for row in rows])) for key, rows in groups.items()}
            moments = {row: of_group[key] for key, rows in groups.items() for row in rows}
        else:
            moments = dict.fromkeys(range(len(values)), self._update(name, _known(values)))
        return [None if value is None else moments[row].standardise(value) for row, value in enumerate(values)]

    def _update(self, name: str, values: Sequence[float]) -> Moments:
        from accelerate.utils import gather_object

        total = self.seen.get(name, Moments())
        for part in gather_object([Moments.of(values)]):
            total |= part
        self.seen[name] = total
        return total

    def state_dict(self) -> dict[str, tuple[int, float, float]]:
        """What a checkpoint keeps."""
        return {name: (m.count, m.mean, m.squares) for name, m in self.seen.items()}

    def load_state_dict(self, state: Mapping[str, tuple[int, float, float]]) -> None:
        self.seen = {name: Moments(*moments) for name, moments in state.items()}


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
