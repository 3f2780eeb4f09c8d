"""How much memory a computation takes, found by running it with weights that have no data.

The very functions that score actions run, forward and backward, and every storage that they make is counted from when
it is made to when it is freed. Weights and all that is made of them are hollow: sizes without data. What is small and
made of ids, masks and pictures alone is there and computed, so that a policy may ask it how long a row is or which
decisions are wanted. A pass of a published model takes seconds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

Program: TypeAlias = Callable[[], Iterable[Any]]
"""Some use of a network, inside which its weights have no data; what it returns is differentiated where it can be."""

META = torch.device("meta")
LARGE = 2**24
"""Bytes from which a tensor, such as a batch's noise, is hollow though no weight had a part in it."""
INDEXED = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}
"""Operations whose second argument may hold masks, which decide the size of the result."""


def peak_bytes(network: nn.Module, program: Program, *, gradients: bool = True) -> int:
    """The most bytes that are alive at once while a program runs and its results are differentiated, besides the
    weights and their gradients.

    Kernels are the CPU's; those of a GPU keep about the same for the backward pass.

    Args:
        network: on the meta device; parameters that require gradients are the trained ones.
        program: calls the network or parts of it.
        gradients: without them nothing is kept for a backward pass.
    """
    live = _Live()
    state = {name: live.weight(x, gradients) for name, x in [*network.named_parameters(), *network.named_buffers()]}
    whole = {f"network.{name}": tensor for name, tensor in state.items()}
    with live, torch.set_grad_enabled(gradients):
        functional_call(_Whole(network, program), whole, ())
    return live.most


class _Whole(nn.Module):
    """A program over a network, and its backward pass, as a module, whose weights can be replaced for a call."""

    def __init__(self, network: nn.Module, program: Program) -> None:
        super().__init__()
        self.network, self.program = network, program

    def forward(self) -> None:
        trained = [x.sum() for x in self.program() if isinstance(x, Tensor) and x.requires_grad]
        if trained:
            torch.stack(trained).sum().backward()


class _Hollow(Tensor):
    """A tensor of the CPU without data; its twin on the meta device has its sizes, and its storage in their bytes."""

    twin: Tensor

    @staticmethod
    def __new__(cls, twin: Tensor) -> _Hollow:
        made: Any = Tensor._make_wrapper_subclass(
            cls, twin.shape, twin.stride(), twin.storage_offset(), dtype=twin.dtype, device=torch.device("cpu")
        )
        made.twin = twin
        return made

    def numpy(self, *, force: bool = False) -> Any:
        """What leaves the network as a picture is black."""
        return np.zeros(self.shape, torch.empty(0, dtype=self.dtype).numpy().dtype)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of the program whose memory is counted")


class _Live(TorchDispatchMode):
    """Runs operations on hollow tensors, and counts the bytes of all storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}
        self._made: dict[Any, Any] = {}

    def weight(self, tensor: Tensor, trained: bool) -> Tensor:
        """Without data, and not counted, nor its gradient."""
        found = self._uncounted(tensor).requires_grad_(tensor.requires_grad)
        found.grad = self._uncounted(tensor) if trained and tensor.requires_grad else None
        return found

    def _uncounted(self, tensor: Tensor) -> _Hollow:
        twin = _like(tensor)
        self._known[_key(twin)] = None
        return _Hollow(twin)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {id(x.twin): x for x in tensors_in((args, *kwargs.values())) if isinstance(x, _Hollow)}
        if not given:
            out = func(*args, **kwargs)
            return out if func.is_view else each_tensor(out, self._small)
        if func in INDEXED:
            args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
        kwargs = {name: each_tensor(x, _twin) for name, x in kwargs.items() if name not in ("device", "generator")}
        kwargs |= {"device": META} if _takes_device(func) else {}
        out = self._of_twins(func, each_tensor(tuple(args), _twin), kwargs)
        # what was changed in place stays the same tensor
        return each_tensor(out, lambda x: given[id(x)] if id(x) in given else self._counted(_Hollow(x)))

    def _of_twins(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation makes on the meta device; asked once of arguments of the same sizes, for layers repeat."""
        if func.is_view or func._schema.is_mutable:
            return func(*args, **kwargs)
        key = (func, _sizes(args), _sizes(tuple(kwargs.items())))
        if key in self._made:
            return each_tensor(self._made[key], _like)
        out = func(*args, **kwargs)
        given = {_key(x) for x in tensors_in((args, *kwargs.values()))}
        if not given & {_key(x) for x in tensors_in(out)}:
            self._made[key] = each_tensor(out, _like)
        return out

    def _small(self, tensor: Tensor) -> Tensor:
        """What was computed, without its data if they are many."""
        large = tensor.untyped_storage().nbytes() >= LARGE
        return self._counted(_Hollow(_twin(tensor)) if large else tensor)

    def _counted(self, tensor: Tensor) -> Tensor:
        storage = (tensor.twin if isinstance(tensor, _Hollow) else tensor).untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self.now += size
            self.most = max(self.most, self.now)
            self._known[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        return tensor

    def _freed(self, key: int, size: int) -> None:
        del self._known[key]
        self.now -= size


@cache
def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def tensors_in(thing: Any) -> list[Tensor]:
    """Those of an operation's arguments or results, which are alone or in lists."""
    if isinstance(thing, list | tuple):
        return [tensor for part in thing for tensor in tensors_in(part)]
    return [thing] if isinstance(thing, Tensor) else []


def each_tensor(thing: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same, each tensor changed. (`torch.utils._pytree` takes ten times as long.)"""
    if isinstance(thing, list | tuple):
        return type(thing)(each_tensor(part, change) for part in thing)
    return change(thing) if isinstance(thing, Tensor) else thing


def _like(tensor: Tensor) -> Tensor:
    """Without data, and at once: `empty_like` asks Python on the meta device."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=META)


def _sizes(thing: Any) -> Any:
    """All that an operation on the meta device can know of its arguments."""
    if isinstance(thing, Tensor):
        return thing.shape, thing.stride(), thing.dtype
    if isinstance(thing, list | tuple):
        return tuple(map(_sizes, thing))
    return type(thing), thing


def _twin(tensor: Tensor) -> Tensor:
    return tensor.twin if isinstance(tensor, _Hollow) else _like(tensor)


def _places(index: Tensor | None) -> tuple[Tensor | None, ...]:
    """A mask that has data as the numbers of its places, in each dimension."""
    masks = index is not None and index.dtype == torch.bool and not isinstance(index, _Hollow)
    return index.nonzero(as_tuple=True) if masks else (index,)  # type: ignore[union-attr]
