"""The training loop: roll out, score, compare within groups, update, log."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unison import scenarios
from unison.config import ObjectiveConfig, OptimConfig, RunConfig, ScenarioConfig, to_json
from unison.config.checks import teams_of
from unison.data import open_items, step_items
from unison.evaluation.environment import describe
from unison.evaluation.held_out import Evaluation, Pictures, evaluate, joined
from unison.objectives import OBJECTIVES, demands, require_states
from unison.objectives.advantage import advantages_of
from unison.objectives.grpo import Totals, decision_shares, sampling_difference, totals
from unison.policies import load_policy
from unison.policies.reference import WeightCopy
from unison.reports.page import write_report
from unison.rewards import judge, load_rewards, weigh
from unison.rewards.normalise import Normaliser
from unison.rewards.remote.ahead import Ahead
from unison.scenarios import Scenario
from unison.scenarios.common import Seeds, windowed
from unison.scenarios.rollout import Finished, groups_of, most_telling, roll_out, tells
from unison.training import checkpoint, distributed
from unison.training.distributed import Processes
from unison.training.guards import NormGuard, complaint
from unison.training.log import RunLog
from unison.training.profiling import traced
from unison.training.retention import Retention, falls
from unison.training.throughput import Throughput
from unison.types import (
    Item,
    Metrics,
    Modality,
    Selected,
    Trajectory,
    Turn,
    TurnBatch,
    group_rows,
    pad_stack,
    rows_by_item,
)

WORLD_ITEMS = 100_000  # size of the world's training split, per seed
MODALITIES: tuple[Modality, ...] = ("text", "image")


@dataclass(frozen=True)
class Sample:
    """A turn with its own advantage or its trajectory's, what is scored of its action, and the id of its item."""

    turn: Turn
    advantage: float
    selected: Selected
    item: str


class Compared(NamedTuple):
    """What the reference says of a micro-batch, as far as the objective asks."""

    anchors: list[Tensor] | None = None
    """What its divergence is measured from."""
    logps: list[Tensor] | None = None
    """Its log-probabilities."""


