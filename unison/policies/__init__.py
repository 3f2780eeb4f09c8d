"""Policies: unified models that write, draw and score what they did, by family.

    base.py              the interface of all families
    actions.py           tokens as actions, and the texts and pictures that actions stand for
    grouping.py          what can be computed together: siblings, actions of one kind
    reference.py         the reference: weights remembered, swapped in, made to follow
    adapters.py          what is trained: frozen parts, LoRA adapters
    checkpoint_files.py  weights in files, every key accounted for
    merge.py             fine-tuned checkpoints merged into one
    decisions/           one decision, drawn or scored
    decoding/            how a decoder is run
    janus/               Janus and Janus-Pro
    showo/               Show-o
    metaquery/           MetaQuery

A family is a folder of its own with the class in policy.py (network.py and layout.py where it has them), a line in
FAMILIES, which names it by its checkpoints' config.json and never by their name, and an entry in
tests/policies/contract.py, whose claims it then passes.
"""

from __future__ import annotations

import json
from importlib import import_module
from operator import attrgetter
from pathlib import Path

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
    module, name = FAMILIES[family_of(path)].split(":")
    return attrgetter(name)(import_module(module))(path, config)


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
