"""One more position through any decoder with shapes that never change, so that the step can be compiled.

The cache has its full length from the start and a step writes at an index that is a tensor, so all steps of a rollout
are one program. On a GPU it is captured as a CUDA graph besides, which launches hundreds of small kernels at once; the
price is attention over the whole cache from the first step on. Lengths are rounded up, so that rollouts with prompts of
other lengths run the same program.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LENGTHS = 128
"""Caches have a multiple of so many positions."""


class StaticCache:
    """Keys and values at their full length. A `transformers` layer calls only `update`."""

    def __init__(self, layers: Sequence[tuple[Tensor, Tensor]], at: Tensor) -> None:
        self.layers = layers  # each [B, H, S, D]
        self.at = at  # [1] where the next position goes

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Writes the new position's keys and values; returns those of all positions, filled or not."""
        keys, values = self.layers[layer]
        keys.index_copy_(2, self.at, key.to(keys.dtype))
        values.index_copy_(2, self.at, value.to(values.dtype))
        return keys, values


class StaticStep:
    """`cpu.Decoder` for any network, with static shapes."""

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[tuple[Tensor, Tensor]],
        visible: Tensor,
        lengths: Tensor,
        filled: int,
        compiled: bool,
    ) -> None:
        """Takes over the cache; arguments as those of `cpu.Decoder`.

        Args:
            compiled: run the compiled step; else the same step eagerly.
        """
        more = -visible.shape[1] % LENGTHS
        self.network, self.filled, self.steps = network, filled, 0
        self.layers = [(_longer(k, filled, more), _longer(v, filled, more)) for k, v in layers]
        self.visible = F.pad(visible, (0, more))
        self.positions = lengths[:, None].clone()
        self.at = torch.full((1,), filled, device=lengths.device)
        self.step = compiled_step() if compiled else step
        self.captured = compiled and lengths.device.type == "cuda"
        self.run: Callable[[], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Embeddings of the next position of each row -> its states. [B, D]"""
        if self.run is None:
            self.x = x.clone()
            self.run = capture(self._once) if self.captured else self._once
        self.x.copy_(x)
        states = self.run()
        self.steps += 1
        self.positions += 1
        self.at += 1
        return states.clone()  # a captured graph gives the same memory every time

    def _once(self) -> Tensor:
        """A step that may be repeated: what it writes to the cache is the same again."""
        return self.step(self.network, self.x, self.layers, self.visible, self.positions, self.at)

    def cache(self) -> list[tuple[Tensor, Tensor]]:
        """Each layer's keys and values so far. [B, H, S, D]"""
        at = self.filled + self.steps
        return [(k[:, :, :at], v[:, :, :at]) for k, v in self.layers]


def step(
    network: nn.Module,
    x: Tensor,
    layers: Sequence[tuple[Tensor, Tensor]],
    visible: Tensor,
    positions: Tensor,
    at: Tensor,
) -> Tensor:
    """States [B, D] of embeddings [B, D] at positions [B, 1], which go to index `at` [1] of the cache."""
    mask = visible & (torch.arange(visible.shape[1], device=x.device) <= at)
    states = network(
        inputs_embeds=x[:, None],
        attention_mask=mask[:, None, None],
        position_ids=positions,
        past_key_values=StaticCache(layers, at),
        use_cache=True,
    ).last_hidden_state
    return states[:, -1]


@cache
def compiled_step() -> Callable[..., Tensor]:
    """The step as one program."""
    return torch.compile(step)


def capture(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A function of nothing but memory as a CUDA graph, whose result is in the same place every time."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles, chooses kernels, casts weights: nothing of this may be captured
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def _longer(x: Tensor, filled: int, more: int) -> Tensor:
    """With more positions. Those to come are zero, since masked values too must be finite. [B, H, S + more, D]"""
    x = F.pad(x, (0, 0, 0, more)).contiguous()
    x[:, :, filled:] = 0
    return x
