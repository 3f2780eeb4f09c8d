"""Scorers of picture and text that were trained for it, through `transformers`.

`clip` and `pickscore` are one function on two checkpoints; any other `CLIPModel` can be named after a colon
(`clip:owner/name`). Two well-known scorers are left out, since neither has a published checkpoint in the format of a
`transformers` class: HPSv2 (an open_clip ViT-H; converted, it is a `CLIPModel`) and ImageReward (a head of its own on
BLIP's text encoder).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import CLIPModel, CLIPProcessor

from unison.rewards.pretrained import device_of, judge_pairs, load
from unison.types import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

SCALE = 2.5  # CLIPScore's w, which spreads the cosines of real pairs over [0, 1]


def clip_score(trajectories: Sequence[Trajectory], policy: Any, checkpoint: str) -> list[float | None]:
    """CLIPScore of the last drawing and its prompt: min(1, 2.5 max(cosine, 0)), without a prefix to the prompt.

    Source: Hessel et al. 2021, arXiv 2104.08718, eq. 1 (the upper bound is ours); PickScore, arXiv 2305.01569, is 100
    times the same cosine on its own weights. Prompts longer than the text encoder reads are cut. None where there is no
    drawing or no prompt.
    """

    @torch.no_grad()
    def judge(images: list[Image], prompts: list[str]) -> list[float]:
        model, processor = load(CLIPModel, CLIPProcessor, checkpoint, device_of(policy))
        inputs = processor(images=images, text=prompts, padding=True, truncation=True, return_tensors="pt")
        out = model(**inputs.to(model.device))
        cosine = (out.image_embeds * out.text_embeds).sum(-1)  # [B]; both have length 1
        return (SCALE * cosine).clamp(0, 1).tolist()

    return judge_pairs(trajectories, judge)
