"""The text-rendering reward: does the last drawing show what the prompt quotes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from PIL import Image

from unison.types import Trajectory

QUOTED = re.compile(r'["“](.+?)["”]', re.DOTALL)
LEAST_SIDE = 384  # of drawings, enlarged where smaller; the package's 736 read them no better in 3 times the time


def ocr(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """max(0, 1 - edits / length of the quoted text): 1 where the drawing shows it exactly and no other text.

    Edits are Levenshtein's, between the text read and the text quoted, without case and white space (Flow-GRPO, Liu et
    al. 2025, text rendering). One image at a time, on the CPU. A prompt that quotes nothing cannot be judged.
    """
    wanted = [normalise("".join(QUOTED.findall(t.item.prompt or ""))) for t in trajectories]
    return [
        _agreement(normalise(read(t.images[-1])), text) if t.images and text else None
        for t, text in zip(trajectories, wanted, strict=True)
    ]


def normalise(text: str) -> str:
    """Lower case, no white space."""
    return "".join(text.lower().split())


def _agreement(shown: str, wanted: str) -> float:
    from rapidfuzz.distance import Levenshtein

    return max(0.0, 1 - Levenshtein.distance(shown, wanted) / len(wanted))


def read(image: Image.Image) -> str:
    """The text in a picture, line by line from the top."""
    found = load_reader()(image.convert("RGB"))
    return "\n".join(found.txts or ())


@cache
def load_reader() -> Any:
    """PP-OCR's detector and recogniser, with weights from the package `rapidocr`; upright text only."""
    from rapidocr import RapidOCR

    settings = {
        "Global.use_cls": False,
        "Global.log_level": "error",
        "Det.limit_side_len": LEAST_SIDE,
        "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
    }
    return RapidOCR(params=settings)
