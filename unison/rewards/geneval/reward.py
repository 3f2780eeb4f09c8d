"""GenEval on pictures: detect, ask for colours, decide; for the evaluation suite, and as rewards.

Upstream's reward server sees drawings as JPEG files; these see the pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from unison.rewards.geneval.colors import ColorModel, load_colors
from unison.rewards.geneval.detect import Detector, load_detector
from unison.rewards.geneval.rules import Kept, Verdict, asks_color, crop, decide, keep
from unison.rewards.models import BATCH, device_of, in_chunks
from unison.types import Trajectory, Wanted

if TYPE_CHECKING:
    from PIL.Image import Image


class Judged(NamedTuple):
    verdict: Verdict
    kept: Kept


def judge_pictures(
    images: Sequence[Image], wanted: Sequence[Wanted], detector: Detector, colors: ColorModel, overlap: float = 1.0
) -> list[Judged]:
    """What GenEval says of each picture; all pictures' objects go to the colour model together.

    Args:
        overlap: see `keep`.
    """
    pictures = [image.convert("RGB") for image in images]
    kept = [keep(found, w.tag, overlap) for found, w in zip(detector(pictures), wanted, strict=True)]
    asked = [(i, found) for i, (w, k) in enumerate(zip(wanted, kept, strict=True)) for found in asks_color(w, k)]
    answers = colors([(crop(pictures[i], found), found.noun) for i, found in asked])
    told = {found: dataclasses.replace(found, color=a) for (_, found), a in zip(asked, answers, strict=True)}
    colored = [{noun: [told.get(one, one) for one in found] for noun, found in objects.items()} for objects in kept]
    return [Judged(decide(w, k), k) for w, k in zip(wanted, colored, strict=True)]


def geneval(trajectories: Sequence[Trajectory], policy: Any, detector: str, colors: str) -> list[float | None]:
    """Partial credit of the last drawing: the mean over what the prompt asks for of how far each part is met.

    1 for a right drawing, 0 for an empty one, below 0 where an object is there more than twice as often as asked for.
    None where there is no drawing, or the item does not say what is wanted (`Item.wanted`).

    Source: the reward server of Flow-GRPO (arXiv 2505.05470), as UniRL-Zero ships it.
    """
    return _rewards(trajectories, policy, detector, colors, lambda verdict: verdict.score)


def geneval_strict(trajectories: Sequence[Trajectory], policy: Any, detector: str, colors: str) -> list[float | None]:
    """1 where all is as asked for, with exactly as many objects, else 0; None as above (the server's strict mode)."""
    return _rewards(trajectories, policy, detector, colors, lambda verdict: float(verdict.strict))


def _rewards(
    trajectories: Sequence[Trajectory], policy: Any, detector: str, colors: str, read: Callable[[Verdict], float]
) -> list[float | None]:
    device = device_of(policy)

    def judge(pairs: list[tuple[Image, Wanted]]) -> list[float]:
        images, wanted = zip(*pairs, strict=True)
        judged = judge_pictures(images, wanted, load_detector(detector, device), load_colors(colors, device))
        return [read(one.verdict) for one in judged]

    pairs = [(t.images[-1], t.item.wanted) if t.images and t.item.wanted else None for t in trajectories]
    return in_chunks(judge, pairs, BATCH)
