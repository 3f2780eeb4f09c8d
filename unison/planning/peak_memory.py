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

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

Program: TypeAlias = Callable[[], Iterable[Tensor]]
"""Some use of a network, inside which its weights have no data; its results are differentiated if they can be."""

CPU = torch.device("cpu")
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
        trained = [result.sum() for result in self.program() if result.requires_grad]
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

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} outside of the program whose memory is counted")


class _Live(TorchDispatchMode):
    """Runs operations on hollow tensors, and counts the bytes of all storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()
        self._made: dict[Any, Any] = {}

    def weight(self, tensor: Tensor, trained: bool) -> Tensor:
        """Without data, and not counted, nor its gradient."""
        found = self._uncounted(tensor).requires_grad_(tensor.requires_grad)
        found.grad = self._uncounted(tensor) if trained and tensor.requires_grad else None
        return found

    def _uncounted(self, tensor: Tensor) -> _Hollow:
        twin = torch.empty_like(tensor, device="meta", requires_grad=False)
        self._known.add(twin.untyped_storage()._cdata)
        return _Hollow(twin)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        hollow = [x for x in _tensors((*args, *kwargs.values())) if isinstance(x, _Hollow)]
        if not hollow:
            out = func(*args, **kwargs)
            return out if func.is_view else _each(out, self._real)
        if func in INDEXED:
            args = (args[0], _places(args[1]), *args[2:])
        kwargs = {name: x for name, x in kwargs.items() if name not in ("device", "generator")}
        if _takes_device(func):
            kwargs["device"] = "meta"
        out = self._of_twins(func, _each(tuple(args), _twin), {name: _each(x, _twin) for name, x in kwargs.items()})
        return _each(out, lambda x: self._hollow(x, hollow))

    def _of_twins(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation makes on the meta device; asked once of arguments of the same sizes, for layers repeat."""
        if func.is_view or func._schema.is_mutable:
            return func(*args, **kwargs)
        key = (func, _sizes(args), _sizes(tuple(kwargs.items())))
        if key in self._made:
            return _each(self._made[key], torch.empty_like)
        out = func(*args, **kwargs)
        given = {x.untyped_storage()._cdata for x in _tensors(args)}
        like = _each(out, torch.empty_like)
        pairs = zip(_tensors((out,)), _tensors((like,)), strict=True)
        if all(a.stride() == b.stride() and a.untyped_storage()._cdata not in given for a, b in pairs):
            self._made[key] = like
        return out

    def _real(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().nbytes() < LARGE:
            return self._counted(tensor, tensor)
        return self._hollow(torch.empty_like(tensor, device="meta"))

    def _hollow(self, twin: Tensor, given: Iterable[_Hollow] = ()) -> Tensor:
        same = next((x for x in given if x.twin is twin), None)  # what was changed in place
        return same if same is not None else self._counted(_Hollow(twin), twin)

    def _counted(self, tensor: Tensor, holder: Tensor) -> Tensor:
        storage = holder.untyped_storage()
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


@cache
def _takes_device(func: Any) -> bool:
    return any(argument.name == "device" for argument in func._schema.arguments)


def _tensors(things: Iterable[Any]) -> list[Tensor]:
    flat = (x for thing in things for x in (thing if isinstance(thing, list | tuple) else (thing,)))
    return [x for x in flat if isinstance(x, Tensor)]


def _each(thing: Any, change: Callable[[Tensor], Any]) -> Any:
    """An argument or a result with its tensors changed: operations take and give them alone or in lists."""
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, list | tuple):
        return type(thing)(_each(x, change) for x in thing)
    return thing


def _sizes(thing: Any) -> Any:
    """All that an operation on the meta device can know of its arguments."""
    if isinstance(thing, Tensor):
        return thing.shape, thing.stride(), thing.dtype
    if isinstance(thing, list | tuple):
        return tuple(map(_sizes, thing))
    return type(thing), thing


def _twin(tensor: Tensor) -> Tensor:
    return tensor.twin if isinstance(tensor, _Hollow) else torch.empty_like(tensor, device="meta")


def _places(indices: Any) -> list[Tensor | None]:
    """Masks that have data as the numbers of their places."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, _Hollow):
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found
