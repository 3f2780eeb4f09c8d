"""The reference that a policy's divergence is measured from: weights remembered, swapped in, and made to follow."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from unison.policies.adapters import is_adapter


class WeightCopy:
    """A copy of a network's trained weights as they are now; it can take their place and follow them."""

    def __init__(self, network: nn.Module, adapters: bool = True) -> None:
        """`adapters`: whether LoRA's are copied too."""
        self._network = network
        trained = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self._copy = {name: p.detach().clone() for name, p in trained if adapters or not is_adapter(name)}

    @property
    def has_adapters(self) -> bool:
        """Whether LoRA's adapters are among the copied weights."""
        return any(map(is_adapter, self._copy))

    def each(self, change: Callable[[Tensor], Tensor]) -> WeightCopy:
        """Another copy, whose tensors are what `change` makes of this one's."""
        other = copy.copy(self)
        other._copy = {name: change(tensor) for name, tensor in self._copy.items()}
        return other

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside it the network has the copied weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        parameters = dict(self._network.named_parameters())
        for name, other in self._copy.items():
            parameters[name].data, self._copy[name] = other, parameters[name].data

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """The copy becomes `decay` of itself and for the rest the trained weights."""
        parameters = dict(self._network.named_parameters())
        for name, own in self._copy.items():
            own.lerp_(parameters[name], 1 - decay)

    def state_dict(self) -> dict[str, Tensor]:
        return self._copy

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, own in self._copy.items():
            own.copy_(state[name])


@contextmanager
def in_reference(kept: WeightCopy | None, adapted: Any | None) -> Iterator[None]:
    """Inside it a network has the remembered weights, and the adapters of its `peft` wrapper off if they are none."""
    copied = kept is not None and kept.has_adapters
    off = adapted.disable_adapter() if adapted and not copied else nullcontext()
    with off, kept.in_place() if kept else nullcontext():
        yield
