"""Rewards that compare CLIP embeddings, of a drawing and its prompt or of an edit, through `transformers`.

`clip`, `pickscore` and `hps` are one function on three checkpoints; any other `CLIPModel` can be named after a colon
(`clip:owner/name`). The picture that is edited is the item's; the edit is the trajectory's first drawing, and a
reconstruction of the picture, where the edit is taken back, its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import CLIPModel, CLIPProcessor

from unison.rewards.models import BATCH, device_of, in_chunks, judge_pairs, load
from unison.types import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = 2.5  # CLIPScore's w, which spreads the cosines of real pairs over [0, 1]
ROUNDING = 1e-4  # a change of an embedding, whose length is 1, that is none


def clip_score(trajectories: Sequence[Trajectory], policy: Any, checkpoint: str) -> list[float | None]:
    """CLIPScore of the last drawing and its prompt: min(1, 2.5 max(cosine, 0)), without a prefix to the prompt.

    Source: Hessel et al. 2021, arXiv 2104.08718, eq. 1 (the upper bound is ours). PickScore, arXiv 2305.01569, and
    HPS v2, arXiv 2306.09341, are 100 times and once the same cosine on weights of their own; the authors of HPS v2
    publish open_clip's layout, and the default is someone else's conversion of it, which we could not look at. Prompts
    longer than the text encoder reads are cut. None where there is no drawing or no prompt.
    """

    def judge(images: list[Image], prompts: list[str]) -> list[float]:
        pictures, texts = _embed(images, prompts, checkpoint, policy)
        return (SCALE * (pictures * texts).sum(-1)).clamp(0, 1).tolist()

    return judge_pairs(trajectories, judge)


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