class Trainer:
    """One run in one folder. `Trainer(config).train()` starts it, `Trainer(config, resume=True)` goes on.

    Raises:
        ValueError: anything in the configuration, data or checkpoint that cannot work, before training starts.
    """

    def __init__(self, config: RunConfig, resume: bool = False) -> None:
        self.config, self.run = config, Path(config.out)
        self.scenario = scenarios.find(config.scenario.name)
        self.rewards = load_rewards(config.rewards, config.remote)
        self.measures = load_rewards(config.evaluation.rewards, config.remote)
        self.ahead = Ahead(self.rewards)
        self.retention = Retention(config, WORLD_ITEMS)
        self.objective = OBJECTIVES[config.objective.name]
        self.normaliser = Normaliser(config.reward_normalisation)
        self.items = open_items(config.data.train, "train", config.data, config.seed, WORLD_ITEMS)
        self.held_out = open_items(config.data.eval, "eval", config.data, 0, config.evaluation.items)
        self.accelerator = distributed.start(config.distributed, config.trackers, self.run / "trackers")
        teams_of(config, self.accelerator.num_processes)
        self.processes = Processes(self.accelerator, config.distributed.processes_per_group)
        self.policy = load_policy(config.policy)
        self.scenario.require(self.policy, self.items[0])
        for setting, verb in demands(config).items():
            self.policy.require(verb, setting)
        require_states(config, self.scenario.verbs)
        for question in self.retention.questions(1)[:1]:
            scenarios.find("understanding").require(self.policy, question)
        self.weights = distributed.placed(self.policy, config.distributed.strategy, self.processes)
        optimizer, self.schedule = build_optimizer(self.weights.trained.items(), config.optim)
        if config.needs_reference:
            self.policy.keep_reference()  # not before the weights are where they belong
        self.moving = self.policy.keep_reference(moving=True) if config.objective.reference_decay < 1 else None
        self.optimizer = self.weights.prepare(optimizer, self.moving)
        self.average = WeightCopy(self.policy.network) if config.optim.ema_decay else None
        self.guard = NormGuard(config.optim.max_norm_ratio)
        guard = self.guard if config.optim.max_norm_ratio else None  # else it decides nothing
        states = (self.schedule, self.normaliser, self.average, guard)
        self.accelerator.register_for_checkpointing(*(state for state in states if state is not None))
        self.log = RunLog(self.run, self.accelerator, config.optim.steps, Throughput(config, self.policy))
        self.step, self.bad_steps, self.best = 0, 0, -math.inf
        self.batches = 0  # of items that rollouts have taken
        self._resume() if resume else self._start()

    # -- the loop ------------------------------------------------------------------------------------------------

    def train(self) -> Path:
        """Runs to the last step; returns the run folder, with its report."""
        config = self.config
        if self.step == 0:
            self.evaluate(config.evaluation.items)
            self.save()
        profile = traced(self.run, config.profile, self.processes.index)
        with self.log.progress(self.step), profile as step_is_over:
            while self.step < config.optim.steps and not self.retention.stopped:
                self.step += 1
                with self.weights.gathered(reference=config.rolls_out_reference):
                    trajectories, reward_metrics, discarded = self.collect()
                    replayed, theirs, replay_metrics = self.replay()
                advantages, spread = self.compare(trajectories)
                with self.clock("update"):
                    update_metrics = self.update([*trajectories, *replayed], [*advantages, *theirs])
                if self.moving:
                    self.moving.follow(config.objective.reference_decay)
                if self.average:
                    self.average.follow(config.optim.ema_decay)
                spread |= {"discarded": float(discarded)}
                self.log.step(self.step, reward_metrics, spread, update_metrics | replay_metrics, trajectories)
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

    def collect(self) -> tuple[list[Trajectory], Metrics, int]:
        """This process's share of the step with its rewards, what these were of all that was rolled out, and how many
        groups were discarded.

        Groups of equal rewards make room for others while `optim.refills` lasts (dynamic sampling, DAPO, arXiv
        2503.14476, eq. 11); the first of them fill what is left.
        """
        drawn, measured, begun = list[Trajectory](), list[Metrics](), self.batches
        share = self.config.optim.items_per_step // self.processes.teams
        for refill in range(1 + self.config.optim.refills):
            if refill and not self.processes.any([sum(map(tells, groups_of(drawn))) < share]):
                break
            with self.clock("rollout"):
                new = self.roll_out({t.item.id for t in drawn})
            with self.clock("reward"):
                measured.append(self.score(new, begun))
            drawn += new
        kept = most_telling(groups_of(drawn), share)
        discarded = len(groups_of(drawn)) - len(kept)
        return [t for group in kept for t in group], _averages(measured), discarded

    def roll_out(self, known: Set[str] = frozenset()) -> list[Trajectory]:
        """This process's share of the next items, G trajectories each or its share of them, without those whose ids the
        step has already."""
        config = self.config
        indices = step_items(self.items, config.optim.items_per_step, self.batches, config.seed)
        self.batches += 1
        items = [self.items[i] for i in self.processes.share_of_items(indices)]
        items = [item for item in items if item.id not in known]
        group = config.scenario.group_size // config.distributed.processes_per_group
        seeds = Seeds(config.seed, self.step, group * self.processes.place)
        settings = replace(windowed(config.scenario, seeds), group_size=group)
        return self._roll(self.scenario, items, settings, seeds, self.ahead.begin)

    def replay(self) -> tuple[list[Trajectory], list[float | None], Metrics]:
        """Answers to this process's share of the questions that are not to be forgotten, with their advantages."""
        config, questions = self.config, self.processes.share(self.retention.questions(self.step))
        if not questions:
            return [], [], {}
        with self.clock("rollout"):
            seeds = Seeds(config.seed, self.step)
            answers = self._roll(scenarios.find("understanding"), questions, config.scenario, seeds)
        with self.clock("reward"):
            return answers, *self.retention.judge(answers, self.policy)

    def _roll(
        self, scenario: Scenario, items: Sequence[Item], settings: ScenarioConfig, seeds: Seeds, *finished: Finished
    ) -> list[Trajectory]:
        """G trajectories for every item at this step, of whichever policy makes the rollouts."""
        chunk = self.config.optim.rollout_items or max(len(items), 1)
        with self.policy.reference() if self.config.objective.samples_reference else nullcontext():
            return roll_out(self.policy, scenario, items, settings, seeds, chunk, *finished)

    def score(self, trajectories: Sequence[Trajectory], begun: int) -> Metrics:
        """Sets the rewards; where one fails, on any process, all stop, and the run can be resumed from before the step,
        which began at that batch."""
        config, rewards = self.config, self.ahead.finish()
        metrics, failure = Metrics(), None
        try:
            metrics = judge(trajectories, rewards, self.policy, config.abstain_on_error) if trajectories else metrics
        except (ValueError, RuntimeError) as error:
            failure = error
        if failures := self.processes.failures(failure):
            self.step, self.batches = self.step - 1, begun
            self.save()
            number, text = next(iter(failures.items()))
            raise failure or RuntimeError(f"stopped with process {number}: {text}")
        weigh(trajectories, config.rewards, self.normaliser)
        return metrics

    def compare(self, trajectories: Sequence[Trajectory]) -> tuple[list[float | None], Metrics]:
        """Advantages of this process's trajectories among their siblings, wherever these are, and figures of all."""
        told = self.processes.every([(t.item.id, t.reward) for t in trajectories])
        ids, rewards = zip(*(row for part in told for row in part), strict=True)
        advantages, spread = advantages_of(rewards, rows_by_item(ids), self.config.advantage)
        first = sum(map(len, told[: self.processes.index]))
        return advantages[first : first + len(trajectories)], spread

    def update(self, trajectories: Sequence[Trajectory], advantages: Sequence[float | None]) -> Metrics:
        """The optimiser steps of one rollout; groups stay whole."""
        groups = [
            self._samples(
                item,
                [
                    (turn, advantage)
                    for row in rows
                    if (advantage := advantages[row]) is not None
                    for turn in trajectories[row].turns
                ],
            )
            for item, rows in group_rows(trajectories).items()
        ]
        size = math.ceil(len(groups) / self.config.optim.updates_per_rollout)
        with self.weights.gathered():
            groups[size:] = map(self._with_old_logp, groups[size:])  # of the policy that sampled, before it is changed
        count = self.processes.most(math.ceil(len(groups) / max(size, 1)))
        rounds = [self._optimise(groups[i * size : (i + 1) * size]) for i in range(count)]
        if any(not r["skipped_step"] and not r["constant_step"] for r in rounds):
            self.schedule.step()
        return _averages(rounds)

    def _samples(self, item: str, turns: Sequence[tuple[Turn, float]]) -> list[Sample]:
        """The turns of an item's trajectories, each with its own advantage or else its trajectory's."""
        selected = self.policy.select(
            [turn.action for turn, _ in turns], self.config.optim, self.config.seed + self.step
        )
        return [
            Sample(turn, advantage if turn.advantage is None else turn.advantage, s, item)
            for (turn, advantage), s in zip(turns, selected, strict=True)
        ]

    @torch.no_grad()
    def _with_old_logp(self, group: Sequence[Sample]) -> list[Sample]:
        """A group whose surrogates know their log-probabilities under the present weights; sampling gave them none."""
        new = [s for s in group if s.selected.old_logp is None]
        logps = iter(self.policy([s.turn.context for s in new], [s.selected.action for s in new]) if new else ())
        known = [
            s.selected if s.selected.old_logp is not None else replace(s.selected, old_logp=next(logps)) for s in group
        ]
        return [replace(s, selected=k) for s, k in zip(group, known, strict=True)]

    def _optimise(self, groups: Sequence[Sequence[Sample]]) -> Metrics:
        """One optimiser step on whole groups, in micro-batches whose losses add up to the step's loss."""
        compared = self._compared(groups)
        with self.weights.gathered():
            metrics = self._accumulate(groups, compared)
            self.weights.reduce()
        informative = self.processes.any(s.advantage for g in groups for s in g) or self.config.objective.has_penalty
        return metrics | self._apply(informative, metrics["loss"])

    @torch.no_grad()
    def _compared(self, groups: Sequence[Sequence[Sample]]) -> dict[Modality, list[Compared]]:
        """What the reference says of every micro-batch, before there are gradients to hold beside it."""
        objectives = [self._objective(modality) for modality in MODALITIES]
        asked = any(o.needs_distance or o.from_reference for o in objectives)
        said = dict[Modality, list[Compared]]()
        with self.weights.gathered(reference=asked), self.policy.reference() if asked else nullcontext():
            for modality, objective in zip(MODALITIES, objectives, strict=True):
                said[modality] = [self._compare(chunk, objective) for chunk in self._micro_batches(groups, modality)]
        return said

    def _compare(self, samples: Sequence[Sample], objective: ObjectiveConfig) -> Compared:
        contexts, actions = [s.turn.context for s in samples], [s.selected.action for s in samples]
        return Compared(
            anchors=self.policy.anchors(contexts, actions) if objective.needs_distance else None,
            logps=self.policy(contexts, actions) if objective.from_reference else None,
        )

    def _accumulate(
        self, groups: Sequence[Sequence[Sample]], compared: Mapping[Modality, Sequence[Compared]]
    ) -> Metrics:
        """The gradient of this process's part of the loss, and the metrics of all."""
        metrics: Metrics = {"loss": 0.0, "skipped_step": 0.0, "constant_step": 0.0}
        before: list[Tensor] = []
        for modality in MODALITIES:
            samples = [s for group in groups for s in group if s.turn.action.modality == modality]
            own = totals([s.selected.counted for s in samples])
            total = Totals(*self.processes.sum(own.turns, own.decisions))
            if not total.decisions:
                continue
            objective = self._objective(modality)
            sums, earlier = {}, metrics["loss"]
            for chunk, said in zip(self._micro_batches(groups, modality), compared[modality], strict=True):
                batch = self._batch(chunk, modality, total, objective, said)
                loss, part = self.objective(batch, objective)
                if self.config.optim.old_logp == "recomputed":
                    part |= sampling_difference(batch, [s.turn.action.logp for s in chunk])
                if loss.requires_grad:  # decisions of frozen parts are scored for the log alone
                    self.accelerator.backward(loss)
                metrics["loss"] += float(loss.detach())
                sums = {name: sums.get(name, 0.0) + value for name, value in part.items()}
            metrics |= {f"{modality}/{name}": value for name, value in _means(self.processes.sums(sums)).items()}
            metrics |= self.processes.sums({f"{modality}/loss": metrics["loss"] - earlier})
            if self.config.optim.modality_grad_norms:
                metrics[f"{modality}/grad_norm"], before = self._norm_since(before)
        return metrics | self.processes.sums({"loss": metrics["loss"]})

    def _objective(self, modality: Modality) -> ObjectiveConfig:
        """The settings of one modality, with the weight of the KL that the run has come to."""
        objective = self.config.objective.of(modality)
        return replace(objective, kl_beta=objective.kl_beta * self.retention.kl_factor)

    def _micro_batches(self, groups: Sequence[Sequence[Sample]], modality: Modality) -> Iterator[list[Sample]]:
        optim = self.config.optim
        for start in range(0, len(groups), optim.micro_batch_items):
            some = groups[start : start + optim.micro_batch_items]
            chunk = [s for group in some for s in group if s.turn.action.modality == modality]
            size = (optim.micro_batch_images if modality == "image" else 0) or max(1, len(chunk))
            yield from (chunk[first : first + size] for first in range(0, len(chunk), size))

    def _batch(
        self, samples: Sequence[Sample], modality: Modality, total: Totals, objective: ObjectiveConfig, said: Compared
    ) -> TurnBatch:
        contexts, selected = [s.turn.context for s in samples], [s.selected for s in samples]
        share = decision_shares(pad_stack([s.counted for s in selected]), modality, total, objective)
        actions = [s.action for s in selected]
        if said.anchors is not None:
            logps, kls = zip(*self.policy(contexts, actions, said.anchors), strict=True)
            kl = pad_stack(kls)
        else:
            logps, kl = self.policy(contexts, actions), None
        logp = pad_stack(logps)
        mask = pad_stack([action.mask for action in actions]).to(logp.device)
        known = [row.detach() if s.old_logp is None else s.old_logp for s, row in zip(selected, logps, strict=True)]
        known = known if said.logps is None else said.logps
        numbers = {item: number for number, item in enumerate(dict.fromkeys(s.item for s in samples))}
        return TurnBatch(
            logp=logp,
            old_logp=pad_stack([old.to(logp.device) for old in known]),
            kl=kl,
            advantage=torch.tensor([s.advantage for s in samples], device=logp.device),
            mask=mask,
            share=(share * pad_stack([s.share for s in selected])).to(logp.device),
            group=torch.tensor([numbers[s.item] for s in samples], device=logp.device),
        )

    def _apply(self, informative: bool, loss: float) -> Metrics:
        """Clips and steps; a step whose loss or gradient is not finite, whose gradient is out of proportion, or which
        says nothing, changes no weight and is counted."""
        optim = self.config.optim
        norm = self.weights.clip(optim.max_grad_norm)
        outlier = self.guard.is_outlier(norm)
        good = math.isfinite(norm) and math.isfinite(loss) and not outlier
        self.bad_steps = 0 if good else self.bad_steps + 1
        if good and informative:
            self.optimizer.step()
        self.optimizer.zero_grad()
        return {
            "grad_norm": norm,
            "learning_rate": float(self.schedule.get_last_lr()[0]),
            "skipped_step": float(not good),
            "outlier_step": float(outlier),
            "constant_step": float(not informative),
        }

    def _stop_if_bad(self) -> None:
        """
        Raises:
            RuntimeError: too many updates in a row were skipped; the run can be resumed after the last of them.
        """
        bad = self.bad_steps
        if bad >= self.config.optim.max_bad_steps:
            self.bad_steps = 0
            self.save()
            raise RuntimeError(complaint(bad, self.step, str(self.run / "checkpoints" / "last")))

    def _norm_since(self, before: list[Tensor]) -> tuple[float, list[Tensor]]:
        """Norm of the gradient added by all processes since it was `before`, and the present one in its place, so that
        no more than one copy is ever held."""
        first = not before

        def added() -> Iterator[Tensor]:
            for number, total in enumerate(self.weights.summed()):
                yield total if first else total - before[number]
                before[number : number + 1] = [total]

        return distributed.norm(added()), before

    # -- evaluation, checkpoints, ends -------------------------------------------------------------------------

    def evaluate(self, count: int) -> Evaluation:
        """Evaluates on the first `count` held-out items; exports the policy where it is the best so far."""
        config = self.config
        with self.clock("evaluation"), self.weights.gathered():
            items = self.processes.share([self.held_out[i] for i in range(min(count, len(self.held_out)))])
            shown = len(self.processes.share(range(config.evaluation.gallery)))
            pictures = Pictures(self.run, f"eval/{self.step:06d}")
            settings = (config.scenario, replace(config.evaluation, gallery=shown), self.step, pictures, self.measures)
            with self._exported():
                own = evaluate(self.policy, items, *settings, self.processes.share(self.retention.probe))
        result = joined(self.processes.every(own))
        self._guard(result)
        if self.processes.is_main:
            result.save(self.run / "eval")
            self.log.evaluation(self.step, result)
        quality = sum(e.value for name, e in result.figures().items() if name in ("drawing", "answer"))
        if self.step and quality > self.best:
            self.best = quality
            self._export("best")
        return result

    def _export(self, name: str) -> None:
        """Writes the policy as a plain checkpoint."""
        with self._exported():
            policy = self.weights.exported()
            if self.processes.is_main:
                checkpoint.export(policy, self.run, name)

    def _exported(self) -> AbstractContextManager[None]:
        """Inside it the policy has the weights that are evaluated and exported."""
        if self.config.optim.exported == "average" and self.average:
            return self.average.in_place()
        return nullcontext()

    def _guard(self, result: Evaluation) -> None:
        """Reacts where a watched figure has fallen since the first evaluation."""
        retention = self.retention
        retention.first = retention.first or result
        fallen = falls(retention.first, result, retention.config)
        self.log.fallen(self.step, fallen, retention.config.on_fall)
        retention.react(fallen)

    def save(self) -> None:
        with self.clock("checkpoint"):
            counters = {"bad_steps": self.bad_steps, "best": self.best, "batches": self.batches}
            counters |= {"kl_factor": self.retention.kl_factor}
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
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.step, self.bad_steps, self.best = int(state["step"]), int(state["bad_steps"]), state["best"]
        self.batches = int(state["batches"])
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


