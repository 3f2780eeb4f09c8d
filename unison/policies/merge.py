"""Merging fine-tuned checkpoints of one base into one checkpoint, tensor by tensor.

CoRL (arXiv 2505.17534) merges its multiple-choice and open-ended models by a merge named after the Gaussian
distribution (arXiv 2501.10661), whose formula is open: `gaussian` below is ours. Trimming and sign election of TIES
are `peft`'s.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import torch
from peft.utils.merge_utils import calculate_majority_sign_mask, magnitude_based_pruning
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unison.config import best_device
from unison.hub import fetch

Method = Literal["gaussian", "linear", "slerp", "ties"]
COPIED = (".json", ".jinja", ".txt", ".model")
"""Suffixes of what is taken from the first checkpoint: configuration, tokenizer, processor, index of the shards."""
PARALLEL = 1e-3  # radians below which SLERP is the straight line to within 1e-6

# -- methods: float tensors of one shape in, one of that shape out -----------------------------------------------------


def linear(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Weighted mean, weights summing to 1 (model soups, Wortsman et al. 2022); equal tensors come back bit for bit."""
    first, *others = tensors
    return first + sum(w * (tensor - first) for w, tensor in zip(weights[1:], others, strict=True))


def slerp(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Spherical linear interpolation of two tensors seen as vectors (Shoemake 1985), a share `weights[1]` of the way.

    With the angle a between them, sin((1 - t) a) / sin(a) x + sin(t a) / sin(a) y: two tensors of one norm keep it.
    Where a direction is undefined (a zero tensor, opposite or parallel ones) it is the straight line.
    """
    x, y = tensors
    if not x.any() or not y.any():
        return linear(tensors, weights)
    u, v = x / x.norm(), y / y.norm()
    angle = 2 * math.atan2((u - v).norm().item(), (u + v).norm().item())  # exact near 0 and pi, unlike acos
    if not PARALLEL < angle < math.pi - PARALLEL:
        return linear(tensors, weights)
    return sum(math.sin(w * angle) / math.sin(angle) * z for w, z in zip(weights, tensors, strict=True))  # type: ignore


def ties(tensors: Sequence[Tensor], weights: Sequence[float], base: Tensor, density: float) -> Tensor:
    """TIES (Yadav et al. 2023): trim, elect signs, merge what agrees.

    Of every model's change to the base the `density` largest entries are kept; each entry's sign is that of the
    weighted sum of the kept changes; the result is the base plus the weighted mean of the kept changes of that sign
    (the paper's lambda is 1). Trimming is per tensor, as in `peft`, where the paper trims a model's changes as a whole.
    A model merged with itself gives itself back only at density 1.
    """
    kept = torch.stack([magnitude_based_pruning(tensor - base, density) for tensor in tensors])  # [N, ...]
    weight = _column(weights, kept)
    agree = calculate_majority_sign_mask(weight * kept)
    return base + (agree * weight * kept).sum(0) / (agree * weight).sum(0).clamp(min=min(weights))


def gaussian(tensors: Sequence[Tensor], weights: Sequence[float], base: Tensor) -> Tensor:
    """Mean weighted, entry by entry, by how unlikely each model's change is to be noise.

    The changes d_i of model i to the base within one tensor are taken for noise from N(0, s_i^2), s_i^2 the mean of
    d_i^2. An entry's coefficient is one minus its likelihood under that Gaussian, relative to its peak:

        c_i = w_i (1 - exp(-d_i^2 / (2 s_i^2)))        merged = base + sum_i c_i d_i / sum_i c_i

    So an entry follows the model that changed it most for that model's standards; how far a model moved as a whole (its
    learning rate, its number of steps) does not matter. Limits: equal models give themselves back; the order of the
    models does not matter; every entry lies between the models' entries; a tensor that only one model changed is that
    model's; an entry that none changed is the base's. Opposite changes are averaged: signs are not elected as in TIES.
    """
    stacked = torch.stack(list(tensors))  # [N, ...]
    change = stacked - base
    variance = change.square().view(len(change), -1).mean(1).view(-1, *[1] * base.dim())
    surprise = -torch.expm1(-change.square() / (2 * variance).clamp(min=torch.finfo(change.dtype).tiny))
    weight = _column(weights, stacked) * surprise
    share = weight / weight.sum(0).clamp(min=torch.finfo(change.dtype).tiny)
    return stacked[0] + (share * (stacked - stacked[0])).sum(0)


def _column(weights: Sequence[float], stacked: Tensor) -> Tensor:
    """The weights, to be multiplied with models stacked along the first axis. [N, 1, ...]"""
    return torch.tensor(weights, dtype=stacked.dtype, device=stacked.device).view(-1, *[1] * (stacked.dim() - 1))


# -- checkpoints -------------------------------------------------------------------------------------------------------


class Weights:
    """The tensors of a safetensors checkpoint, read one by one.

    Raises:
        ValueError: no configuration, no safetensors files, or a file that cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.family = json.loads((folder / "config.json").read_text()).get("model_type")
            self.files = {file: safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))}
        except (OSError, ValueError, SafetensorError) as error:
            raise ValueError(f"{folder}: cannot be read as a checkpoint ({error})") from error
        if not self.files:
            raise ValueError(f"{folder}: holds no *.safetensors; give a checkpoint in transformers format")
        self._file = {key: file for file, opened in self.files.items() for key in opened.keys()}  # noqa: SIM118

    def shapes(self) -> Mapping[str, list[int]]:
        """Shape of every tensor, from the headers alone."""
        return {key: self.files[file].get_slice(key).get_shape() for key, file in self._file.items()}

    def __getitem__(self, key: str) -> Tensor:
        return self.files[self._file[key]].get_tensor(key)


