"""Shapes of MetaQuery checkpoints, for the dry run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unison.config import JoinConfig, PolicyConfig
from unison.hub import ASSETS, JOINED
from unison.policies.decisions import sde
from unison.policies.metaquery import diffusion
from unison.policies.metaquery.network import MetaQueryConfig, MetaQueryNetwork, read_config, read_processors
from unison.policies.metaquery.policy import MetaQuery
from unison.policies.sizes import Shape, Shapes
from unison.types import Latents, Noised, Sampling


@dataclass(frozen=True)
class Parts:
    """Configurations of a checkpoint's parts."""

    own: MetaQueryConfig
    qwen: Any
    transformer: dict[str, Any]
    autoencoder: dict[str, Any]

    def shape(self, processors: tuple[Any, Qwen2VLImageProcessorPil], config: PolicyConfig) -> Shape:
        """
        Raises:
            ValueError: a part of the diffusion model is of an unknown class.
        """
        from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler as Euler

        with torch.device("meta"):
            qwen = Qwen2_5_VLForConditionalGeneration(self.qwen)
            transformer = _part(self.transformer, diffusion.EXPERTS)
            network = MetaQueryNetwork(
                self.own, qwen, transformer, _part(self.autoencoder, diffusion.LATENT_OF), Euler()
            )
            network.to(getattr(torch, config.dtype)).vae.float()
            policy = MetaQuery(network, *processors, config)
        states = config.states_per_pass
        per_pass = (lambda _: states) if states else None
        return Shape(policy, partial(_drawing, network.latent_shape), network.pixels, per_pass)


def _part(raw: dict[str, Any], known: Any) -> Any:
    import diffusers

    if (kind := raw["_class_name"]) not in known:
        raise ValueError(f"a dry run knows the memory of {', '.join(known)}, not of {kind}")
    return getattr(diffusers, kind).from_config(raw)


def _drawing(shape: tuple[int, int, int], sampling: Sampling | None) -> Latents | Noised:
    """A given one is a single state of itself under its whole context."""
    if sampling is None:
        levels, one = torch.tensor([0.5, 0.0]), torch.ones(1, dtype=torch.bool)
        return Noised(torch.zeros(len(levels), *shape), levels, torch.zeros(1), one)
    levels = sde.sigmas(sampling.steps, sampling.shift)
    mask = sde.trained_steps(levels, sampling)
    return Latents(torch.zeros(len(levels), *shape), levels, torch.zeros(len(mask)), mask, sampling)


def _local(folder: Path, config: PolicyConfig) -> Shape:
    def raw(part: str) -> dict[str, Any]:
        return json.loads((folder / part / "config.json").read_text())

    qwen = Qwen2_5_VLConfig.from_pretrained(folder / "language_model")
    parts = Parts(read_config(folder / "config.json"), qwen, raw("transformer"), raw("vae"))
    return parts.shape(read_processors(str(folder), "language_model"), config)


# -- published ---------------------------------------------------------------------------------------------------------

QWEN_3B = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "tie_word_embeddings": True,
}
QWEN_3B_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "out_hidden_size": 2048,
}
QWEN_PICTURES = {"size": {"shortest_edge": 3136, "longest_edge": 12845056}, "patch_size": 14, "merge_size": 2}
SANA_1600M = {"_class_name": "SanaTransformer2DModel", "sample_size": 32, "caption_channels": 2304}
"""The rest is the class's own."""
DC_AE = {
    "_class_name": "AutoencoderDC",
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
}


def _qwen_3b_and_sana(config: PolicyConfig) -> Shape:
    """Joined by the bridge of UniRL-Zero, with the bundled model's tokenizer."""
    joint = JoinConfig()
    own = MetaQueryConfig(
        queries=joint.queries,
        side=SANA_1600M["sample_size"],
        source_side=joint.source_side,
        layers=joint.layers,
        heads=joint.heads,
        feed_forward=joint.feed_forward or QWEN_3B["intermediate_size"],
    )
    qwen = Qwen2_5_VLConfig(text_config=QWEN_3B, vision_config=QWEN_3B_VISION, tie_word_embeddings=True)
    tokenizer, _ = read_processors(str(ASSETS / "tiny-metaquery"), "language_model")
    processors = tokenizer, Qwen2VLImageProcessorPil(**QWEN_PICTURES)
    return Parts(own, qwen, SANA_1600M, DC_AE).shape(processors, config)


SHAPES = Shapes(
    _local,
    {f"Qwen/Qwen2.5-VL-3B-Instruct{JOINED}Efficient-Large-Model/Sana_1600M_1024px_diffusers": _qwen_3b_and_sana},
)
