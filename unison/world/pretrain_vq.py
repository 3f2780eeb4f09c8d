"""The image tokenizer of the tiny Janus: trained as an autoencoder, then quantised, then its decoder fine-tuned.

Training codebook and encoder together collapses to a few codes at this size, so the three are learnt one after the
other: a plain autoencoder on l2-normalised latents; the codebook by spherical k-means on those latents; with
encoder and codebook frozen, the decoder on quantised latents; last, encoder and decoder together through the finished
codebook, which moves latents away from the borders between codes.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.janus.modeling_janus import JanusVQVAE

from unison.world import scene as scenes
from unison.world.judge import judge
from unison.world.render import BACKGROUND, render

Log = Callable[[dict[str, object]], None]


@dataclass(frozen=True)
class ImageTokenizerConfig:
    """How the image tokenizer is trained."""

    autoencoder_steps: int = 700
    """Steps of the plain autoencoder."""
    kmeans_iterations: int = 20
    """Iterations of spherical k-means for the codebook."""
    decoder_steps: int = 700
    """Steps of the decoder on quantised latents."""
    latent_noise: float = 0.0
    """Standard deviation of noise on the autoencoder's latents, which drives what matters apart."""
    joint_steps: int = 200
    """Steps of encoder and decoder together on the finished codebook."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 2e-3
    """Peak AdamW learning rate (one-cycle cosine)."""
    images: int = 8000
    """Distinct training images rendered in advance."""
    seed: int = 0
    """Seed of scenes, weights and order."""


def training_images(count: int, seed: int) -> Tensor:
    """Renders `count` training scenes of all task types. [count, 3, SIZE, SIZE] uint8"""
    rng = random.Random(seed)
    tasks = scenes.TASKS
    drawn = (render(scenes.sample(rng, tasks[i % len(tasks)], "train")[1]) for i in range(count))
    return torch.from_numpy(np.stack([np.asarray(image) for image in drawn])).permute(0, 3, 1, 2).contiguous()


def train_image_tokenizer(vq: JanusVQVAE, config: ImageTokenizerConfig, log: Log) -> None:
    """Trains `vq` in place (see the module docstring); leaves it frozen in eval mode."""
    images = training_images(config.images, config.seed)
    everything = [vq.encoder, vq.quant_conv, vq.post_quant_conv, vq.decoder]
    noise = torch.Generator().manual_seed(config.seed)

    def autoencode(x: Tensor) -> Tensor:
        latents = _latents(vq, x)
        noisy = latents + config.latent_noise * torch.randn(latents.shape, generator=noise)
        return _decode(vq, F.normalize(noisy, dim=1))

    _fit(everything, autoencode, images, config.autoencoder_steps, config, log, "autoencoder")
    with torch.no_grad():
        codes = torch.cat(
            [_latents(vq, _scale(batch)).permute(0, 2, 3, 1).reshape(-1, 8) for batch in images[:2400].split(128)]
        )
        vq.quantize.embedding.weight.copy_(spherical_kmeans(codes, vq.config.num_embeddings, config))
    _fit(
        [vq.post_quant_conv, vq.decoder],
        lambda x: _reconstruct(vq, x),
        images,
        config.decoder_steps,
        config,
        log,
        "decoder",
    )
    gently = dataclasses.replace(config, learning_rate=config.learning_rate / 4)
    _fit(everything, lambda x: _straight_through(vq, x), images, config.joint_steps, gently, log, "joint")
    vq.requires_grad_(False).eval()


def _fit(
    parts: list[nn.Module],
    predict: Callable[[Tensor], Tensor],
    images: Tensor,
    steps: int,
    config: ImageTokenizerConfig,
    log: Log,
    stage: str,
) -> None:
    parameters = [p for part in parts for p in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=steps, pct_start=0.05)
    order = torch.Generator().manual_seed(config.seed)
    for step in range(steps):
        x = _scale(images[torch.randint(len(images), (config.batch_size,), generator=order)])
        with torch.autocast("cpu", torch.bfloat16):
            y = predict(x)
        loss = _loss(y.float(), x)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            log({"stage": stage, "step": step, "loss": round(loss.item(), 5)})


def _scale(images: Tensor) -> Tensor:
    return images.float() / 127.5 - 1


def _loss(y: Tensor, x: Tensor) -> Tensor:
    """Squared error, with the pixels of objects weighted up: most of a picture is background."""
    background = torch.from_numpy(BACKGROUND / 127.5 - 1).view(1, 3, 1, 1)
    weight = 1 + 4 * ((x - background).abs().amax(1, keepdim=True) > 0.1)
    return (weight * (y - x).square()).mean() + 0.2 * (weight * (y - x).abs()).mean()


def _latents(vq: JanusVQVAE, x: Tensor) -> Tensor:
    return F.normalize(vq.quant_conv(vq.encoder(x)).float(), dim=1)  # [B, 8, H, W]


def _decode(vq: JanusVQVAE, latents: Tensor) -> Tensor:
    return vq.decoder(vq.post_quant_conv(latents))


def _reconstruct(vq: JanusVQVAE, x: Tensor) -> Tensor:
    with torch.no_grad():
        tokens = encode(vq, x)
    return vq.decode(tokens)


def _straight_through(vq: JanusVQVAE, x: Tensor) -> Tensor:
    """Reconstruction whose gradient passes the quantiser as if it were not there (van den Oord et al. 2017)."""
    latents = _latents(vq, x)
    codes = vq.quantize.embedding.weight
    nearest = torch.einsum("bdhw,kd->bkhw", latents, codes).argmax(1)
    quantised = codes[nearest].movedim(-1, 1).detach()
    return _decode(vq, latents + (quantised - latents).detach())


def encode(vq: JanusVQVAE, x: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> token ids. [B, 3, SIZE, SIZE] -> [B, tokens]"""
    return vq.encode(x).image_tokens.view(len(x), -1)