def build_optimizer(
    named: Iterable[tuple[str, Tensor]], config: OptimConfig
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """AdamW on the trained ones of the named parameters and its course of learning rates, one scheduler step per
    rollout.

    Raises:
        ValueError: a rate of a part that no trained parameter belongs to.
    """
    from transformers import get_scheduler

    groups = parameter_groups([(name, p) for name, p in named if p.requires_grad], config)
    optimizer = torch.optim.AdamW(groups, betas=config.betas, weight_decay=config.weight_decay)
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    schedule = get_scheduler(name, optimizer, config.warmup_steps, config.steps)
    return optimizer, schedule


def parameter_groups(named: Iterable[tuple[str, Tensor]], config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters with their learning rate, those without a rate of their own first."""
    rates = config.part_learning_rates | {"": config.learning_rate}  # the empty pattern is found in every name
    parts: dict[str, list[Tensor]] = {pattern: [] for pattern in rates}
    for name, parameter in named:
        parts[next(pattern for pattern in rates if re.search(pattern, name))].append(parameter)
    rest = parts.pop("")
    for pattern, members in parts.items():
        if not members:
            raise ValueError(
                f"optim.part_learning_rates: {pattern!r} is the first match of no trained parameter; see policy.frozen "
                "and the order of the patterns"
            )
    groups = [{"params": members, "lr": rates[pattern]} for pattern, members in parts.items()]
    return [{"params": rest, "lr": rates[""]}, *groups] if rest else groups


def _averages(rounds: Sequence[Metrics]) -> Metrics:
    """The mean of every figure over the rounds that have it."""
    names = dict.fromkeys(name for r in rounds for name in r)
    values = {name: [r[name] for r in rounds if name in r] for name in names}
    return {name: sum(some) / len(some) for name, some in values.items()}


def _means(sums: Metrics) -> Metrics:
    decisions = max(sums["decisions"], 1.0)
    return {name: value / decisions for name, value in sums.items() if name != "decisions"}
