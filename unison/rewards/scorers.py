"""Scorers of picture and text that compare embeddings, through `transformers`.

`clip`, `pickscore` and `hps` are one function on three checkpoints; any other `CLIPModel` can be named after a colon
(`clip:owner/name`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import CLIPModel, CLIPProcessor

from unison.rewards.common import device_of
from unison.rewards.models import judge_pairs, load
from unison.types import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = 2.5  # CLIPScore's w, which spreads the cosines of real pairs over [0, 1]


def clip_score(trajectories: Sequence[Trajectory], policy: Any, checkpoint: str) -> list[float | None]:
    """CLIPScore of the last drawing and its prompt: min(1, 2.5 max(cosine, 0)), without a prefix to the prompt.

    Source: Hessel et al. 2021, arXiv 2104.08718, eq. 1 (the upper bound is ours). PickScore, arXiv 2305.01569, and
    HPS v2, arXiv 2306.09341, are 100 times and once the same cosine on weights of their own; the authors of HPS v2
    publish open_clip's layout, and the default is someone else's conversion of it, which we could not look at. Prompts
    longer than the text encoder reads are cut. None where there is no drawing or no prompt.
    """

    @torch.no_grad()
    def judge(images: list[Image], prompts: list[str]) -> list[float]:
        model, processor = load(CLIPModel, CLIPProcessor, checkpoint, device_of(policy))
        inputs = processor(images=images, text=prompts, padding=True, truncation=True, return_tensors="pt")
        out = model(**inputs.to(model.device))
        cosine = (out.image_embeds * out.text_embeds).sum(-1)  # [B]; both have length 1
        return (SCALE * cosine).clamp(0, 1).tolist()

    return judge_pairs(trajectories, judge)
