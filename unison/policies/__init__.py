"""Policies: a family of models each, that write, draw and score what they did by the same code.

    base.py              the interface
    actions.py           actions made of ids, and what they stand for
    grouping.py          what can be computed together: siblings, actions of one kind
    reference.py         the reference that a divergence is measured from
    adapters.py          what is trained: all but frozen parts, or LoRA adapters
    sizes.py             what a dry run needs of a family
    checkpoint_files.py  weights in other formats: safetensors, every key accounted for
    merge.py             fine-tuned checkpoints of one base into one
    decisions/           one decision, drawn or scored: pure mathematics
    decoding/            how a decoder is run
    janus/               Janus and Janus-Pro
    showo/               Show-o
    metaquery/           Qwen2.5-VL, learnable queries and SANA as one policy

To add a family: a folder with `policy.py` (a Policy), `shape.py` (its published sizes) and what else it needs, a line
in FAMILIES, and a fixture in `tests/policies/contract.py`, whose claims it then has to meet. The family is read from
the checkpoint's config.json, never from its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

from unison import hub
from unison.config import JoinConfig, PolicyConfig
from unison.policies.base import Policy


@dataclass(frozen=True)
class Family:
    """Where a family's parts are, each as "module:name"."""

    load: str
    """Loads a checkpoint."""
    shapes: str
    """Its `sizes.Shapes`, for the dry run; "" where nothing is known of its memory."""


def named(name: str) -> Any:
    """What "module:name" stands for."""
    module, _, path = name.partition(":")
    return attrgetter(path)(import_module(module))


_SHOWO = Family("unison.policies.showo.policy:ShowO.load", "unison.policies.showo.shape:SHAPES")
FAMILIES = {
    "janus": Family("unison.policies.janus.policy:Janus.load", "unison.policies.janus.shape:SHAPES"),
    "multi_modality": Family("unison.policies.janus.deepseek:load", "unison.policies.janus.shape:DEEPSEEK"),
    "showo": _SHOWO,
    "Showo": _SHOWO,
    "metaquery": Family("unison.policies.metaquery.policy:MetaQuery.load", "unison.policies.metaquery.shape:SHAPES"),
}
"""The families by `model_type`; "multi_modality" is Janus in DeepSeek's own layout, and "Showo" the class that Show-o's
published configurations, which have no `model_type`, name instead."""


def locate(path: str) -> str:
    """The folder of a checkpoint that is local or bundled; a hub id, or two to be joined, stay as they are.

    Raises:
        ValueError: as `hub.locate`, or the folder holds no checkpoint.
    """
    found = hub.locate(path, "policy.path")
    if Path(found).is_dir() and not (Path(found) / "config.json").is_file():
        raise ValueError(f"policy.path = {path!r}: the folder has no config.json; give a checkpoint folder")
    return found


def family_of(path: str) -> str:
    """The family named in the checkpoint's config.json: by `model_type`, or else by `_class_name`, `diffusers`' name.

    Raises:
        ValueError: the file cannot be fetched or read, or names a family that Unison does not carry.
    """
    raw = hub.read(f"policy.path = {path!r}: cannot read its config.json", lambda: hub.read_json(path))
    family = raw.get("model_type") or raw.get("_class_name")
    if family not in FAMILIES:
        raise ValueError(f"policy.path = {path!r}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    return family


def load_policy(config: PolicyConfig) -> Policy:
    """Loads the checkpoint as a policy of its family, or joins two.

    Raises:
        ValueError: missing, truncated, incomplete or foreign checkpoint.
    """
    path = locate(config.path)
    if parts := hub.halves(path):
        return _join(*parts, config)
    return named(FAMILIES[family_of(path)].load)(path, config)


def _join(language_model: str, diffusion_model: str, config: PolicyConfig) -> Policy:
    import torch

    from unison.policies.metaquery.network import join
    from unison.policies.metaquery.policy import MetaQuery

    try:
        parts = join(language_model, diffusion_model, JoinConfig(), getattr(torch, config.dtype))
    except ValueError as error:
        raise ValueError(f"policy.path = {config.path!r}: {error}") from error
    return MetaQuery(parts.network, parts.tokenizer, parts.image_processor, config)
