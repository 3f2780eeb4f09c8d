"""Which items a training step takes: a pure function of the step, so that a resumed run needs no saved state."""

from __future__ import annotations

import random
from functools import lru_cache

from unison.data import Items
from unison.data.streams import StreamItems


def step_items(items: Items, count: int, step: int, seed: int) -> list[int]:
    """Which `count` items a training step takes: those of `step_indices`, or the next of a stream."""
    if isinstance(items, StreamItems):
        return list(range(step * count, (step + 1) * count))
    return step_indices(len(items), count, step, seed)


def step_indices(count: int, items: int, step: int, seed: int) -> list[int]:
    """The item indices of a training step: the next `items` of an endless chain of permutations.

    Each epoch is a permutation of range(count) and may end within a step. The step then still holds no index
    twice, provided that a step takes at most half of the items (count >= 2 * items).

    Raises:
        ValueError: fewer items than a step takes.
    """
    if items > count:
        raise ValueError(
            f"optim.items_per_step = {items}: must be at most the {count} items of the data set; "
            "lower it or give more data"
        )
    places = range(step * items, (step + 1) * items)
    return [_epoch(count, items, seed, place // count)[place % count] for place in places]


@lru_cache(maxsize=4)
def _epoch(count: int, items: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation that puts off what the step it shares with the previous epoch has already taken."""
    order = _permutation(count, seed, epoch)
    begun = epoch * count % items  # places of the step under way that the previous epoch filled
    taken = set(_permutation(count, seed, epoch - 1)[count - begun :])
    return (*sorted(order[:items], key=lambda index: index in taken), *order[items:])


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(random.Random(f"{seed}:{epoch}").sample(range(count), count))
