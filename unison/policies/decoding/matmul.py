"""Products of few rows with a large matrix, on the CPU: prepacked weights, in the layout oneDNN computes with.

PyTorch's own `linear` lays a matrix out anew at every call, which pays for itself on the many rows of scoring but not
on the one position a row of sampling. Prepacked products are the same up to rounding, in about half the time when rows
are few. Where oneDNN cannot prepack (another device or type), everything here computes as PyTorch does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Product: TypeAlias = Callable[[Tensor], Tensor]


@contextmanager
def prepacked(*parts: object) -> Iterator[None]:
    """Inside it the linear layers of those of the parts that are modules compute with prepacked weights."""
    modules = (m for part in parts if isinstance(part, nn.Module) for m in part.modules())
    # not a subclass, whose forward may mean more, nor a layer that another library has wrapped
    linears = {m for m in modules if type(m) is nn.Linear and "forward" not in vars(m) and _prepackable(m.weight)}
    for linear in linears:
        # an attribute of the instance hides the method of its class until it is deleted
        vars(linear)["forward"] = product(linear)
    try:
        yield
    finally:
        for linear in linears:
            del vars(linear)["forward"]


def product(*linears: nn.Linear) -> Product:
    """x -> what the given layers, all of one input, make of it, side by side; prepacked if possible.

    It computes in the type that autocast has here and now, else in that of the weights, and casts its input to it.
    """
    kind = compute_type(linears[0].weight)
    weight = _joined([linear.weight.detach() for linear in linears]).to(kind)
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    assert len(biases) in (0, len(linears)), "either all layers of a product have a bias or none"
    bias = _joined(biases).to(kind) if biases else None
    if not _prepackable(weight):
        return partial(_linear, weight, bias)
    return partial(_prepacked_linear, torch.ops.mkldnn._reorder_linear_weight(weight), bias)


def compute_type(weight: Tensor) -> torch.dtype:
    """The type of a product with this weight: that of autocast if it is on."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _prepackable(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and (kind := compute_type(weight)) in (torch.float32, torch.bfloat16)
        and (kind is torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return F.linear(x.to(weight.dtype), weight, bias)


def _prepacked_linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), weight, bias, "none", [], "")
