"""GenEval's decisions, pure: from detected objects and their colours to right or wrong, and to partial credit.

Source: Ghosh et al. 2023, arXiv 2310.11513, and the authors' program, whose decisions and reasons these equal; the
partial credit is that of the reward server that Flow-GRPO (arXiv 2505.05470) and UniRL-Zero train with.

Numbers are float32, as upstream: a score of exactly the threshold is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from PIL import Image

from unison.data.objects import COLORS
from unison.types import Clause, Wanted

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_SCORE, LEAST_SCORE_COUNTING = 0.3, 0.9
MOST_OF_A_CLASS = 16
CLOSE = 0.1  # share of both sizes by which centres may differ before a direction is seen
GREY = (153, 153, 153)  # what stands for the background of a masked object

Box: TypeAlias = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""


@dataclass(frozen=True, eq=False)
class Detection:
    """One object that a detector found."""

    noun: str
    """COCO class, under GenEval's name."""
    box: Box
    score: float
    mask: NDArray[np.bool_] | None = None
    """The object's pixels, [H, W] of the whole picture; None where the detector finds boxes alone."""
    color: str | None = None
    """What the colour model answers; None where nobody asked."""


Kept: TypeAlias = Mapping[str, Sequence[Detection]]
"""Objects by noun, surest first; nouns without any are absent."""


@dataclass(frozen=True)
class Verdict:
    """What GenEval and the partial-credit server say of one drawing."""

    correct: bool
    """Everything included is there, nothing excluded is: the benchmark's decision."""
    reason: str
    """Why not, a line for each failure."""
    score: float
    """Partial credit: at most 1, and below 0 where a noun is there more than twice as often as wanted."""
    strict: bool
    """Every noun is there exactly as often as wanted; `exclude` takes no part."""
    strict_reason: str


# -- detections --------------------------------------------------------------------------------------------------------


def keep(detections: Sequence[Detection], tag: str, overlap: float = 1.0) -> dict[str, list[Detection]]:
    """The objects that count, by noun and surest first, at most 16 of each.

    Args:
        tag: counting asks for surer detections.
        overlap: IoU from which on the less sure of two boxes of a noun is dropped; 1, as published, drops none.
    """
    least = np.float32(LEAST_SCORE_COUNTING if tag == "counting" else LEAST_SCORE)
    sure = [found for found in detections if np.float32(found.score) > least]
    order = np.argsort([np.float32(found.score) for found in sure], kind="stable")[::-1]
    kept: dict[str, list[Detection]] = {}
    for i in order:
        kept.setdefault(sure[i].noun, []).append(sure[i])
    return {noun: _apart(found[:MOST_OF_A_CLASS], overlap) for noun, found in kept.items()}


def _apart(found: Sequence[Detection], overlap: float) -> list[Detection]:
    apart: list[Detection] = []
    for one in found:
        if overlap >= 1 or all(iou(one.box, other.box) < overlap for other in apart):
            apart.append(one)
    return apart


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes whose last pixels belong to them, as upstream counts."""
    inner = (*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:]))
    shared = _area(inner)
    return float(shared / (_area(a) + _area(b) - shared))


def _area(box: Sequence[float]) -> float:
    return max(box[2] - box[0] + 1, 0) * max(box[3] - box[1] + 1, 0)


def relations(a: Box, b: Box) -> list[str]:
    """Where box a lies from box b: none, one or two of left of, right of, above, below."""
    corners = np.array((a, b), np.float32).reshape(2, 2, 2)  # [object, corner, axis]
    offset = np.subtract(*corners.mean(1))  # [axis]
    sizes = np.abs(corners[:, 1] - corners[:, 0]).sum(0)
    reduced = np.sign(offset) * np.maximum(np.abs(offset) - np.float32(CLOSE) * sizes, 0)
    if (np.abs(reduced) < 1e-3).all():
        return []
    x, y = reduced / np.linalg.norm(offset)
    seen = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return [relation for relation, holds in seen.items() if holds]


def crop(image: Image.Image, found: Detection) -> Image.Image:
    """The object alone, on grey where the detector knows its pixels; parts of the box outside the picture are black.

    Corners are rounded, halves to even; a box thinner than a pixel is given one.
    """
    if found.mask is not None:
        background = Image.new("RGB", image.size, GREY)
        image = Image.composite(image, background, Image.fromarray(found.mask.astype(np.uint8) * 255))
    left, top, right, bottom = map(round, found.box)
    return image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


# -- decisions ---------------------------------------------------------------------------------------------------------


def decide(wanted: Wanted, kept: Kept) -> Verdict:
    """Upstream's decisions on the objects that `keep` left, with the colours of those whose colour is asked for."""
    loose, exact = (_examine(wanted, kept, exact) for exact in (False, True))
    reasons = [finding.reason for finding in loose if finding.reason]
    reasons += [reason for clause in wanted.exclude if (reason := _excess(clause, kept))]
    strict_reasons = [finding.reason for finding in exact if finding.reason]
    credits = [c for clause, finding in zip(wanted.include, exact, strict=True) for c in _credits(clause, finding)]
    return Verdict(
        correct=not reasons,
        reason="\n".join(reasons),
        score=sum(credits) / len(credits) if credits else 0.0,
        strict=not strict_reasons,
        strict_reason="\n".join(strict_reasons),
    )


