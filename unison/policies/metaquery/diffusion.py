"""Diffusion experts: how flow-matching transformers and autoencoders of `diffusers` are called, in two small tables.

A latent is [C, h, w] and scaled to unit variance; sigma in [0, 1] is the share of noise in it; the velocity is noise
minus clean latent. What the classes name, scale and arrange differently is said here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

SQUARE = 2  # side of the squares of a latent that make one position of a sequence


@dataclass(frozen=True)
class Expert:
    """What tells one class of `diffusers` transformer from another."""

    embed: str
    """Attribute with the module that embeds latents."""
    context_width: str
    """Field of its configuration with the width of the context it attends to."""
    pooled_width: str | None
    """Field with the width of the pooled context, None where there is none."""
    time: Callable[[Any], float]
    """Configuration -> the number that it wants as the time of sigma = 1."""
    squares: bool = False
    """Latents are sequences of 2 x 2 squares with the places of all positions beside them."""


EXPERTS = {
    "SanaTransformer2DModel": Expert(
        "patch_embed", "caption_channels", None, lambda config: 1000 * config.timestep_scale
    ),
    "SD3Transformer2DModel": Expert("pos_embed", "joint_attention_dim", "pooled_projection_dim", lambda _: 1000.0),
    "FluxTransformer2DModel": Expert(
        "x_embedder", "joint_attention_dim", "pooled_projection_dim", lambda _: 1.0, squares=True
    ),
}
"""By class name, as in the transformer's config.json."""

LATENT_OF: dict[str, Callable[[Any], Tensor]] = {
    "AutoencoderDC": lambda encoded: encoded.latent,
    "AutoencoderKL": lambda encoded: encoded.latent_dist.mode(),
}
"""What an encoder's output says of the latent, by the autoencoder's class."""


def expert_of(transformer: nn.Module) -> Expert:
    """The entry of the transformer's class.

    Raises:
        ValueError: unknown class, or one distilled to take guidance as an input.
    """
    name = type(transformer).__name__
    if name not in EXPERTS:
        raise ValueError(f"the diffusion transformer is a {name}; known classes: {', '.join(EXPERTS)}")
    if getattr(transformer.config, "guidance_embeds", False):
        raise ValueError(f"this {name} is guidance-distilled (guidance_embeds = true): take one that is not")
    return EXPERTS[name]


def context_width(transformer: nn.Module) -> int:
    """Width of the context that the transformer attends to."""
    return getattr(transformer.config, expert_of(transformer).context_width)


def pooled_width(transformer: nn.Module) -> int | None:
    """Width of its pooled context, None where it has none."""
    field = expert_of(transformer).pooled_width
    return None if field is None else getattr(transformer.config, field)


def latent_channels(transformer: nn.Module) -> int:
    """C of its latents."""
    squares = expert_of(transformer).squares
    channels: int = transformer.config.in_channels  # type: ignore[union-attr, assignment]
    return channels // SQUARE**2 if squares else channels


def embedder(transformer: nn.Module) -> nn.Module:
    """The module that embeds latents."""
    return getattr(transformer, expert_of(transformer).embed)


def embedding_width(transformer: nn.Module) -> int:
    """Width of embedded latents."""
    config: Any = transformer.config
    return config.num_attention_heads * config.attention_head_dim


def embed(transformer: nn.Module, embed: nn.Module, latents: Tensor) -> Tensor:
    """Latents through the transformer's embedder, or a copy of it. [B, C, h, w] -> [B, positions, E]"""
    return embed(to_squares(latents) if expert_of(transformer).squares else latents)


def velocity(
    transformer: Any, x: Tensor, sigma: Tensor, context: Tensor, pooled: Tensor | None, source: Tensor | None
) -> Tensor:
    """The velocity that one branch of guidance gives.

    Args:
        x: [B, C, h, w] noisy latents.
        sigma: [B]
        context: [B, Q, W]
        pooled: [B, P], for those that take it.
        source: [B, positions, E] to be added to the embedded latents.

    Returns:
        [B, C, h, w] float32
    """
    expert = expert_of(transformer)
    inputs: dict[str, Any] = {
        "hidden_states": (to_squares(x) if expert.squares else x).to(transformer.dtype),
        "encoder_hidden_states": context.to(transformer.dtype),
        "timestep": sigma * expert.time(transformer.config),
    }
    if expert.pooled_width:
        assert pooled is not None
        inputs["pooled_projections"] = pooled.to(transformer.dtype)
    if expert.squares:
        inputs["txt_ids"] = torch.zeros(context.shape[1], 3, device=x.device)
        inputs["img_ids"] = places(x.shape[2] // SQUARE, x.shape[3] // SQUARE, x.device)
    with added(embedder(transformer), source):
        out = transformer(**inputs, return_dict=False)[0]
    return (from_squares(out, x.shape[2] // SQUARE) if expert.squares else out).float()


@contextmanager
def added(module: nn.Module, extra: Tensor | None) -> Iterator[None]:
    """Inside it `extra` is added to what the module gives."""
    if extra is None:
        yield
        return

    def add(_module: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        return out + extra.to(out.dtype)

    handle = module.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def to_squares(x: Tensor) -> Tensor:
    """Latents as sequences of squares. [B, C, h, w] -> [B, h w / 4, 4 C]"""
    return rearrange(x, "b c (h p) (w q) -> b (h w) (c p q)", p=SQUARE, q=SQUARE)


def from_squares(x: Tensor, rows: int) -> Tensor:
    """The inverse of `to_squares`; `rows` of them."""
    return rearrange(x, "b (h w) (c p q) -> b c (h p) (w q)", h=rows, p=SQUARE, q=SQUARE)


def places(height: int, width: int, device: torch.device) -> Tensor:
    """The place of every position of a sequence of squares: (0, row, column). [height width, 3]"""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).float().to(device)


# -- pixels ----------------------------------------------------------------------------------------------------------


PIXELS, PICTURES = 2**21, 64


def at_once(pixels: int) -> int:
    """How many pictures of so many pixels go through an autoencoder in one pass."""
    return min(max(PIXELS // pixels, 1), PICTURES)


def ratio(vae: Any) -> int:
    """Pixels that a latent spans, along a side."""
    config = vae.config
    channels = config.get("encoder_block_out_channels") or config["block_out_channels"]
    return 2 ** (len(channels) - 1)


def to_latents(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1] -> scaled latents. [B, 3, H, W] -> [B, C, h, w] float32"""
    encoded = vae.encode(pixels.to(vae.dtype))
    latents = LATENT_OF[type(vae).__name__](encoded).float()
    return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor


def to_pixels(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of `to_latents`, float32; not clamped."""
    raw = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
    return vae.decode(raw.to(vae.dtype)).sample.float()
