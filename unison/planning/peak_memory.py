"""How much memory a computation takes, found by running it with weights that have no data.

The very functions that score actions run, forward and backward, and every storage that they make is counted from when
it is made to when it is freed. Weights, and all that is made of them, are fake (`torch._subclasses.FakeTensorMode`);
what is small and made of ids, masks and pictures alone is there and computed, so that a policy may ask it how long a
row is or which decisions are wanted. A pass of a published model takes seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

Program: TypeAlias = Callable[[], Iterable[Tensor]]
"""Some use of a network, inside which its weights have no data; its results are differentiated if they can be."""

LARGE = 2**24
"""Bytes from which a tensor, such as a batch's noise, has no data though no weight had a part in it."""
INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}
"""Operations whose second argument may hold masks, the size of whose result they decide."""


def peak_bytes(network: nn.Module, program: Program, *, gradients: bool = True) -> int:
    """The most bytes that are alive at once while a program runs and its results are differentiated, besides the
    weights and their gradients.

    Kernels are the CPU's; those of a GPU keep about the same for the backward pass.

    Args:
        network: on the meta device; parameters that require gradients are the trained ones.
        program: calls the network or parts of it.
        gradients: without them nothing is kept for a backward pass.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        weights = _without_data(dict(network.named_parameters()))
        state = weights | _without_data(dict(network.named_buffers()))
        for weight in weights.values() if gradients else ():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None  # else they would count as its own
    whole = {f"network.{name}": tensor for name, tensor in state.items()}
    with _Live(fake) as live, torch.set_grad_enabled(gradients):
        functional_call(_Whole(network, program), whole, ())
    return live.most


def _without_data(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.empty(t.shape, dtype=t.dtype, device="cpu").requires_grad_(t.requires_grad)
        for name, t in tensors.items()
    }


class _Whole(nn.Module):
    """A program over a network, and its backward pass, as a module, whose weights can be replaced for a call."""

    def __init__(self, network: nn.Module, program: Program) -> None:
        super().__init__()
        self.network, self.program = network, program

    def forward(self) -> None:
        trained = [result.sum() for result in self.program() if result.requires_grad]
        if trained:
            torch.stack(trained).sum().backward()


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that operations make, while they live."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.now = self.most = 0
        self._fake = fake
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked more often than all else together
            return torch.device("cpu")
        if func.is_view:
            return func(*args, **(kwargs or {}))
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        if func in INDEXED:
            args = (args[0], _places(args[1]), *args[2:])
        out = func(*args, **(kwargs or {}))
        return tree_map(lambda x: self._made(x) if isinstance(x, Tensor) and _key(x) not in before else x, out)

    def _made(self, tensor: Tensor) -> Tensor:
        """What an operation made, counted, without its data if it is large."""
        if tensor.untyped_storage().nbytes() >= LARGE and not isinstance(tensor, FakeTensor):
            tensor = self._fake.from_tensor(tensor)
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._freed, key, size)
        return tensor

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _places(indices: Any) -> list[Tensor | None]:
    """Masks that have data as the numbers of their places."""
    found: list[Tensor | None] = []
    for index in indices:
        masks = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
        found += index.nonzero(as_tuple=True) if masks else (index,)
    return found


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
