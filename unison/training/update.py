"""The optimiser steps of one rollout: what is scored of it, what the reference says, the loss, the step.

Groups stay whole, micro-batches add up, and processes share one loss, so that none of the three changes the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from unison.config import ObjectiveConfig, RunConfig
from unison.objectives import asks_reference, find, has_penalty, needs_distance
from unison.objectives.grpo import Totals, decision_shares, sampling_difference, totals
from unison.policies.base import Policy, WeightCopy
from unison.training.distributed import Processes, Weights, norm
from unison.training.guards import NormGuard
from unison.training.optimizer import build_optimizer
from unison.training.retention import Retention
from unison.types import MODALITIES, Metrics, Modality, Selected, Trajectory, Turn, TurnBatch, group_rows, pad_stack


@dataclass(frozen=True)
class Sample:
    """A turn with its own advantage or its trajectory's, the decisions that are scored, and the id of its item."""

    turn: Turn
    advantage: float
    selected: Selected
    item: str


class Reference(NamedTuple):
    """What the reference says of a micro-batch, as far as the objective asks."""

    anchors: list[Tensor] | None = None
    """What its divergence is measured from."""
    logps: list[Tensor] | None = None
    """Its log-probabilities."""


class Updater:
    """Takes the optimiser steps of a run.

    Args:
        moving: the reference, where it follows the trained weights and belongs to checkpoints.
    """

    def __init__(
        self,
        config: RunConfig,
        policy: Policy,
        weights: Weights,
        processes: Processes,
        retention: Retention,
        moving: WeightCopy | None,
    ) -> None:
        self.config, self.policy, self.weights, self.processes = config, policy, weights, processes
        self.retention = retention
        self.objective = find(config.objective)
        optimizer, self.schedule = build_optimizer(weights.trained.items(), config.optim)
        self.optimizer = weights.prepare(optimizer, moving)
        self.guard = NormGuard(config.optim.max_norm_ratio)
        self.bad_steps = 0  # in a row

    def __call__(self, trajectories: Sequence[Trajectory], advantages: Sequence[float | None], step: int) -> Metrics:
        """The optimiser steps on the rollout of a step; trajectories without an advantage are left out."""
        seed = self.config.seed + step
        groups = [
            self._group(item, rows, trajectories, advantages, seed) for item, rows in group_rows(trajectories).items()
        ]
        size = math.ceil(len(groups) / self.config.step.updates)
        with self.weights.gathered():
            groups[size:] = map(self._with_old_logp, groups[size:])  # of the policy that sampled, before it is changed
        count = self.processes.most(math.ceil(len(groups) / max(size, 1)))
        rounds = [self._optimise(groups[i * size : (i + 1) * size], first=i == 0) for i in range(count)]
        if any(not r["skipped_step"] and not r["constant_step"] for r in rounds):
            self.schedule.step()
        return averages(rounds)

    def resume(self, bad_steps: int) -> None:
        """Goes on after so many skipped updates in a row, at the learning rates that their course has come to."""
        self.bad_steps = bad_steps
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    # -- what is scored --------------------------------------------------------------------------------------------

    def _group(
        self,
        item: str,
        rows: Sequence[int],
        trajectories: Sequence[Trajectory],
        advantages: Sequence[float | None],
        seed: int,
    ) -> list[Sample]:
        """The turns of an item's trajectories, each with its own advantage or else its trajectory's."""
        turns = [(turn, a) for row in rows if (a := advantages[row]) is not None for turn in trajectories[row].turns]
        selected = self.policy.select([turn.action for turn, _ in turns], self.config.scoring, seed)
        return [
            Sample(turn, advantage if turn.advantage is None else turn.advantage, s, item)
            for (turn, advantage), s in zip(turns, selected, strict=True)
        ]

    @torch.no_grad()
    def _with_old_logp(self, group: Sequence[Sample]) -> list[Sample]:
        """A group whose surrogates know their log-probabilities under the present weights; sampling gave them none."""
        new = [s for s in group if s.selected.old_logp is None]
        logps = iter(self.policy([s.turn.context for s in new], [s.selected.action for s in new]) if new else ())
        known = (
            replace(s.selected, old_logp=next(logps)) if s.selected.old_logp is None else s.selected for s in group
        )
        return [replace(s, selected=k) for s, k in zip(group, known, strict=True)]

    def _micro_batches(self, groups: Sequence[Sequence[Sample]], modality: Modality) -> Iterator[list[Sample]]:
        step = self.config.step
        for start in range(0, len(groups), step.micro_batch_items):
            some = groups[start : start + step.micro_batch_items]
            chunk = [s for group in some for s in group if s.turn.action.modality == modality]
            size = (step.micro_batch_images if modality == "image" else 0) or max(1, len(chunk))
            yield from (chunk[first : first + size] for first in range(0, len(chunk), size))

    # -- one optimiser step ----------------------------------------------------------------------------------------

    def _optimise(self, groups: Sequence[Sequence[Sample]], first: bool) -> Metrics:
        """One optimiser step on whole groups, in micro-batches whose losses add up to the step's loss; the `first` of a
        rollout is by the policy that sampled it."""
        said = self._ask_reference(groups)
        with self.weights.gathered():
            metrics = self._accumulate(groups, said, first)
            self.weights.reduce()
        informative = self.processes.any(s.advantage for g in groups for s in g) or has_penalty(self.config.objective)
        return metrics | self._apply(informative, metrics["loss"])

    @torch.no_grad()
    def _ask_reference(self, groups: Sequence[Sequence[Sample]]) -> dict[Modality, list[Reference]]:
        """What the reference says of every micro-batch, before there are gradients to hold beside it."""
        asked = asks_reference(self.config.objective)
        with self.weights.gathered(reference=asked), self.policy.reference() if asked else nullcontext():
            return {
                m: [self._reference(c, self._objective(m)) for c in self._micro_batches(groups, m)] for m in MODALITIES
            }

    def _reference(self, samples: Sequence[Sample], objective: ObjectiveConfig) -> Reference:
        contexts, actions = [s.turn.context for s in samples], [s.selected.action for s in samples]
        return Reference(
            anchors=self.policy.anchors(contexts, actions) if needs_distance(objective) else None,
            logps=self.policy(contexts, actions) if self.objective.from_reference else None,
        )

    def _objective(self, modality: Modality) -> ObjectiveConfig:
        """The settings of one modality, with the weight of the KL that the run has come to."""
        objective = self.config.objective.of(modality)
        return replace(objective, kl_beta=objective.kl_beta * self.retention.kl_factor)

    def _accumulate(
        self, groups: Sequence[Sequence[Sample]], said: Mapping[Modality, Sequence[Reference]], first: bool
    ) -> Metrics:
        """The gradient of this process's part of the loss, and the metrics of all."""
        metrics: Metrics = {"loss": 0.0, "skipped_step": 0.0, "constant_step": 0.0}
        before: list[Tensor] = []
        for modality in MODALITIES:
            own = totals([s.selected.counted for g in groups for s in g if s.turn.action.modality == modality])
            total = Totals(*self.processes.sum(own.turns, own.decisions))
            if not total.decisions:
                continue
            before_it = metrics["loss"]
            chunks = zip(self._micro_batches(groups, modality), said[modality], strict=True)
            metrics["loss"], sums, gaps = self._backward(chunks, modality, total, before_it)
            metrics |= {f"{modality}/{name}": value for name, value in _means(self.processes.sums(sums)).items()}
            metrics |= self.processes.sums({f"{modality}/loss": metrics["loss"] - before_it})
            if first and (modality == "text" or self.config.scoring.drawings == "rounds"):  # else it is a surrogate's
                metrics |= self._apart(modality, gaps)
            if self.config.optim.modality_grad_norms:
                metrics[f"{modality}/grad_norm"], before = self._norm_since(before)
        return metrics | self.processes.sums({"loss": metrics["loss"]})

    def _backward(
        self, chunks: Iterable[tuple[list[Sample], Reference]], modality: Modality, total: Totals, whole: float
    ) -> tuple[float, Metrics, list[Tensor]]:
        """Adds up the gradients of one modality's micro-batches; `whole` with their loss, sums of their metrics, and by
        what scoring them differs from sampling them."""
        objective, sums, gaps = self._objective(modality), Metrics(), list[Tensor]()
        for chunk, reference in chunks:
            batch = self._batch(chunk, modality, total, objective, reference)
            loss, part = self.objective.loss(batch, objective)
            gaps.append(sampling_difference(batch, [s.turn.action.logp for s in chunk]))
            if loss.requires_grad:  # decisions of frozen parts are scored for the log alone
                self.processes.accelerator.backward(loss)
            whole += float(loss.detach())
            sums = {name: sums.get(name, 0.0) + value for name, value in part.items()}
        return whole, sums, gaps

    def _apart(self, modality: Modality, gaps: Sequence[Tensor]) -> Metrics:
        """Mean and largest distance of sampled and scored log-probabilities over all processes; none of given turns."""
        own = torch.cat(list(gaps)) if gaps else torch.empty(0)
        told = self.processes.every((float(own.sum()), len(own), float(own.max()) if len(own) else 0.0))
        sums, counts, most = zip(*told, strict=True)
        name = f"{modality}/sampling_difference"
        return {name: sum(sums) / sum(counts), f"{name}_max": max(most)} if sum(counts) else {}

    def _batch(
        self,
        samples: Sequence[Sample],
        modality: Modality,
        total: Totals,
        objective: ObjectiveConfig,
        reference: Reference,
    ) -> TurnBatch:
        contexts, selected = [s.turn.context for s in samples], [s.selected for s in samples]
        share = decision_shares(pad_stack([s.counted for s in selected]), total, objective)
        weight = pad_stack([s.share for s in selected])
        actions = [s.action for s in selected]
        if reference.anchors is not None:
            logps, kls = zip(*self.policy(contexts, actions, reference.anchors), strict=True)
            kl = pad_stack(kls)
        else:
            logps, kl = self.policy(contexts, actions), None
        logp = pad_stack(logps)
        mask = pad_stack([action.mask for action in actions]).to(logp.device)
        known = [row.detach() if s.old_logp is None else s.old_logp for s, row in zip(selected, logps, strict=True)]
        known = known if reference.logps is None else reference.logps
        numbers = {item: number for number, item in enumerate(dict.fromkeys(s.item for s in samples))}
        return TurnBatch(
            logp=logp,
            old_logp=pad_stack([old.to(logp.device) for old in known]),
            kl=kl,
            advantage=torch.tensor([s.advantage for s in samples], device=logp.device),
            mask=mask,
            share=(share * weight).to(logp.device),
            group=torch.tensor([numbers[s.item] for s in samples], device=logp.device),
            weight=weight.to(logp.device),
        )

    def _apply(self, informative: bool, loss: float) -> Metrics:
        """Clips and steps; a step whose loss or gradient is not finite, whose gradient is out of proportion, or which
        says nothing, changes no weight and is counted."""
        norm = self.weights.clip(self.config.optim.max_grad_norm)
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

    def _norm_since(self, before: list[Tensor]) -> tuple[float, list[Tensor]]:
        """Norm of the gradient added by all processes since it was `before`, and the present one in its place, so that
        no more than one copy is ever held."""
        first = not before

        def added() -> Iterator[Tensor]:
            for number, total in enumerate(self.weights.summed()):
                yield total if first else total - before[number]
                before[number : number + 1] = [total]

        return norm(added()), before


def averages(rounds: Sequence[Metrics]) -> Metrics:
    """The mean of every figure over the rounds that have it."""
    names = dict.fromkeys(name for r in rounds for name in r)
    values = {name: [r[name] for r in rounds if name in r] for name in names}
    return {name: sum(some) / len(some) for name, some in values.items()}


def _means(sums: Metrics) -> Metrics:
    decisions = max(sums["decisions"], 1.0)
    return {name: value / decisions for name, value in sums.items() if name != "decisions"}
