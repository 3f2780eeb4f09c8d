"""A second device for machines that have none: it computes as the CPU and refuses to mix its tensors with the CPU's.

Importing this registers the device type "second" for good, so only a process of its own may do so. As on a GPU, an
operation on tensors of both devices fails, but for 0-dim tensors of the CPU and for the CPU's indices; `.numpy()`
fails; `.cpu()`, `.item()` and `.tolist()` copy. Unlike a GPU's, its tensors can be saved as they are: what is read back
lies on the CPU. Kernels, graphs, memory and rounding of another chip are not shown.

Built on PyTorch's experimental Python backend for PrivateUse1.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration as backends

from unison.planning.peak_memory import INDEXED, each_tensor, tensors_in

NAME = "second"
aten = torch.ops.aten
TRANSFERS = {aten._to_copy.default, aten.copy_.default}
FACTORIES = (
    "empty.memory_format empty_strided arange arange.start arange.start_step linspace eye eye.m randperm "
    "tril_indices triu_indices"
)


class Module(backends._DummyBackendModule):
    """`torch.second`, as far as PyTorch asks for it."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class There(Tensor):
    """A tensor of the second device; `here` holds its numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made: Any = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            here.stride(),
            here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
        )
        made.here = here
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"There({self.here!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.detach().__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied = There(self.here.detach().clone())
            is_parameter = isinstance(self, nn.Parameter)
            memo[id(self)] = nn.Parameter(copied, self.requires_grad) if is_parameter else copied
        return memo[id(self)]

    @property
    def data(self) -> There:  # type: ignore[override]
        return There(self.here.detach())

    @data.setter
    def data(self, other: There) -> None:
        self.here = other.here

    def tolist(self) -> Any:
        return self.here.tolist()

    def untyped_storage(self) -> Any:
        return self.here.untyped_storage()

    def data_ptr(self) -> int:
        return self.here.data_ptr()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        target = given.get("device")
        _refuse_mixed(func, [*tensors_in(args), *tensors_in(list(given.values()))], args)
        given |= {"device": torch.device("cpu")} if target is not None else {}
        given |= {"pin_memory": False} if "pin_memory" in given else {}
        out = func(*each_tensor(args, _here), **{name: each_tensor(x, _here) for name, x in given.items()})
        if _in_place(func):
            return args[0]
        stays = target is None or torch.device(target).type == NAME
        return each_tensor(out, There) if stays else out


def _here(tensor: Tensor) -> Tensor:
    return tensor.here if isinstance(tensor, There) else tensor


def _refuse_mixed(func: Any, tensors: list[Tensor], args: Any) -> None:
    foreign = any(not isinstance(x, There) and x.dim() for x in tensors)
    if foreign and func not in TRANSFERS and not (func in INDEXED and isinstance(args[0], There)):
        sizes = [tuple(x.shape) for x in tensors]
        raise RuntimeError(f"{func}: tensors of the CPU and of the second device, sizes {sizes}")


@cache
def _in_place(func: Any) -> bool:
    first = next(iter(func._schema.arguments), None)
    return bool(first and first.alias_info and first.alias_info.is_write and func._schema.returns)


def _copied(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _here(target).copy_(_here(source))
    return target


def _made_there(op: Any) -> Any:
    ignored = ("device", "pin_memory", "layout", "memory_format")
    return lambda *args, **kwargs: There(op(*args, **{k: v for k, v in kwargs.items() if k not in ignored}))


def register() -> torch.library.Library:
    backends._setup_privateuseone_for_python_backend(NAME, backend_module=Module())
    library = torch.library.Library("aten", "IMPL")
    for name in ("_copy_from", "_copy_from_and_resize"):
        library.impl(name, _copied, "PrivateUse1")
    for name in FACTORIES.split():
        base, _, overload = name.partition(".")
        library.impl(name, _made_there(getattr(getattr(aten, base), overload or "default")), "PrivateUse1")
    return library


LIBRARY = register()
DEVICE = torch.device(NAME, 0)