def spherical_kmeans(points: Tensor, clusters: int, config: ImageTokenizerConfig) -> Tensor:
    """Unit centres by cosine similarity; an empty cluster restarts at the worst-served point. [clusters, D]"""
    generator = torch.Generator().manual_seed(config.seed)
    centres = _seed_centres(points, clusters, generator)
    for _ in range(config.kmeans_iterations):
        similarity, nearest = _nearest(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        empty = torch.bincount(nearest, minlength=clusters) == 0
        sums[empty] = points[similarity.topk(int(empty.sum()), largest=False).indices]
        centres = F.normalize(sums, dim=-1)
    return centres


def _seed_centres(points: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ on a sample: background patches are most of all points and would take most random seeds."""
    sample = points[torch.randperm(len(points), generator=generator)[:40000]]
    chosen = sample[:1]
    distance = 1 - sample @ chosen[0]
    while len(chosen) < clusters:
        pick = torch.multinomial(distance.clamp_min(1e-6).square(), 1, generator=generator)
        chosen = torch.cat([chosen, sample[pick]])
        distance = torch.minimum(distance, 1 - sample @ chosen[-1])
    return chosen


def _nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    parts = [(chunk @ centres.T).max(-1) for chunk in points.split(16384)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


@torch.no_grad()
def judge_agreement(vq: JanusVQVAE, count: int = 1200, seed: int = 1) -> float:
    """Share of held-out true scenes that the judge still calls right after encoding and decoding: the ceiling of
    every drawing score."""
    rng = random.Random(seed)
    agreed = 0
    for i in range(count):
        description, scene = scenes.sample(rng, scenes.TASKS[i % len(scenes.TASKS)], "eval")
        pixels = torch.from_numpy(np.array(render(scene))).permute(2, 0, 1)[None]
        agreed += judge(to_image(vq.decode(encode(vq, _scale(pixels)))[0]), description).correct
    return agreed / count


def to_image(pixels: Tensor):
    """[-1, 1] pixels [3, H, W] -> PIL image."""
    from PIL import Image

    return Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).byte().numpy())
