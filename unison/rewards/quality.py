"""Rewards that look at the last drawing alone: size of its file, distortion, beauty."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from unison import hub
from unison.rewards.models import BATCH, device_of, in_chunks, load
from unison.types import Trajectory

JPEG_QUALITY = 95

# -- size of the file ---------------------------------------------------------------------------------------------


def jpeg_incompressible(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Bytes of the drawing's JPEG file per byte of its pixels (3 a pixel), at most 1: about 0.01 flat, 0.4 noise.

    `jpeg_kilobytes` is the unit of DDPO and UniRL-Zero: at one drawing size, a multiple of this.
    """
    return [_jpeg_ratio(t.images[-1]) if t.images else None for t in trajectories]


def jpeg_compressible(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 - `jpeg_incompressible`."""
    return [1 - _jpeg_ratio(t.images[-1]) if t.images else None for t in trajectories]


def jpeg_kilobytes(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Thousands of bytes of the drawing's JPEG file: at weight 1 the incompressibility reward of UniRL-Zero, at weight
    -1/500 its compressibility reward (arXiv 2510.17937; DDPO, arXiv 2305.13301, has -1).

    The scale of small drawings is small: a group's spread is to be well above `advantage.EPSILON`.
    """
    return [_jpeg_bytes(t.images[-1]) / 1000 if t.images else None for t in trajectories]


def _jpeg_ratio(image: Image.Image) -> float:
    return min(_jpeg_bytes(image) / (3 * image.width * image.height), 1.0)


def _jpeg_bytes(image: Image.Image) -> int:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    return file.tell()


# -- distortion ---------------------------------------------------------------------------------------------------


def brisque(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 - BRISQUE / 100, clipped to [0, 1]: natural statistics near 1, blur and noise low (Mittal et al. 2012).

    One image at a time, on the CPU. Flat areas have no statistics: a drawing without texture cannot be judged.
    """
    return [_naturalness(t.images[-1]) if t.images else None for t in trajectories]


def _naturalness(image: Image.Image) -> float | None:
    with np.errstate(divide="ignore", invalid="ignore"):  # flat images divide 0 by 0 and come out as NaN
        distortion = load_brisque().score(np.asarray(image.convert("RGB")))
    return None if math.isnan(distortion) else min(max(1 - distortion / 100, 0.0), 1.0)


@cache
def load_brisque() -> Any:
    """The package's judge; `score(pixels)` is about 0 for natural images and 100 for distorted ones."""
    from brisque import BRISQUE

    judge = BRISQUE()
    scale = judge.scale_features
    # its features mix numbers with arrays of one number, which numpy 2 no longer turns into numbers by itself
    judge.scale_features = lambda features: scale([np.asarray(feature).item() for feature in features])
    return judge


# -- beauty -------------------------------------------------------------------------------------------------------


def aesthetic(trajectories: Sequence[Trajectory], policy: Any, clip: str, head: str) -> list[float | None]:
    """LAION's aesthetic score (v2, on CLIP ViT-L/14) divided by 10, clipped to [0, 1].

    Source: Schuhmann et al. 2022 (LAION-5B), the predictor trained on SAC, Logos and AVA with ratings of 1 to 10.

    Args:
        clip: checkpoint of the CLIP model, a folder or hub id.
        head: the same for the head, with a model.safetensors.
    """

    def judge(images: list[Image.Image]) -> list[float]:
        from transformers import CLIPModel
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        model, processor = load(CLIPModel, CLIPImageProcessorPil, clip, device_of(policy))
        pixels = processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]
        embeddings = model.get_image_features(pixels.to(model.device)).pooler_output  # [B, 768]
        return (load_head(head, model.device)(embeddings) / 10).clamp(0, 1).tolist()

    return in_chunks(judge, [t.images[-1] if t.images else None for t in trajectories], BATCH)


class ScoreHead(nn.Module):
    """The head of LAION's predictor and of ImageReward: affine layers 768-1024-128-64-16-1 without activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(  # dropout keeps the published numbering
            nn.Linear(768, 1024),
            nn.Dropout(0.2),
            nn.Linear(1024, 128),
            nn.Dropout(0.2),
            nn.Linear(128, 64),
            nn.Dropout(0.1),
            nn.Linear(64, 16),
            nn.Linear(16, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        """[B, 768] -> [B]"""
        return self.layers(features)[:, 0]


class AestheticHead(ScoreHead):
    """Scores of CLIP embeddings on LAION's scale of 1 to 10; the length of an embedding does not count."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(F.normalize(features, dim=-1))


@cache
def load_head(path: str, device: torch.device) -> AestheticHead:
    """The aesthetic head of a folder or hub id.

    Raises:
        ValueError: there are no such weights.
    """
    from safetensors.torch import load_model

    network = AestheticHead()
    what = f"cannot read checkpoint {path!r} as an aesthetic head"
    hub.read(what, lambda: load_model(network, hub.file(path, "model.safetensors")))
    return network.eval().requires_grad_(False).to(device)
