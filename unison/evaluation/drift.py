"""Drift of self-reward: a model that comes to agree with itself while the judge of its drawings does not.

Agreement is how often the model answers right about its own drawings, which is what self-improvement rewards. The rule:
on the items that the first and the last evaluation both hold, self-reward drifts if agreement rises and rises by more
than the judged score: the 95% intervals of the paired difference of agreement, and of that less the judged score's
(bootstrap over items, mean over task types), both lie above 0. That one of two changes is significant and the other is
not says nothing of their difference (Gelman and Stern 2006). The judge is the world's, or where it cannot judge the
first of `evaluation.rewards`; scores of another range are compared as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unison.evaluation.records import Evaluation, Record, by_task, measured, paired
from unison.evaluation.stats import Estimate, task_difference, task_mean

OWN, JUDGED = "own_answer_correct", "drawing_correct"
REMEDIES = (
    "have the frozen reference read the drawings (scenario.answerer = reference, or both), or hold the policy closer "
    "to it (a higher objective.kl_beta)"
)


@dataclass(frozen=True)
class Drift:
    """Agreement and the judged score over the evaluations of a run, on the items that all of them hold."""

    steps: list[int]
    judge: str
    """What judges the drawings, in words."""
    items: int
    agreement: list[Estimate]
    judged: list[Estimate]
    agreement_change: Estimate
    """Last less first evaluation, on the items of these two."""
    judged_change: Estimate
    excess: Estimate
    """Agreement's change less the judged score's, item by item."""

    @property
    def found(self) -> bool:
        return min(self.agreement_change.low, self.excess.low) > 0

    @property
    def sentence(self) -> str:
        """What the intervals say, and no more; the remedies where self-reward drifts."""
        span = f"From step {self.steps[0]} to step {self.steps[-1]} self-agreement"
        own, judged = self.agreement_change.with_signs, self.judged_change.with_signs
        if self.agreement_change.low <= 0:
            return f"{span} does not rise beyond noise ({own}; {self.judge} {judged}): no drift."
        excess = self.excess.with_signs
        if self.found:
            told = f"{span} rises ({own}) by more than {self.judge} ({judged}; difference {excess})"
            return f"{told}: self-reward drifts. Remedies: {REMEDIES}."
        told = f"{span} rises ({own}), not beyond noise by more than {self.judge} ({judged}; difference {excess})"
        return f"{told}: no drift."


def find_drift(evaluations: Sequence[Evaluation]) -> Drift | None:
    """The course of both; None without two evaluations that share items with an own answer and a judged drawing."""
    judge = judge_of(evaluations)
    shared = paired(evaluations, OWN, judge)
    if len(evaluations) < 2 or not shared[0]:
        return None
    ends = paired([evaluations[0], evaluations[-1]], OWN, judge)
    agreement, judged = ([task_mean(by_task(side, field)) for side in shared] for field in (OWN, judge))
    own, other = (task_difference(*(by_task(side, field) for side in ends)) for field in (OWN, judge))
    excess = task_difference(*(_gaps(side, judge) for side in ends))
    words = "the judge's drawing score" if judge == JUDGED else f"the measured {judge}"
    return Drift([e.step for e in evaluations], words, len(shared[0]), agreement, judged, own, other, excess)


def _gaps(records: Sequence[Record], judge: str) -> dict[str, list[float]]:
    """By how much agreement is above the judged score, of every item by task; all have both."""
    own, judged = by_task(records, OWN), by_task(records, judge)
    return {task: [a - b for a, b in zip(own[task], judged[task], strict=True)] for task in own}


def judge_of(evaluations: Sequence[Evaluation]) -> str:
    """The field of the records that says how good a drawing is."""
    records = [record for evaluation in evaluations for record in evaluation.records]
    if any(record.get(JUDGED) is not None for record in records):
        return JUDGED
    return next(iter(measured(records)), JUDGED)
