"""Pixels -> scene -> verdict: the exact judge of drawings of the world.

Foreground pixels are grouped into connected components; each component is named by its nearest palette colour and by
the shape template that overlaps it best. The judge sees pixels alone, never the scene they came from.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from unison.world import edits
from unison.world.render import BACKGROUND, CELL, PALETTE, RADIUS, SIZE, coverage
from unison.world.scene import COLORS, SHAPES, Description, Object, Scene, Verdict, check, parse_caption, parse_prompt

FOREGROUND = 70.0  # RGB distance from the background above which a pixel belongs to an object
LEAST_AREA = 14  # components of fewer pixels are specks
LEAST_OVERLAP = 0.6  # intersection over union with the best template; below it the shape has no name
SHIFTS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # template offsets tried, in pixels


@cache
def _templates() -> np.ndarray:
    """Coverage of every shape at every shift. [SHAPES, SHIFTS * SHIFTS, CELL * CELL]"""
    masks = [[coverage(shape, dx, dy).ravel() for dx in SHIFTS for dy in SHIFTS] for shape in SHAPES]
    return np.array(masks, np.float32)


@cache
def _palette() -> np.ndarray:
    return np.array([PALETTE[name] for name in COLORS], np.float32)


def see(image: Image.Image) -> Scene:
    """The scene in a picture of SIZE x SIZE pixels (others are resized first); unnamed objects are 'unknown'."""
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.convert("RGB"), np.float32)
    distance = np.linalg.norm(pixels - BACKGROUND, axis=-1)
    labels, found = ndimage.label(distance > FOREGROUND, structure=np.ones((3, 3), int))
    things = []
    for label, box in enumerate(ndimage.find_objects(labels, found), start=1):
        component = labels == label
        if component[box].sum() >= LEAST_AREA:
            things.append(_name(pixels, distance, component, box))
    return tuple(things)


def _name(pixels: np.ndarray, distance: np.ndarray, component: np.ndarray, box: tuple[slice, slice]) -> Object:
    core = component & (distance >= np.quantile(distance[component], 0.5))
    color = COLORS[int(np.linalg.norm(_palette() - np.median(pixels[core], axis=0), axis=-1).argmin())]
    y, x = ((s.start + s.stop) / 2 for s in box)
    extent = max(s.stop - s.start for s in box)
    shape = _shape_of(component, y, x) if extent <= 2 * RADIUS + 5 else "unknown"
    return Object(shape, color, y / CELL - 0.5, x / CELL - 0.5)


def _shape_of(component: np.ndarray, y: float, x: float) -> str:
    """The template with the largest overlap, centred on the component's bounding box."""
    top, left = (int(np.floor(c)) - CELL // 2 for c in (y, x))
    padded = (
        np.pad(component, CELL)[top + CELL : top + 2 * CELL, left + CELL : left + 2 * CELL].astype(np.float32).ravel()
    )
    templates = _templates()
    both = np.minimum(templates, padded).sum(-1)
    overlap = both / (templates.sum(-1) + component.sum() - both)  # [SHAPES, SHIFTS * SHIFTS]
    best = overlap.max(-1)
    return SHAPES[int(best.argmax())] if best.max() >= LEAST_OVERLAP else "unknown"


def judge(image: Image.Image, description: Description) -> Verdict:
    """Whether the picture shows what the description asks for."""
    return check(see(image), description)


def judge_asked(image: Image.Image, asked: str) -> Verdict:
    """Whether the picture shows what is asked for in words: a caption, every object of it in its cell, or a prompt.

    Raises:
        ValueError: they are neither, in the world's language.
    """
    wanted = parse_caption(asked)
    return edits.check(see(image), wanted) if wanted else judge(image, parse_prompt(asked))