Combine: TypeAlias = Callable[[Sequence[Tensor], Tensor | None], Tensor]


def merge(
    models: Sequence[str],
    out: Path,
    method: Method,
    weights: Sequence[float] = (),
    base: str | None = None,
    density: float = 0.2,
) -> Path:
    """Writes the merge of `models` to the new folder `out`; returns it.

    Tensors are merged in float32 on the best device and written in the type, under the names and in the shards of the
    first checkpoint, whose tokenizer, processor and configuration are taken over. At most one shard of the result and
    one tensor of every model are in memory. `merge.json` records how it was made.

    Args:
        models: checkpoint folders or hub ids, two or more (SLERP: two).
        weights: share of each model, summing to 1; none means equal shares.
        base: the checkpoint that all were tuned from, for `gaussian` and `ties`.
        density: share of the changes that TIES keeps.

    Raises:
        ValueError: a setting that the method cannot work with, checkpoints that do not fit together, or `out` exists.
    """
    shares = list(weights) or [1 / len(models)] * len(models)
    _check(models, out, method, shares, base, density)
    opened = [Weights(fetch(path, "models")) for path in models]
    origin = Weights(fetch(base, "--base")) if base else None
    for other in [*opened[1:], *([origin] if origin else [])]:
        _check_fit(opened[0], other)
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    combine = _combine(method, shares, density)
    for file, first in opened[0].files.items():
        merged = {key: _merged(key, opened, origin, combine) for key in first.keys()}  # noqa: SIM118
        save_file(merged, partial / file.name, metadata={"format": "pt"})
    _copy_rest(opened[0].folder, partial)
    record = {"method": method, "models": list(models), "weights": shares, "base": base, "density": density}
    (partial / "merge.json").write_text(json.dumps(record, indent=2))
    return partial.rename(out)


def _combine(method: Method, weights: Sequence[float], density: float) -> Combine:
    methods: dict[Method, Callable[..., Tensor]] = {
        "linear": lambda tensors, base: linear(tensors, weights),
        "slerp": lambda tensors, base: slerp(tensors, weights),
        "ties": lambda tensors, base: ties(tensors, weights, base, density),
        "gaussian": lambda tensors, base: gaussian(tensors, weights, base),
    }
    return methods[method]


def _merged(key: str, models: Sequence[Weights], base: Weights | None, combine: Combine) -> Tensor:
    tensors = [model[key] for model in models]
    kept = tensors[0].dtype
    if not kept.is_floating_point:
        if not all(torch.equal(tensors[0], tensor) for tensor in tensors):
            raise ValueError(f"{key} holds {kept} and differs between the models: only floats can be merged")
        return tensors[0]
    wide = torch.promote_types(kept, torch.float32)
    device = best_device()
    origin = base[key].to(device, wide) if base else None
    return combine([tensor.to(device, wide) for tensor in tensors], origin).to("cpu", kept)


def _copy_rest(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.suffix in COPIED and file.is_file():
            shutil.copyfile(file, target / file.name)


def _check(
    models: Sequence[str], out: Path, method: Method, shares: Sequence[float], base: str | None, density: float
) -> None:
    if len(models) < 2 or (method == "slerp" and len(models) != 2):
        need = "two" if method == "slerp" else "two or more"
        raise ValueError(f"models = {' '.join(models)!r}: --method {method} merges {need} checkpoints")
    if (base is None) == (method in ("gaussian", "ties")):
        remedy = "needs --base, the checkpoint that the models were tuned from" if base is None else "uses no --base"
        raise ValueError(f"--base = {base!r}: --method {method} {remedy}")
    if len(shares) != len(models):
        raise ValueError(f"--weights = {list(shares)}: give one share for each of the {len(models)} models")
    if min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"--weights = {list(shares)}: must be above 0 and sum to 1, they sum to {sum(shares):g}")
    if not 0 < density <= 1:
        raise ValueError(f"--density = {density}: must be above 0 and at most 1")
    if out.exists():
        raise ValueError(f"--out = {str(out)!r} exists: name a new folder")


def _check_fit(first: Weights, other: Weights) -> None:
    """Same family, same names, same shapes."""
    pair = f"{first.folder} and {other.folder} cannot be merged"
    if first.family != other.family:
        raise ValueError(f"{pair}: model_type {first.family!r} against {other.family!r}")
    shapes, others = first.shapes(), other.shapes()
    if alone := sorted(shapes.keys() ^ others.keys()):
        owner = first if alone[0] in shapes else other
        raise ValueError(f"{pair}: {len(alone)} tensors are in one alone, first {alone[0]!r} in {owner.folder}")
    for key, shape in shapes.items():
        if shape != others[key]:
            raise ValueError(f"{pair}: {key!r} has shape {shape} against {others[key]}")
