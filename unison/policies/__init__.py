"""Policies by family. The family is read from the checkpoint's config.json, never from its name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

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
JOINED = "+"
"""Stands between a language model and a diffusion model that are joined on loading, as `unison join` does it."""
ASSETS = Path(__file__).parent.parent / "assets"


def locate(path: str) -> str:
    """A bundled model's folder for `assets/<name>`, a local folder, or else a hub id, or two to be joined, unchanged.

    Raises:
        ValueError: a local folder that does not exist or holds no checkpoint.
    """
    if path.startswith("assets/"):
        folder = ASSETS / path.removeprefix("assets/")
        if not folder.is_dir():
            known = ", ".join(sorted(f"assets/{p.name}" for p in ASSETS.iterdir() if p.is_dir()))
            raise ValueError(f"policy.path = {path!r}: no such bundled model; choices: {known}")
        return str(folder)
    folder = Path(path).expanduser()
    if JOINED in path and not folder.exists():
        return path
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"policy.path = {path!r}: the folder has no config.json; give a checkpoint folder")
        return str(folder)
    if looks_local:
        raise ValueError(f"policy.path = {path!r}: no such folder, and not a hub id of the form owner/name")
    return path


def family_of(path: str) -> str:
    """The family named in the checkpoint's config.json: by `model_type`, or else by `_class_name`, `diffusers`' name.

    Raises:
        ValueError: the file cannot be fetched or read, or names a family that Unison does not carry.
    """
    folder = Path(path)
    try:
        if folder.is_dir():
            text = (folder / "config.json").read_text()
        else:
            from huggingface_hub import hf_hub_download

            text = Path(hf_hub_download(path, "config.json")).read_text()
        raw = json.loads(text)
        family = raw.get("model_type") or raw.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"policy.path = {path!r}: cannot read its config.json ({error})") from error
    if family not in FAMILIES:
        raise ValueError(f"policy.path = {path!r}: model_type {family!r} is not one of {', '.join(FAMILIES)}")
    return family


def load_policy(config: PolicyConfig) -> Policy:
    """Loads the checkpoint as a policy of its family, or joins two.

    Raises:
        ValueError: missing, truncated, incomplete or foreign checkpoint.
    """
    path = locate(config.path)
    if JOINED in path and not Path(path).is_dir():
        return _join(config)
    return named(FAMILIES[family_of(path)].load)(path, config)


def _join(config: PolicyConfig) -> Policy:
    import torch

    from unison.policies.metaquery.network import join
    from unison.policies.metaquery.policy import MetaQuery

    language_model, _, diffusion_model = config.path.partition(JOINED)
    try:
        parts = join(language_model, diffusion_model, JoinConfig(), getattr(torch, config.dtype))
    except ValueError as error:
        raise ValueError(f"policy.path = {config.path!r}: {error}") from error
    return MetaQuery(parts.network, parts.tokenizer, parts.image_processor, config)
