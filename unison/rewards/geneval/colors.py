"""The colour of an object in its crop: CLIP asked in words, as GenEval does, or a count of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unison.data.objects import COLORS
from unison.rewards.geneval.rules import GREY
from unison.rewards.models import BATCH, load

if TYPE_CHECKING:
    from PIL.Image import Image

PIXELS = "pixels"
"""Names the colour model that counts pixels, where a checkpoint of CLIP would stand."""
TEMPLATES = ("a photo of a {color} {noun}", "a photo of a {color}-colored {noun}", "a photo of a {color} object")
PALETTE = {
    "red": (210, 30, 30),
    "orange": (240, 130, 20),
    "yellow": (245, 220, 50),
    "green": (50, 150, 60),
    "blue": (40, 90, 200),
    "purple": (120, 40, 150),
    "pink": (245, 150, 190),
    "brown": (115, 75, 45),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}
"""What `pixels` takes the colours to be, in sRGB."""

Crop: TypeAlias = "tuple[Image, str]"
"""A picture of one object, its background grey where that is known, and the object's noun."""


class ColorModel(Protocol):
    """Names the colour of each crop, one of GenEval's ten."""

    def __call__(self, crops: Sequence[Crop]) -> list[str]: ...


@cache
def load_colors(path: str, device: torch.device) -> ColorModel:
    """The colour model of a CLIP checkpoint, or the one that counts pixels.

    Raises:
        ValueError: the checkpoint is no CLIP.
    """
    return by_pixels if path == PIXELS else ClipColors(path, device)


class ClipColors:
    """The colour whose mean text embedding over three templates is nearest to the crop's embedding.

    Source: GenEval, which takes CLIP ViT-L/14 in half precision; here in float32.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.model, self.processor = load(CLIPModel, CLIPProcessor, path, device)
        self.texts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, crops: Sequence[Crop]) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(crops), BATCH):
            images, nouns = zip(*crops[start : start + BATCH], strict=True)
            pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
            seen = F.normalize(self.model.get_image_features(pixels).pooler_output, dim=-1)  # [B, D]
            cosine = torch.einsum("bd,bcd->bc", seen, torch.stack([self._text(noun) for noun in nouns]))
            answers += [COLORS[i] for i in cosine.argmax(-1).tolist()]
        return answers

    def _text(self, noun: str) -> Tensor:
        """Embeddings of the noun in every colour. [10, D]"""
        if noun not in self.texts:
            prompts = [text.format(color=color, noun=noun) for color in COLORS for text in TEMPLATES]
            inputs = self.processor(text=prompts, padding=True, return_tensors="pt").to(self.model.device)
            said = F.normalize(self.model.get_text_features(**inputs).pooler_output, dim=-1)
            self.texts[noun] = F.normalize(said.unflatten(0, (len(COLORS), len(TEMPLATES))).mean(1), dim=-1)
        return self.texts[noun]


def by_pixels(crops: Sequence[Crop]) -> list[str]:
    """The colour that most pixels are nearest to in CIELAB; pixels of exactly the grey of masks do not count.

    It knows nothing of objects, light and shade, and without masks it counts the background of the box as well: for
    tests and trials without a checkpoint of CLIP, not for numbers to be compared with published ones.
    """
    names, palette = list(PALETTE), to_lab(np.array(list(PALETTE.values())))

    def most(image: Image) -> str:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
        shown = pixels[(pixels != GREY).any(-1)]
        lab = to_lab(shown if len(shown) else pixels)
        nearest = ((lab[:, None] - palette) ** 2).sum(-1).argmin(-1)  # [pixels]
        return names[np.bincount(nearest, minlength=len(names)).argmax()]

    return [most(image) for image, _ in crops]


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB of 0 to 255 in CIELAB (IEC 61966-2-1; CIE 15, white D65). [..., 3] -> [..., 3]"""
    part = rgb / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    x, y, z = np.moveaxis(np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
