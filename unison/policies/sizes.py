"""What a dry run needs of a family: its policies without weights, by hub id or from a folder, and their drawings.

A family says so in its `shape.py`, where the published sizes are its own table, and names it in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from unison.config import PolicyConfig
from unison.policies import FAMILIES, family_of, locate, named
from unison.policies.base import Policy
from unison.types import Action, Sampling


@dataclass(frozen=True)
class Shape:
    """A checkpoint without its weights."""

    policy: Policy
    """With its network on the meta device."""
    drawing: Callable[[Sampling | None], Action]
    """A drawing as such a sampling would make it but of no meaning; of None one that was given."""
    side: int
    """Pixels of a drawing along a side."""
    per_pass: Callable[[Sampling], int] | None = None
    """Of a drawing's sampling: rounds or steps, of all drawings, that are scored in one pass before it is freed; None
    where a drawing is scored in one."""


@dataclass(frozen=True)
class Shapes:
    """The shapes of a family's checkpoints."""

    local: Callable[[Path, PolicyConfig], Shape]
    """Of a folder."""
    published: Mapping[str, Callable[[PolicyConfig], Shape]]
    """By hub id, from nothing but the published sizes and, where ids and pictures are laid out, a tokenizer of ours."""


def shape_of(config: PolicyConfig) -> Shape:
    """The shape of the checkpoint: of a local folder, or of a published one.

    Raises:
        ValueError: neither is at hand; what the policy itself refuses.
    """
    config = replace(config, attention="sdpa")  # whose backward pass runs on a CPU, and which keeps about the same
    families: dict[str, Shapes] = {name: named(family.shapes) for name, family in FAMILIES.items() if family.shapes}
    published = {path: read for family in families.values() for path, read in family.published.items()}
    if config.path in published:
        return published[config.path](config)
    folder = Path(locate(config.path)).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"policy.path = {config.path!r}: a dry run downloads nothing; shapes are known of {', '.join(published)} "
            "and for local folders"
        )
    family = family_of(str(folder))
    if family not in families:
        raise ValueError(
            f"policy.path = {config.path!r}: a dry run knows the memory of {', '.join(families)}, not of {family!r}; "
            "try the run itself with --optim.steps 1"
        )
    return families[family].local(folder, config)
