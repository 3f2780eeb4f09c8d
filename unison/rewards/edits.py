"""Rewards of edits that compare CLIP embeddings, through `transformers`.

The picture that is edited is the item's; the edit is the trajectory's first drawing, and a reconstruction of the
picture, where the edit is taken back, its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import CLIPModel, CLIPProcessor

from unison.rewards.common import BATCH, device_of, in_chunks
from unison.rewards.models import load
from unison.types import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

ROUNDING = 1e-4  # a change of an embedding, whose length is 1, that is none


def clip_direction(trajectories: Sequence[Trajectory], policy: Any, checkpoint: str) -> list[float | None]:
    """Cosine of what the edit changed in the picture with what it was to change in its caption, in [-1, 1].

    Source: Gal et al. 2021, arXiv 2108.00946, eq. 2, as InstructPix2Pix, arXiv 2211.09800, measures edits. A picture
    that was left as it was has no direction and earns 0. None without a drawing, a picture or either caption.
    """

    def judge(rows: list[Trajectory]) -> list[float]:
        pictures, texts = _embed(
            [image for t in rows for image in (t.item.image, t.images[0])],  # type: ignore[misc]
            [text for t in rows for text in (t.item.source_caption, t.item.target_caption)],  # type: ignore[misc]
            checkpoint,
            policy,
        )
        return direction_similarity(pictures[0::2], pictures[1::2], texts[0::2], texts[1::2]).tolist()

    known = [
        t if t.images and t.item.image and t.item.source_caption and t.item.target_caption else None
        for t in trajectories
    ]
    return in_chunks(judge, known, BATCH // 2)


def clip_reconstruction(trajectories: Sequence[Trajectory], policy: Any, checkpoint: str) -> list[float | None]:
    """Cosine of the embeddings of the last drawing and of the item's picture, in [-1, 1]; None without either.

    Source: the cycle edit of UniRL-Zero, arXiv 2510.17937.
    """

    def judge(rows: list[Trajectory]) -> list[float]:
        images = [image for t in rows for image in (t.item.image, t.images[-1])]
        pictures, _ = _embed(images, [""] * len(images), checkpoint, policy)  # type: ignore[arg-type]
        return cosine_similarity(pictures[0::2], pictures[1::2]).clamp(-1, 1).tolist()

    return in_chunks(judge, [t if t.images and t.item.image else None for t in trajectories], BATCH // 2)


def direction_similarity(picture: Tensor, edited: Tensor, caption: Tensor, target: Tensor) -> Tensor:
    """Cosine of two changes, 0 where either is none. embeddings [B, D] each -> [B]"""
    return cosine_similarity(edited - picture, target - caption, eps=ROUNDING).clamp(-1, 1)


def _embed(images: list[Image], texts: list[str], checkpoint: str, policy: Any) -> tuple[Tensor, Tensor]:
    """Embeddings of length 1 of as many images as texts. [B, D] each"""
    model, processor = load(CLIPModel, CLIPProcessor, checkpoint, device_of(policy))
    inputs = processor(images=images, text=texts, padding=True, truncation=True, return_tensors="pt")
    out = model(**inputs.to(model.device))
    return out.image_embeds, out.text_embeds
