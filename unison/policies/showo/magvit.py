"""MAGVIT-v2's image tokenizer as Show-o uses it: a convolutional autoencoder whose latent is one sign per channel.

The codebook is never looked up: bit c of a token is the sign of latent channel c, channel 0 being the most significant
bit (lookup-free quantisation, Yu et al. 2023, arXiv 2310.05737). Weights have the published names (`encoder.*`,
`decoder.*`, `quantize.*`). The discriminator and the losses of tokenizer training are left out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


@dataclass(frozen=True)
class MagvitConfig:
    """Sizes of the tokenizer; level 0 is the highest resolution, and each further one halves it."""

    channels: int
    """Width that the multipliers multiply."""
    groups: int
    """Groups of every group norm."""
    bits: int
    """Latent channels, and bits of a token."""
    encoder_multipliers: tuple[int, ...]
    """Width of each level of the encoder."""
    encoder_blocks: tuple[int, ...]
    """Residual blocks of each level of the encoder."""
    decoder_multipliers: tuple[int, ...]
    """Width of each level of the decoder."""
    decoder_blocks: tuple[int, ...]
    """Residual blocks of each level of the decoder."""

    def __post_init__(self) -> None:
        parts = (self.encoder_multipliers, self.encoder_blocks, self.decoder_multipliers, self.decoder_blocks)
        if len(set(map(len, parts))) != 1:
            raise ValueError(f"{self}: encoder and decoder need one multiplier and one number of blocks per level")

    @property
    def patch(self) -> int:
        """Pixels a side that one token spans."""
        return 2 ** (len(self.encoder_blocks) - 1)

    @property
    def codes(self) -> int:
        """Different tokens."""
        return 2**self.bits


PUBLISHED = MagvitConfig(
    channels=128,
    groups=32,
    bits=13,
    encoder_multipliers=(1, 2, 2, 4, 4),
    encoder_blocks=(4, 3, 4, 3, 4),
    decoder_multipliers=(1, 1, 2, 2, 4),
    decoder_blocks=(4, 4, 3, 4, 3),
)
"""`showlab/magvitv2`."""


class Magvit(nn.Module):
    """Pixels <-> tokens."""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.bits)

    def latents(self, pixels: Tensor) -> Tensor:
        """Latents before the sign is taken. [B, 3, H, W] in [-1, 1] -> [B, bits, h, w]

        Raises:
            ValueError: height or width is no multiple of a token's.
        """
        patch = self.config.patch
        if any(side % patch for side in pixels.shape[-2:]):
            raise ValueError(f"pixels of shape {tuple(pixels.shape)}: height and width must be multiples of {patch}")
        return self.encoder(pixels.to(self.encoder.conv_in.weight.dtype))

    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens row by row. [B, 3, H, W] in [-1, 1] -> [B, h * w]"""
        return self.quantize.tokens(self.latents(pixels)).flatten(1)

    def decode(self, tokens: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels, near [-1, 1] but not clamped. [B, h * w] -> [B, 3, H, W]

        Args:
            shape: height and width in tokens; a square where it is not given.

        Raises:
            ValueError: the shape does not have that many tokens, or none is given and they make no square.
        """
        return self.paint(self.quantize.signs(tokens), shape)

    def paint(self, signs: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Pixels of tokens given by their signs, differentiable. [B, h * w, bits] -> [B, 3, H, W]

        Raises:
            ValueError: as `decode`.
        """
        count = signs.shape[1]
        side = math.isqrt(count)
        height, width = shape or (side, side)
        if height * width != count:
            raise ValueError(f"{count} tokens do not fill {height} x {width}: give their shape")
        latents = rearrange(signs, "b (h w) c -> b c h w", h=height)
        return self.decoder(latents.to(self.decoder.conv_in.weight.dtype))


class Quantizer(nn.Module):
    """Signs of the latent channels <-> tokens. The two tables are part of the published checkpoint."""

    embedding: Tensor  # [codes, bits]
    power_vals: Tensor  # [bits]

    def __init__(self, bits: int) -> None:
        super().__init__()
        powers = 2 ** torch.arange(bits - 1, -1, -1)
        ones = (torch.arange(2**bits)[:, None] // powers) % 2
        self.register_buffer("power_vals", powers)
        self.register_buffer("embedding", 2.0 * ones - 1)

    def tokens(self, latents: Tensor) -> Tensor:
        """[B, bits, h, w] -> [B, h, w]; zero counts as negative."""
        return ((latents > 0) * self.power_vals[:, None, None]).sum(1)

    def signs(self, tokens: Tensor) -> Tensor:
        """[...] -> [..., bits] of -1 and 1"""
        return self.embedding[tokens]


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, bits, h, w]"""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.encoder_multipliers]
        ends = itertools.pairwise([config.channels, *widths])
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList(
            EncoderLevel(start, end, blocks, config.groups, last=end_of_list)
            for (start, end), blocks, end_of_list in zip(ends, config.encoder_blocks, _lasts(widths), strict=True)
        )
        self.mid = Middle(widths[-1], config.groups)
        self.norm_out = _norm(widths[-1], config.groups)
        self.conv_out = nn.Conv2d(widths[-1], config.bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class EncoderLevel(nn.Module):
    """Residual blocks, then half the resolution but on the last level."""

    def __init__(self, start: int, end: int, blocks: int, groups: int, last: bool) -> None:
        super().__init__()
        self.block = _blocks(start, end, blocks, groups)
        self.downsample = None if last else Downsample(end)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class Decoder(nn.Module):
    """[B, bits, h, w] -> [B, 3, H, W]"""

    def __init__(self, config: MagvitConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.decoder_multipliers]
        above = [*widths[1:], widths[-1]]  # the width that level i gets from the level below it in resolution
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)
        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config.groups)
        self.up = nn.ModuleList(
            DecoderLevel(start, end, blocks, config.groups, last=level == 0)
            for level, (start, end, blocks) in enumerate(zip(above, widths, config.decoder_blocks, strict=True))
        )
        self.norm_out = _norm(widths[0], config.groups)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(x)))
        for level in reversed(cast(Sequence[nn.Module], self.up)):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class DecoderLevel(nn.Module):
    """Residual blocks, then twice the resolution but on the last level."""

    def __init__(self, start: int, end: int, blocks: int, groups: int, last: bool) -> None:
        super().__init__()
        self.block = _blocks(start, end, blocks, groups)
        self.upsample = None if last else Upsample(end)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """The only place where pixels attend to one another."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.block_1 = Residual(width, width, groups)
        self.attn_1 = Attention(width, groups)
        self.block_2 = Residual(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Residual(nn.Module):
    """Two convolutions beside an identity, or a 1x1 convolution where the width changes."""

    def __init__(self, start: int, end: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(start, groups)
        self.conv1 = nn.Conv2d(start, end, 3, padding=1)
        self.norm2 = _norm(end, groups)
        self.conv2 = nn.Conv2d(end, end, 3, padding=1)
        self.nin_shortcut = None if start == end else nn.Conv2d(start, end, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """One head over all pixels."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, groups)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (rearrange(part(y), "b c h w -> b 1 (h w) c") for part in (self.q, self.k, self.v))
        seen = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(seen, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample(nn.Module):
    """Half the resolution; zeros pad the right and the bottom alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the resolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=1e-6)


def _blocks(start: int, end: int, count: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(Residual(end if i else start, end, groups) for i in range(count))


def _lasts(things: Sequence[object]) -> list[bool]:
    """Whether each is the last."""
    return [i == len(things) - 1 for i in range(len(things))]


# -- pictures --------------------------------------------------------------------------------------------------------


def to_pixels(image: PIL.Image.Image, side: int) -> Tensor:
    """The centre square of a picture whose shorter side is `side` pixels. -> [3, side, side] in [-1, 1]"""
    image = image.convert("RGB")
    width, height = (int(side * length / min(image.size)) for length in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    left, top = round((width - side) / 2), round((height - side) / 2)
    square = np.asarray(image.crop((left, top, left + side, top + side)))
    return torch.from_numpy(square.copy()).permute(2, 0, 1).float() / 127.5 - 1


def brightness(pixels: Tensor) -> Tensor:
    """Near [-1, 1] -> in [0, 1]"""
    return ((pixels.float() + 1) / 2).clamp(0, 1)


def to_image(pixels: Tensor) -> PIL.Image.Image:
    """[3, H, W] near [-1, 1] -> picture; fractions of a grey level are cut off, as upstream."""
    levels = brightness(pixels) * 255
    return PIL.Image.fromarray(levels.byte().permute(1, 2, 0).cpu().numpy())