def asks_color(wanted: Wanted, kept: Kept) -> list[Detection]:
    """The objects whose colour the decisions depend on."""
    nouns = dict.fromkeys(clause.noun for clause in wanted.include if clause.color)
    return [found for noun in nouns for found in kept.get(noun, ())]


@dataclass(frozen=True)
class _Finding:
    """How one clause fares: its objects, and its first failed check with the reason."""

    found: Sequence[Detection]
    failed: Literal["", "count", "color", "target", "relation"] = ""
    reason: str = ""


def _examine(wanted: Wanted, kept: Kept, exact: bool) -> list[_Finding]:
    """One finding a clause of `include`: of the surest objects, or of all where the number is to be `exact`."""
    findings: list[_Finding] = []
    for clause in wanted.include:
        found = kept.get(clause.noun, ())
        findings.append(_check(clause, found if exact else found[: clause.count], findings, exact))
    return findings


def _check(clause: Clause, found: Sequence[Detection], earlier: Sequence[_Finding], exact: bool) -> _Finding:
    if len(found) != clause.count:
        sign = "==" if exact else ">="
        return _Finding(found, "count", f"expected {clause.noun}{sign}{clause.count}, found {len(found)}")
    if clause.color and (reason := _off_color(clause, found)):
        return _Finding(found, "color", reason)
    if clause.position:
        relation, number = clause.position
        target = earlier[number]
        if target.failed:
            return _Finding(found, "target", f"no target for {clause.noun} to be {relation}")
        if reason := _misplaced(clause.noun, relation, found, target.found):
            return _Finding(found, "relation", reason)
    return _Finding(found)


def _off_color(clause: Clause, found: Sequence[Detection]) -> str:
    seen = [one.color for one in found]
    right = seen.count(clause.color)
    if right == clause.count:
        return ""
    told = ", ".join(f"{seen.count(color)} {color}" for color in COLORS if color in seen)
    return f"expected {clause.color} {clause.noun}>={clause.count}, found {right} {clause.color}; and {told}"


def _misplaced(noun: str, relation: str, found: Sequence[Detection], targets: Sequence[Detection]) -> str:
    """Why not every object stands in that relation to every target; upstream tells the first pair."""
    pairs = ((one, target) for one in found for target in targets)
    for seen in (relations(one.box, target.box) for one, target in pairs):
        if relation not in seen:
            return f"expected {noun} {relation} target, found {' and '.join(seen)} target"
    return ""


def _excess(clause: Clause, kept: Kept) -> str:
    count = len(kept.get(clause.noun, ()))
    return f"expected {clause.noun}<{clause.count}, found {count}" if count >= clause.count else ""


def _credits(clause: Clause, finding: _Finding) -> list[float]:
    """Partial credits of a clause, of which the score is the mean over all clauses."""
    credits = [1 - abs(clause.count - len(finding.found)) / clause.count]
    if finding.failed == "count":
        return [*credits, 0.0] if clause.color or clause.position else credits
    if clause.color:
        right = sum(one.color == clause.color for one in finding.found)
        credits.append(1 - abs(clause.count - right) / clause.count)
    if clause.position and finding.failed != "color":
        # a wrong relation earns 0 and then 1 as well: a slip of the server that both trainers learned from, kept
        credits += {"target": [0.0], "relation": [0.0, 1.0]}.get(finding.failed, [1.0])
    return credits
