"""What a model could do before and is to keep: questions asked in evaluations or replayed in updates, and the figures
that have fallen, beyond noise, since a run's first evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unison.config import RetentionConfig, RunConfig
from unison.data import open_items, step_items
from unison.evaluation.records import Evaluation, by_task, columns_of, fields
from unison.evaluation.stats import Estimate, task_difference
from unison.objectives.advantage import advantages_of
from unison.rewards import judge, load_rewards, weigh
from unison.types import Item, Metrics, Trajectory, group_rows

REPLAY_REWARDS = {"accuracy": 1.0}
FALL = 0.05  # how far a watched figure may lie below the first evaluation's
KL_FACTOR = 2.0  # what a fall raises the coefficients of the KL divergence by, each time


@dataclass(frozen=True)
class Fall:
    """A figure that lies further below that of the first evaluation than is allowed."""

    name: str
    change: Estimate


class Retention:
    """The questions of a run that are not to be forgotten, and what has become of the figures that are watched."""

    def __init__(self, config: RunConfig, size: int) -> None:
        """`size` is that of the world's training split.

        Raises:
            ValueError: questions or rewards that do not exist.
        """
        self.config, self.run = config.retention, config
        self.first: Evaluation | None = None
        self.kl_factor, self.stopped = 1.0, False
        self.rewards = load_rewards(REPLAY_REWARDS, config.remote)
        data, replays = self.config.data, self.config.replay_items
        self.items = open_items(data.train, "train", data, config.seed, size) if replays else None
        self.probe = self._probe() if self.config.probe_items else []

    def _probe(self) -> list[Item]:
        data, count = self.config.data, self.config.probe_items
        items = open_items(data.eval, "eval", data, 0, count)
        return [items[i] for i in range(min(count, len(items)))]

    def questions(self, step: int) -> list[Item]:
        """The questions that a training step replays, over all processes."""
        if self.items is None:
            return []
        chosen = [self.items[i] for i in step_items(self.items, self.config.replay_items, step - 1, self.run.seed)]
        return [replace(item, id=f"replay-{item.id}") for item in chosen]

    def judge(self, answers: Sequence[Trajectory], policy: object) -> tuple[list[float | None], Metrics]:
        """Advantages of replayed answers, each within its group, and the means of their rewards."""
        metrics = judge(answers, self.rewards, policy)
        weigh(answers, REPLAY_REWARDS)
        rewards = [answer.reward for answer in answers]
        advantages, _ = advantages_of(rewards, group_rows(answers), self.run.advantage)
        return advantages, metrics

    def react(self, fallen: Sequence[Fall]) -> None:
        """Does what `on_fall` says."""
        if fallen and self.config.on_fall == "stop":
            self.stopped = True
        if fallen and self.config.on_fall == "raise_kl":
            self.kl_factor *= KL_FACTOR


def falls(first: Evaluation, now: Evaluation, config: RetentionConfig) -> list[Fall]:
    """The watched figures that have fallen by more than FALL, with the whole interval of the difference.

    Raises:
        ValueError: the first evaluation lacks a watched figure.
    """
    known = {name: field for name, field in fields(first.records).items() if by_task(first.records, field)}
    for name in config.watch:
        if name not in known:
            raise ValueError(f"retention.watch: evaluations have no figure {name!r}; they have {', '.join(known)}")
    changes = [Fall(name, change(first, now, known[name])) for name in config.watch]
    return [fall for fall in changes if fall.change.high < -FALL]


def change(first: Evaluation, now: Evaluation, field: str) -> Estimate:
    """How far a figure has moved on the items that have it in both evaluations: paired, mean over task types."""
    after, before = columns_of([now, first], field)
    return task_difference(before, after)
