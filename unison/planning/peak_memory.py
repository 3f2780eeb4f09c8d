"""How much memory a computation takes, found by running it on tensors without data.

The very functions that score actions run on fake tensors (`torch._subclasses.FakeTensorMode`), forward and backward,
and every storage that they make is counted from when it is made to when it is freed. Nothing is computed: a pass of a
published model takes a second.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Program: TypeAlias = Callable[[], Tensor]
"""Some use of a network, inside which its weights have no data; what it returns is differentiated if it can be."""


def peak_bytes(network: nn.Module, program: Program, *, bfloat16: bool, gradients: bool = True) -> int:
    """The most bytes that are alive at once while a program runs and its result is differentiated, besides the weights
    and their gradients.

    Kernels are the CPU's; those of a GPU keep about the same for the backward pass.

    Args:
        network: on the meta device; parameters that require gradients are the trained ones.
        program: calls the network or parts of it.
        bfloat16: matrix products in bfloat16 by autocast.
        gradients: without them nothing is kept for a backward pass.
    """
    with FakeTensorMode():
        weights = _without_data(dict(network.named_parameters()))
        state = weights | _without_data(dict(network.named_buffers()))
        for weight in weights.values() if gradients else ():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None  # else they would count as its own
        whole = {f"network.{name}": tensor for name, tensor in state.items()}
        with _Live() as live, torch.set_grad_enabled(gradients):
            functional_call(_Whole(network, program, bfloat16), whole, ())
    return live.most


def _without_data(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.empty(t.shape, dtype=t.dtype, device="cpu").requires_grad_(t.requires_grad)
        for name, t in tensors.items()
    }


class _Whole(nn.Module):
    """A program over a network, and its backward pass, as a module, whose weights can be replaced for a call."""

    def __init__(self, network: nn.Module, program: Program, bfloat16: bool) -> None:
        super().__init__()
        self.network, self.program, self.in_bfloat16 = network, program, bfloat16

    def forward(self) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.in_bfloat16):
            result = self.program()
        if result.requires_grad:
            result.sum().backward()


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in before:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
