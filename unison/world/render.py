"""Scene -> pixels: antialiased flat shapes on a light background."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from unison.world.scene import GRID, SHAPES, Object, Scene

CELL = 16  # pixels
SIZE = CELL * GRID  # 48 pixels
RADIUS = 6.0  # half the extent of a shape, in pixels
BACKGROUND = np.array([238, 236, 230], np.float32)
PALETTE = {
    "red": (214, 39, 40),
    "yellow": (240, 214, 40),
    "green": (40, 160, 70),
    "blue": (40, 90, 215),
    "purple": (140, 60, 180),
    "black": (30, 30, 34),
}
OVERSAMPLING = 8  # sub-pixels per pixel and axis


def inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Membership of points in a shape of RADIUS about the origin; y grows downwards."""
    r = RADIUS
    match shape:
        case "circle":
            return x**2 + y**2 <= r**2
        case "square":
            return np.maximum(abs(x), abs(y)) <= r * 0.92
        case "triangle":
            return (y <= r * 0.9) & (abs(x) <= (y + r) * 0.58)
        case "cross":
            return (np.minimum(abs(x), abs(y)) <= r * 0.32) & (np.maximum(abs(x), abs(y)) <= r * 1.05)
    raise ValueError(f"shape {shape!r} is not one of {', '.join(SHAPES)}")


@cache
def coverage(shape: str, dx: float = 0.0, dy: float = 0.0) -> np.ndarray:
    """Share of each pixel of a cell covered by a shape centred (dx, dy) pixels off the cell's centre. [CELL, CELL]"""
    step = 1 / OVERSAMPLING
    axis = np.arange(step / 2, CELL, step) - CELL / 2
    grid = inside(shape, axis[None, :] - dx, axis[:, None] - dy)
    return grid.reshape(CELL, OVERSAMPLING, CELL, OVERSAMPLING).mean((1, 3)).astype(np.float32)


def render(scene: Scene) -> Image.Image:
    """Draws the scene, every shape in the middle of its cell. [SIZE, SIZE, 3] uint8"""
    canvas = np.broadcast_to(BACKGROUND, (SIZE, SIZE, 3)).copy()
    for thing in scene:
        _paint(canvas, thing)
    return Image.fromarray(canvas.round().astype(np.uint8))


def _paint(canvas: np.ndarray, thing: Object) -> None:
    top, left = round(thing.row) * CELL, round(thing.column) * CELL
    cell = canvas[top : top + CELL, left : left + CELL]
    alpha = coverage(thing.shape)[..., None]
    cell[:] = alpha * np.array(PALETTE[thing.color], np.float32) + (1 - alpha) * cell
