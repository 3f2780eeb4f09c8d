"""Drawings and replies side by side, of the same items."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image

from unison.evaluation.records import Evaluation, Record, paired

FIELDS = (  # of a record that the pieces of a page read
    *("task", "prompt", "question", "answer", "reply", "image", "question_image"),
    *("drawing_correct", "drawing_reason", "answer_correct", "format_ok"),
)
GALLERY = 24  # most drawings shown
QUESTIONS = 9  # most questions shown
LARGEST = 320  # pixels; larger pictures are scaled down before they are embedded

Shown: TypeAlias = dict[str, Any]


def _shared(sides: Sequence[Evaluation], field: str) -> list[list[Record]]:
    """The records of each item that has the field on every side, None where one lacks what a page reads."""
    return [[dict.fromkeys(FIELDS) | r for r in pair] for pair in zip(*paired(sides, field), strict=True)]


def gallery(sides: Sequence[Evaluation], folders: Sequence[Path]) -> list[Shown]:
    """The first drawings that every side keeps, of the same items, with what was recorded of them.

    Args:
        folders: from where each side's records name their pictures.
    """
    return [
        {
            "records": pair,
            "source": data_uri(folders[0] / path) if (path := pair[0].get("source_image")) else None,
            "images": [data_uri(f / r["image"]) for f, r in zip(folders, pair, strict=True)],
        }
        for pair in _shared(sides, "image")[:GALLERY]
    ]


def questions(sides: Sequence[Evaluation], folders: Sequence[Path]) -> list[Shown]:
    """The first questions that every side replied to, those with a picture if there are any; `folders` as above."""
    pairs = [p for p in _shared(sides, "reply") if p[0]["question"]]
    shown = [p for p in pairs if p[0]["question_image"]] or pairs
    return [
        {"records": p, "image": data_uri(folders[0] / path) if (path := p[0]["question_image"]) else None}
        for p in shown[:QUESTIONS]
    ]


def data_uri(path: Path) -> str | None:
    """The picture itself as a link, at most LARGEST pixels a side; None where the file is gone."""
    if not path.is_file():
        return None
    with Image.open(path) as image:
        picture = image.convert("RGB")
    form = "WEBP" if max(picture.size) > LARGEST else "PNG"
    picture.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    picture.save(buffer, form)
    return f"data:image/{form.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
