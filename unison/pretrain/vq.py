"""The image tokenizer and the vision encoder of the tiny Janus.

Learning codebook, encoder and decoder together collapses to a few codes at this size, and k-means on an autoencoder's
latents gives codes that depend on what else is in the picture. The world makes both unnecessary: its pictures are built
from few distinct patches. Every distinct patch gets a code, the encoder learns to name the codes, the decoder to paint
them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unison.world import scene as scenes
from unison.world.judge import judge
from unison.world.render import BACKGROUND, CELL, render

if TYPE_CHECKING:
    from PIL.Image import Image

PATCH = CELL // 2  # pixels that a token spans
VQ: TypeAlias = Any  # JanusVQVAE, whose methods `transformers` types more narrowly than torch's tensors are
Log = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """How the image tokenizer is trained."""

    encoder_steps: int = 300
    """Steps of the encoder, which learns to name the codes."""
    decoder_steps: int = 400
    """Steps of the decoder, which learns to paint them."""
    vision_steps: int = 200
    """Steps of the vision encoder, which learns to name the patches it sees."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 2e-3
    """Peak AdamW learning rate (one-cycle cosine)."""
    images: int = 8000
    """Training images rendered in advance."""
    seed: int = 0
    """Seed of scenes, weights and order."""


def training_images(count: int, seed: int) -> Tensor:
    """Renders `count` training scenes of all task types. [count, 3, SIZE, SIZE] uint8"""
    rng = random.Random(seed)
    tasks = scenes.TASKS
    drawn = (render(scenes.sample(rng, tasks[i % len(tasks)], "train")[1]) for i in range(count))
    return torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).permute(0, 3, 1, 2).contiguous()


def train_image_tokenizer(vq: VQ, config: ImageTokenizerConfig, log: Log) -> None:
    """Trains `vq` in place (see the module docstring); leaves it frozen in eval mode.

    Raises:
        ValueError: the codebook has fewer entries than the world has patches.
    """
    images = training_images(config.images, config.seed)
    codes = patch_codes(images)
    used = int(codes.max()) + 1
    if used > vq.config.num_embeddings:
        raise ValueError(f"num_embeddings = {vq.config.num_embeddings}: the world has {used} distinct patches")
    log({"stage": "codebook", "distinct_patches": used})
    with torch.no_grad():
        vq.quantize.embedding.weight.copy_(spread_points(vq.config.num_embeddings, vq.config.embed_dim, config.seed))

    def name_codes(x: Tensor, ids: Tensor) -> Tensor:
        latents = F.normalize(vq.quant_conv(vq.encoder(x)).float(), dim=1)  # [B, D, H, W]
        similarity = torch.einsum("bdhw,kd->bkhw", latents, vq.quantize.embedding.weight)
        return F.cross_entropy(10 * similarity, rearrange(ids, "b (h w) -> b h w", h=latents.shape[2]))

    def paint_codes(x: Tensor, ids: Tensor) -> Tensor:
        return painting_loss(vq.decode(ids).float(), x)

    fit([vq.encoder, vq.quant_conv], name_codes, images, codes, config.encoder_steps, config, log, "encoder")
    fit([vq.post_quant_conv, vq.decoder], paint_codes, images, codes, config.decoder_steps, config, log, "decoder")
    vq.requires_grad_(False).eval()


def train_vision(vision: Any, config: ImageTokenizerConfig, log: Log) -> None:
    """Trains the vision encoder to say of every patch what it is and where, with linear heads that are thrown away.

    Real Janus models start from a pretrained vision encoder too; from scratch, through the language model, it learns to
    see very late.
    """
    images = training_images(config.images, config.seed)
    codes = patch_codes(images)
    what = nn.Linear(vision.config.hidden_size, int(codes.max()) + 1)
    where = nn.Linear(vision.config.hidden_size, codes.shape[1])
    places = torch.arange(codes.shape[1])

    def name_patches(x: Tensor, ids: Tensor) -> Tensor:
        states = vision(x).last_hidden_state  # [B, tokens, D]
        said, placed = (head(states).movedim(-1, 1).float() for head in (what, where))
        return F.cross_entropy(said, ids) + F.cross_entropy(placed, places.expand(len(x), -1))

    fit([vision, what, where], name_patches, images, codes, config.vision_steps, config, log, "vision")


def patch_codes(images: Tensor) -> Tensor:
    """The code of every patch: its number among the distinct patches. [N, 3, H, W] uint8 -> [N, tokens]"""
    patches = rearrange(images, "n c (h p) (w q) -> (n h w) (c p q)", p=PATCH, q=PATCH)
    _, codes = torch.unique(patches, dim=0, return_inverse=True)
    return codes.view(len(images), -1)


def spread_points(count: int, dimensions: int, seed: int) -> Tensor:
    """Unit vectors far from one another: each is the farthest of many random ones from those chosen. [count, D]"""
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(20 * count, dimensions, generator=generator), dim=-1)
    chosen = points[:1]
    nearest = points @ chosen[0]
    for _ in range(count - 1):
        chosen = torch.cat([chosen, points[nearest.argmin(), None]])
        nearest = torch.maximum(nearest, points @ chosen[-1])
    return chosen


class Fitting(Protocol):
    """How parts of an image tokenizer are fitted; `ImageTokenizerConfig` says what the fields mean."""

    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def seed(self) -> int: ...


def fit(
    parts: list[nn.Module],
    loss_of: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    codes: Tensor,
    steps: int,
    config: Fitting,
    log: Log,
    stage: str,
) -> None:
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=0.05)
    order = torch.Generator().manual_seed(config.seed)
    for step in range(steps):
        rows = torch.randint(len(images), (config.batch_size,), generator=order)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(to_pixels(images[rows]), codes[rows])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            log({"stage": stage, "step": step, "loss": round(loss.item(), 5)})


def to_pixels(images: Tensor) -> Tensor:
    """uint8 -> [-1, 1]"""
    return images.float() / 127.5 - 1


def painting_loss(y: Tensor, x: Tensor) -> Tensor:
    """Squared and absolute error, with the pixels of objects weighted up: most of a picture is background."""
    background = torch.from_numpy(BACKGROUND / 127.5 - 1).view(1, 3, 1, 1)
    weight = 1 + 4 * ((x - background).abs().amax(1, keepdim=True) > 0.1)
    return (weight * (y - x).square()).mean() + 0.2 * (weight * (y - x).abs()).mean()


def repaint(vq: VQ, x: Tensor) -> Tensor:
    """Pixels in [-1, 1] after encoding and decoding. [B, 3, SIZE, SIZE]"""
    return vq.decode(vq.encode(x).image_tokens.view(len(x), -1))


@torch.no_grad()
def judge_agreement(repaint: Callable[[Tensor], Tensor], count: int = 1200, seed: int = 1) -> float:
    """Share of held-out true scenes that the judge still calls right after encoding and decoding: the ceiling of
    every drawing score."""
    rng = random.Random(seed)
    pairs = [scenes.sample(rng, scenes.TASKS[i % len(scenes.TASKS)], "eval") for i in range(count)]
    pixels = torch.from_numpy(np.stack([np.asarray(render(scene)) for _, scene in pairs])).permute(0, 3, 1, 2)
    seen = [to_image(y) for batch in to_pixels(pixels).split(100) for y in repaint(batch)]
    return sum(judge(image, d).correct for image, (d, _) in zip(seen, pairs, strict=True)) / count


def to_image(pixels: Tensor) -> Image:
    """[-1, 1] pixels [3, H, W] -> PIL image."""
    from PIL import Image

    return Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).byte().numpy())
