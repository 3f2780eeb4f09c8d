"""The experience of a step: what the policy makes of its items, with rewards and advantages, on all processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TypeAlias

from unison import objectives
from unison.config import RunConfig, ScenarioConfig
from unison.data import Items, step_items
from unison.objectives.advantage import advantages_of
from unison.policies.base import Policy
from unison.rewards import judge, together, weigh
from unison.rewards.normalise import Normaliser
from unison.rewards.remote.ahead import Ahead
from unison.scenarios import find
from unison.scenarios.base import Scenario
from unison.scenarios.common import Seeds, windowed
from unison.scenarios.rollout import Finished, groups_of, most_telling, roll_out, tells
from unison.training.distributed import Processes
from unison.training.retention import Retention
from unison.types import Item, Metrics, RewardFn, Trajectory, rows_by_item

Clock: TypeAlias = Callable[[str], AbstractContextManager[None]]
"""Adds the time spent inside to the timings of a phase."""


class RewardsFailed(Exception):  # noqa: N818 - said of a step, not of the program
    """A reward failed, on this process or another: all of them stop. `error` is what the user is told."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Experience:
    """What a run learns from, a step at a time."""

    def __init__(
        self,
        config: RunConfig,
        scenario: Scenario,
        items: Items,
        rewards: dict[str, RewardFn],
        retention: Retention,
        policy: Policy,
        processes: Processes,
        clock: Clock,
    ) -> None:
        self.config, self.scenario, self.items, self.retention = config, scenario, items, retention
        self.policy, self.processes, self.clock = policy, processes, clock
        self.ahead, self.normaliser = Ahead(rewards), Normaliser(config.reward_normalisation)
        self.samples_reference = objectives.find(config.objective).samples_reference
        self.batches = 0  # of items that rollouts have taken

    def collect(self, step: int) -> tuple[list[Trajectory], Metrics, int]:
        """This process's share of the step with its rewards, what these were of all that was rolled out anywhere, and
        how many groups were discarded there.

        Groups of equal rewards make room for others while `step.refills` lasts (dynamic sampling, DAPO, arXiv
        2503.14476, eq. 11); the first of them fill what is left.

        Raises:
            RewardsFailed: the step may be begun again.
        """
        drawn, measured, begun = list[Trajectory](), list[tuple[Metrics, int]](), self.batches
        share = self.config.step.items // self.processes.teams
        for refill in range(1 + self.config.step.refills):
            if refill and not self.processes.any([sum(map(tells, groups_of(drawn))) < share]):
                break
            with self.clock("rollout"):
                new = self.sample(step, {t.item.id for t in drawn})
            with self.clock("reward"):
                measured.append((self._judge(new, begun), len(new)))
            drawn += new
        kept = most_telling(groups_of(drawn), share)
        (discarded,) = self.processes.sum(len(groups_of(drawn)) - len(kept))
        return [t for group in kept for t in group], self._of_all(measured), int(discarded)

    def _of_all(self, own: list[tuple[Metrics, int]]) -> Metrics:
        """What rewards were on all processes, of figures and sizes on this one."""
        return together([part for parts in self.processes.every(own) for part in parts])

    def sample(self, step: int, known: Set[str] = frozenset()) -> list[Trajectory]:
        """This process's share of the next items, G trajectories each or its share of them, without those whose ids the
        step has already."""
        config = self.config
        indices = step_items(self.items, config.step.items, self.batches, config.seed)
        self.batches += 1
        items = [self.items[i] for i in self.processes.share_of_items(indices)]
        group = config.scenario.group_size // config.distributed.processes_per_group
        seeds = Seeds(config.seed, step, group * self.processes.place)
        settings = replace(windowed(config.scenario, seeds), group_size=group)
        new = [item for item in items if item.id not in known]
        return self._trajectories(self.scenario, new, settings, seeds, self.ahead.begin)

    def _trajectories(
        self, scenario: Scenario, items: Sequence[Item], settings: ScenarioConfig, seeds: Seeds, *finished: Finished
    ) -> list[Trajectory]:
        """G trajectories for every item, of whichever policy makes the rollouts."""
        chunk = self.config.step.rollout_items or max(len(items), 1)
        with self.policy.reference() if self.samples_reference else nullcontext():
            return roll_out(self.policy, scenario, items, settings, seeds, chunk, *finished)

    def _judge(self, trajectories: Sequence[Trajectory], begun: int) -> Metrics:
        """Sets the rewards; where one fails, on any process, the step is as if it had not begun."""
        config, rewards = self.config, self.ahead.finish()
        metrics, failure = Metrics(), None
        try:
            metrics = judge(trajectories, rewards, self.policy, config.abstain_on_error) if trajectories else metrics
        except (ValueError, RuntimeError) as error:
            failure = error
        if failures := self.processes.failures(failure):
            self.batches = begun
            number, text = next(iter(failures.items()))
            raise RewardsFailed(failure or RuntimeError(f"stopped with process {number}: {text}"))
        weigh(trajectories, config.rewards, self.normaliser)
        return metrics

    def replay(self, step: int) -> tuple[list[Trajectory], list[float | None], Metrics]:
        """Answers to this process's share of the questions that are not to be forgotten, with their advantages."""
        every = self.retention.questions(step)
        if not every:
            return [], [], {}
        questions = self.processes.share(every)
        with self.clock("rollout"):
            seeds = Seeds(self.config.seed, step)
            answers = self._trajectories(find("understanding"), questions, self.config.scenario, seeds)
        with self.clock("reward"):
            advantages, metrics = self.retention.judge(answers, self.policy)
        figures = self._of_all([(metrics, len(answers))])
        return answers, advantages, {f"replay/{name}": value for name, value in figures.items()}

    def advantages(self, trajectories: Sequence[Trajectory]) -> tuple[list[float | None], Metrics]:
        """Advantages of this process's trajectories among their siblings, wherever these are, and figures of all."""
        told = self.processes.every([(t.item.id, t.reward) for t in trajectories])
        ids, rewards = zip(*(row for part in told for row in part), strict=True)
        advantages, spread = advantages_of(rewards, rows_by_item(ids), self.config.advantage)
        first = sum(map(len, told[: self.processes.index]))
        return advantages[first : first + len(trajectories)], spread
