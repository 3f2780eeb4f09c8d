"""The training loop: roll out, judge, take advantages within groups, update, log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from unison import scenarios
from unison.config import RunConfig, teams_of, to_json
from unison.data import open_items
from unison.evaluation.environment import describe
from unison.evaluation.held_out import GALLERY, Pictures, evaluate
from unison.evaluation.records import Evaluation, Record, deciding, joined, quality
from unison.objectives import demands, needs_reference, rolls_out_reference
from unison.policies import load_policy
from unison.policies.reference import WeightCopy
from unison.reports.page import write_report
from unison.rewards import load_rewards, require_judged
from unison.training import checkpoint, distributed, guards
from unison.training.distributed import Processes
from unison.training.experience import Experience, RewardsFailed
from unison.training.log import RunLog
from unison.training.profiling import traced
from unison.training.retention import Retention, falls
from unison.training.throughput import Throughput
from unison.training.update import Updater

WORLD_ITEMS = 100_000  # size of the world's training split, per seed


class Trainer:
    """One run in one folder. `Trainer(config).train()` starts it, `Trainer(config, resume=True)` goes on.

    Raises:
        ValueError: anything in the configuration, data or checkpoint that cannot work, before training starts.
    """

    def __init__(self, config: RunConfig, resume: bool = False, profile: int = 0) -> None:
        """`profile` steps after the first are traced into the run folder by torch's profiler."""
        self.config, self.run, self.profile = config, Path(config.out), profile
        scenario = scenarios.check(config)
        self.rewards = load_rewards(config.rewards, config.remote)
        self.measures = load_rewards(config.evaluation.rewards, config.remote)
        self.retention = Retention(config, WORLD_ITEMS)
        items = open_items(config.data.train, "train", config.data, config.seed, WORLD_ITEMS)
        require_judged(config.rewards, items, config.data.train)
        self.held_out = open_items(config.data.held_out, "eval", config.data, 0, config.evaluation.items)
        self.accelerator = distributed.start(config.distributed, config.trackers, self.run / "trackers")
        teams_of(config, self.accelerator.num_processes)
        self.processes = Processes(self.accelerator, config.distributed.processes_per_group)
        torch.manual_seed(config.seed)  # adapters are drawn from it, and all that has no seed of its own
        self.policy = load_policy(config.policy)
        scenario.require(self.policy, items[0])
        for setting, verb in demands(config).items():
            self.policy.require(verb, setting)
        for question in self.retention.questions(1)[:1]:
            scenarios.find("understanding").require(self.policy, question)
        self.weights = distributed.placed(self.policy, config.distributed.strategy, self.processes)
        if needs_reference(config):
            self.policy.keep_reference()  # not before the weights are where they belong
        moving = self.policy.keep_reference(moving=True) if config.objective.reference_decay < 1 else None
        self.update = Updater(config, self.policy, self.weights, self.processes, self.retention, moving)
        self.average = WeightCopy(self.policy.network) if config.optim.ema_decay else None
        self.followers = [(moving, config.objective.reference_decay), (self.average, config.optim.ema_decay)]
        self.experience = Experience(
            config, scenario, items, self.rewards, self.retention, self.policy, self.processes, self.clock
        )
        guard = self.update.guard if config.optim.max_norm_ratio else None  # else it decides nothing
        states = (self.update.schedule, self.experience.normaliser, self.average, guard)
        self.accelerator.register_for_checkpointing(*(state for state in states if state is not None))
        self.log = RunLog(self.run, self.accelerator, config.optim.steps, Throughput(config, self.policy))
        self.step, self.best = 0, -math.inf
        self._resume() if resume else self._start()

    # -- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Runs to the last step; returns the run folder, with its report."""
        config, experience = self.config, self.experience
        if self.step == 0:
            self.evaluate(config.evaluation.items)
            self.save()
        profile = traced(self.run, self.profile, self.processes.index)
        with self.log.progress(self.step), profile as step_is_over:
            while self.step < config.optim.steps and not self.retention.stopped:
                self.step += 1
                with self.weights.gathered(reference=rolls_out_reference(config)), self._begun_again():
                    trajectories, rewards, discarded = experience.collect(self.step)  # rolled out and judged
                    replayed, their_advantages, replay = experience.replay(self.step)
                advantages, spread = experience.advantages(trajectories)
                with self.clock("update"):
                    update = self.update([*trajectories, *replayed], [*advantages, *their_advantages], self.step)
                for copy, decay in self.followers:
                    if copy:
                        copy.follow(decay)
                spread |= {"discarded": float(discarded)}
                self.log.step(self.step, rewards, spread, update | replay, trajectories)
                self.log.apart(self.step, guards.gaps(update, config.objective))
                step_is_over()
                self._stop_if_bad()
                last = self.step == config.optim.steps
                if last or (config.evaluation.every and self.step % config.evaluation.every == 0):
                    self.evaluate(config.evaluation.items if last else config.evaluation.during_items)
                if last or self.step % config.checkpoint_every == 0:
                    self.save()
        if self.step < config.optim.steps:  # stopped
            self.evaluate(config.evaluation.items)
            self.save()
        return self.finish()

    @contextmanager
    def _begun_again(self) -> Iterator[None]:
        """Where rewards fail inside, all stop, and the run can be resumed from before the step."""
        try:
            yield
        except RewardsFailed as failed:
            self.step -= 1
            self.save()
            raise failed.error from failed.error.__cause__

    def _stop_if_bad(self) -> None:
        """
        Raises:
            RuntimeError: too many updates in a row were skipped; the run can be resumed after the last of them.
        """
        bad = self.update.bad_steps
        if bad >= guards.MOST_BAD:
            self.update.bad_steps = 0
            self.save()
            raise RuntimeError(guards.complaint(bad, self.step, str(self.run / "checkpoints" / "last")))

    # -- evaluation, checkpoints, ends -------------------------------------------------------------------------

    def evaluate(self, count: int) -> Evaluation:
        """Evaluates on the first `count` held-out items; exports the policy where it is the best so far, by what
        `evaluation.records.deciding` names of the first evaluation, on the items that all evaluations hold."""
        config = self.config
        with self.clock("evaluation"), self.weights.gathered():
            every = [self.held_out[i] for i in range(min(count, len(self.held_out)))]
            items = self.processes.share(every)
            pictures = Pictures(self.run, f"eval/{self.step:06d}", len(self.processes.share(range(GALLERY))))
            settings = (config.scenario, config.evaluation, self.step, pictures, self.measures)
            with self._exported():
                own = evaluate(self.policy, items, *settings, self.processes.share(self.retention.probe))
        result = joined(self.processes.every(own))
        self._watch(result)
        if self.processes.is_main:
            result.save(self.run / "eval")
            self.log.evaluation(self.step, result)
        self._rank(result.records, [item.id for item in every])
        return result

    def _rank(self, records: Sequence[Record], ids: Sequence[str]) -> None:
        """Exports the policy where it is the best so far, on the first of these items."""
        assert self.retention.first is not None
        names, sizes = deciding(self.retention.first.records), self.config.evaluation
        common = set(ids[: min(sizes.items, sizes.during_items) if sizes.every else sizes.items])
        if not self.step:
            self.log.deciding(names, len(common))
        value = quality([record for record in records if record["id"] in common], names)
        if self.step and value is not None and value > self.best:
            self.best = value
            self._export("best")

    def _export(self, name: str) -> None:
        """Writes the policy as a plain checkpoint."""
        with self._exported():
            policy = self.weights.exported()
            if self.processes.is_main:
                checkpoint.export(policy, self.run, name)

    def _exported(self) -> AbstractContextManager[None]:
        """Inside it the policy has the weights that are evaluated and exported."""
        return self.average.in_place() if self.average else nullcontext()

    def _watch(self, result: Evaluation) -> None:
        """Reacts where a watched figure has fallen since the first evaluation."""
        retention = self.retention
        retention.first = retention.first or result
        fallen = falls(retention.first, result, retention.config)
        self.log.fallen(self.step, fallen, retention.config.on_fall)
        retention.react(fallen)

    def save(self) -> None:
        with self.clock("checkpoint"):
            counters = {
                "bad_steps": self.update.bad_steps,
                "best": self.best,
                "batches": self.experience.batches,
                "kl_factor": self.retention.kl_factor,
            }
            checkpoint.save_state(self.weights, self.processes, self.run, self.step, counters)

    def finish(self) -> Path:
        if self.processes.is_main:
            self.log.close()
            write_report(self.run)
        self._export("final")  # last: it is what says that a run is finished
        self.accelerator.wait_for_everyone()  # the next stage of a chain starts from what was exported
        for tracker in self.accelerator.trackers:  # `end_training` would part the processes before that stage as well
            tracker.finish()
        return self.run

    def _start(self) -> None:
        if self.processes.is_main:
            self.log.clear()
            (self.run / "config.json").write_text(to_json(self.config))
            (self.run / "environment.json").write_text(json.dumps(describe(), indent=2))
        self.log.arithmetic(self.config, self.processes.count)

    def _resume(self) -> None:
        state = checkpoint.load_state(self.weights, self.run)
        self.update.resume(int(state["bad_steps"]))
        self.step, self.best = int(state["step"]), state["best"]
        self.experience.batches = int(state["batches"])
        self.retention.kl_factor = state["kl_factor"]
        self.retention.first = Evaluation.load(self.run / "eval" / "000000.json")
        if self.processes.is_main:
            self.log.rewind(self.step)

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        """Adds the time spent inside to the step's timings."""
        start = time.perf_counter()
        yield
        self.log.spent(phase, time.perf_counter() - start)
