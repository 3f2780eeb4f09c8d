"""Policies by family. The family is read from the checkpoint's config.json, never from its name."""

from __future__ import annotations

from importlib import import_module
from operator import attrgetter
from pathlib import Path

from unison import hub
from unison.config import JoinConfig, PolicyConfig
from unison.policies.base import Policy

FAMILIES = {
    "janus": "unison.policies.janus.policy:Janus.load",
    "multi_modality": "unison.policies.janus.deepseek:load",
    "showo": "unison.policies.showo.policy:ShowO.load",
    "Showo": "unison.policies.showo.policy:ShowO.load",
    "metaquery": "unison.policies.metaquery.policy:MetaQuery.load",
}
"""What loads a checkpoint, by `model_type`; "multi_modality" is Janus in DeepSeek's own layout, and "Showo" the class
that Show-o's published configurations, which have no `model_type`, name instead."""


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
    module, name = FAMILIES[family_of(path)].split(":")
    return attrgetter(name)(import_module(module))(path, config)


def _join(language_model: str, diffusion_model: str, config: PolicyConfig) -> Policy:
    import torch

    from unison.policies.metaquery.network import join
    from unison.policies.metaquery.policy import MetaQuery

    try:
        parts = join(language_model, diffusion_model, JoinConfig(), getattr(torch, config.dtype))
    except ValueError as error:
        raise ValueError(f"policy.path = {config.path!r}: {error}") from error
    return MetaQuery(parts.network, parts.tokenizer, parts.image_processor, config)
