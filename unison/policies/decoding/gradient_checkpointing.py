"""Gradient checkpointing of a decoder's layers while it scores (Chen et al., arXiv 1604.06174).

Each layer keeps its input alone and is computed once more in the backward pass. That costs one more forward pass and
saves all inner states but those of one layer, so it is worth it where they are large.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from unison.config import Recompute

FROM_BYTES = 2**29
"""Inner states from which "auto" recomputes."""


@contextmanager
def checkpointed(network: nn.Module, positions: int, choice: Recompute) -> Iterator[None]:
    """Inside it the layers of a `transformers` decoder are checkpointed, if the choice or their size says so.

    Only for passes whose layers change nothing on the way, for they run twice.

    Args:
        positions: of all rows together that go through the network.
    """
    wanted = choice == "always" or (choice == "auto" and kept_bytes(network, positions) >= FROM_BYTES)
    layers: list[nn.Module] = list(network.layers) if wanted and torch.is_grad_enabled() else []  # type: ignore[arg-type]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        # the forward, not the call: hooks of other libraries stay outside and run once
        vars(layer)["forward"] = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            if own is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = own


def kept_bytes(network: nn.Module, positions: int) -> float:
    """What the backward pass keeps of so many positions: ten states of the network's width in a layer and three of the
    feed-forward width, about."""
    config: Any = network.config
    weight = next(network.parameters())
    device = weight.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    per_layer = 10 * config.hidden_size + 3 * config.intermediate_size
    return float(positions * config.num_hidden_layers * per_layer * kind.itemsize)
