"""Shapes of published checkpoints, and the sizes that a memory estimate needs, without a weight or a download."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from unison.config import JoinConfig
from unison.hub import JOINED
from unison.planning.passes import Ends
from unison.policies.janus import deepseek
from unison.policies.metaquery import diffusion
from unison.policies.metaquery.network import MetaQueryConfig, MetaQueryNetwork, read_config
from unison.policies.showo import magvit
from unison.policies.showo import network as showo_net
from unison.policies.showo.magvit import MagvitConfig
from unison.policies.showo.network import ShowOConfig, ShowONetwork


@dataclass(frozen=True)
class Denoising:
    """Sizes of a diffusion expert and of what joins it to a language model. Values are counted, not bytes."""

    source_tokens: int
    """Tokens of an edit's source as the language model sees it."""
    pixels: int
    """Pixels of a drawing."""


@dataclass(frozen=True)
class Sizes:
    """What a memory estimate needs to know of a model. Values are counted, not bytes."""

    network: nn.Module
    """The network on the meta device."""
    decoder: str
    """Name of the language model's decoder in it."""
    write: Callable[[Any], Ends]
    """Of the network: how words are read and said."""
    draw: Callable[[Any], Ends] | None
    """The same of the tokens of drawings."""
    paint: Callable[[Any, int], Tensor]
    """The pixels of so many drawings, which it paints in one pass."""
    layers: int
    """Layers of the decoder."""
    width: int
    """Width of the decoder's keys and values."""
    image_tokens: int
    """Tokens of a drawing, as it is drawn or, where it is drawn by denoising, as it is read."""
    codes: int
    """Choices for each of them."""
    painted: float
    """Values that the backward pass through a drawing's pixels keeps; 0 where a drawing is read as tokens."""
    masked: bool = False
    """Drawings are decided in rounds, each of which reads the whole canvas, and not token by token."""
    fixed: tuple[str, ...] = ()
    """Regular expressions of parameter names that the family never trains."""
    exact: tuple[str, ...] = ()
    """Regular expressions of parameter names that stay in float32."""
    denoising: Denoising | None = None
    """The side that draws, where it does so by denoising."""


# -- Janus -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JanusShape:
    """The sizes in which Janus checkpoints differ; the rest is the family's pattern (576 tokens, 16,384 codes)."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    vision_width: int
    vision_layers: int
    vision_heads: int
    vq_base_channels: int = 128

    def config(self) -> JanusConfig:
        """The `transformers` configuration."""
        text = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            intermediate_size=self.feed_forward,
            max_position_embeddings=16384,
            tie_word_embeddings=False,
        )
        vision = JanusVisionConfig(
            hidden_size=self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_heads,
            image_size=384,
            patch_size=16,
            projection_dim=self.width,
        )
        drawing = JanusVQVAEConfig(
            base_channels=self.vq_base_channels, projection_dim=self.width, image_token_embed_dim=self.width
        )
        return JanusConfig(text_config=text, vision_config=vision, vq_config=drawing, tie_word_embeddings=False)

    def sizes(self) -> Sizes:
        return janus_sizes(self.config())


def janus_sizes(config: Any) -> Sizes:
    """Sizes of a Janus by its `transformers` configuration."""
    text, vq, vision = config.text_config, config.vq_config, config.vision_config
    tokens = vq.num_patches**2
    painted = sum(
        _painting(vq.num_res_blocks + 1, vq.base_channels * factor, tokens * 4**level)
        for level, factor in enumerate(reversed(vq.channel_multiplier))
    )
    with torch.device("meta"):
        network = JanusForConditionalGeneration(config)
    return Sizes(
        network=network,
        decoder="model.language_model",
        write=lambda n: (n.get_input_embeddings(), n.lm_head),
        draw=lambda n: (n.prepare_embeddings_for_image_generation, n.model.generation_head),
        paint=lambda n, count: n.model.vqmodel.decode(torch.zeros(count, tokens, dtype=torch.long)),
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        image_tokens=tokens,
        codes=vq.num_embeddings,
        painted=painted + tokens * vision.num_hidden_layers * 10 * vision.hidden_size,
    )


def _painting(blocks: int, channels: int, positions: int) -> float:
    """What the blocks of one resolution keep: each its two convolutions', norms' and activations' inputs."""
    return 6.0 * blocks * channels * positions


# -- Show-o ------------------------------------------------------------------------------------------------------------

CLIP_LARGE = CLIPVisionConfig(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=336,
    patch_size=14,
    projection_dim=768,
)
"""`openai/clip-vit-large-patch14-336`, the vision tower of the published checkpoints that have one."""


@dataclass(frozen=True)
class ShowOShape:
    """What Show-o checkpoints differ in."""

    image_tokens: int
    clip: bool = False

    def config(self) -> ShowOConfig:
        """The published configuration."""
        return ShowOConfig(
            w_clip_vit=self.clip, llm_vocab_size=50295, codebook_size=8192, num_vq_tokens=self.image_tokens
        )

    def sizes(self) -> Sizes:
        return showo_sizes(self.config(), magvit.PUBLISHED, CLIP_LARGE if self.clip else None)


def showo_sizes(config: ShowOConfig, painter: MagvitConfig, vision: Any) -> Sizes:
    """Sizes of a Show-o by its own, its image tokenizer's and its vision tower's (or None) configuration."""
    with torch.device("meta"):
        network = ShowONetwork(config, painter, vision)
    phi, tokens = config.phi, config.num_vq_tokens
    return Sizes(
        network=network,
        decoder="showo.model",
        write=lambda n: (n.showo.model.embed_tokens, n.showo.lm_head),
        draw=lambda n: (n.embed_image, n.image_head),
        paint=lambda n, count: n.image_tokenizer.decode(torch.zeros(count, tokens, dtype=torch.long)),
        layers=phi.num_hidden_layers,
        width=phi.hidden_size,
        image_tokens=tokens,
        codes=config.codebook_size,
        painted=0 if vision is None else _seen_through_clip(tokens, painter, vision),
        masked=True,
        fixed=(r"^image_tokenizer\.", r"^vision\."),
        exact=(r"^image_tokenizer\.",),
    )


def _seen_through_clip(tokens: int, painter: MagvitConfig, vision: Any) -> float:
    levels = list(zip(painter.decoder_multipliers, painter.decoder_blocks, strict=True))
    painted = sum(
        _painting(blocks, painter.channels * factor, tokens * 4**level)
        for level, (factor, blocks) in enumerate(reversed(levels))
    )
    patches = (vision.image_size // vision.patch_size) ** 2
    return painted + patches * vision.num_hidden_layers * 10 * vision.hidden_size


def _showo_at(folder: Path) -> Sizes:
    """Parts that are not in the folder are the published ones, as on loading."""
    config, tower = showo_net.read_config(folder), folder / "vision"
    vision = None
    if config.w_clip_vit:
        vision = CLIPVisionConfig.from_pretrained(tower) if tower.is_dir() else CLIP_LARGE
    return showo_sizes(config, showo_net.read_magvit_config(folder / "image_tokenizer"), vision)


# -- MetaQuery ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MetaQueryShape:
    """A joined checkpoint with the bridge of UniRL-Zero: configurations of its three parts as keyword arguments."""

    text: dict[str, Any]
    vision: dict[str, Any]
    transformer: dict[str, Any]
    autoencoder: dict[str, Any]

    def sizes(self) -> Sizes:
        joint = JoinConfig()
        qwen = Qwen2_5_VLConfig(
            text_config=self.text, vision_config=self.vision, tie_word_embeddings=self.text["tie_word_embeddings"]
        )
        config = MetaQueryConfig(
            queries=joint.queries,
            side=self.transformer["sample_size"],
            source_side=joint.source_side,
            layers=joint.layers,
            heads=joint.heads,
            feed_forward=joint.feed_forward or self.text["intermediate_size"],
        )
        return metaquery_sizes(config, qwen, self.transformer, self.autoencoder)


def metaquery_sizes(config: MetaQueryConfig, qwen: Any, transformer: dict[str, Any], autoencoder: Any) -> Sizes:
    """Sizes of a MetaQuery by its own configuration and those of its parts.

    Raises:
        ValueError: its diffusion transformer is not a SANA, of whose memory alone something is known.
    """
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

    kind = transformer.get("_class_name", "SanaTransformer2DModel")
    if kind != "SanaTransformer2DModel":
        raise ValueError(f"a dry run knows the memory of SanaTransformer2DModel, not of {kind}")
    with torch.device("meta"):
        dit: Any = SanaTransformer2DModel.from_config(transformer)
        vae: Any = AutoencoderDC.from_config(autoencoder)
        network = MetaQueryNetwork(config, Qwen2_5_VLForConditionalGeneration(qwen), dit, vae, None)
    text, vision = qwen.text_config, qwen.vision_config
    token = vision.patch_size * vision.spatial_merge_size
    return Sizes(
        network=network,
        decoder="qwen.model.language_model",
        write=lambda n: (n.qwen.get_input_embeddings(), n.qwen.lm_head),
        draw=None,
        paint=lambda n, count: diffusion.to_pixels(n.vae, torch.empty(count, *network.latent_shape)),
        layers=text.num_hidden_layers,
        width=text.hidden_size * text.num_key_value_heads // text.num_attention_heads,
        image_tokens=round(network.pixels / token) ** 2,
        codes=0,
        painted=0,
        fixed=(r"^vae\.",),
        exact=(r"^vae\.",),
        denoising=Denoising(source_tokens=(config.source_side // token) ** 2, pixels=network.pixels**2),
    )


def _metaquery_at(folder: Path) -> Sizes:
    def config(part: str) -> dict[str, Any]:
        return json.loads((folder / part / "config.json").read_text())

    qwen = Qwen2_5_VLConfig.from_pretrained(folder / "language_model")
    return metaquery_sizes(read_config(folder / "config.json"), qwen, config("transformer"), config("vae"))


# -- where shapes are found --------------------------------------------------------------------------------------------

JANUS = {
    "deepseek-community/Janus-Pro-1B": JanusShape(2048, 24, 16, 5632, 102400, 1024, 24, 16),
    "deepseek-community/Janus-1.3B": JanusShape(2048, 24, 16, 5632, 102400, 1024, 24, 16),
    "deepseek-community/Janus-Pro-7B": JanusShape(4096, 30, 32, 11008, 102400, 1024, 24, 16),
}
SHOW_O = {
    "showlab/show-o": ShowOShape(256),
    "showlab/show-o-512x512": ShowOShape(1024),
    "showlab/show-o-512x512-wo-llava-tuning": ShowOShape(1024),
    "showlab/show-o-w-clip-vit": ShowOShape(256, clip=True),
    "showlab/show-o-w-clip-vit-512x512": ShowOShape(1024, clip=True),
}
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
SANA_1600M = {"sample_size": 32, "caption_channels": 2304}  # the class's own sizes
DC_AE = {
    "encoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "decoder_block_types": ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3,
    "upsample_block_type": "interpolate",
    "downsample_block_type": "Conv",
}
METAQUERY = {
    f"Qwen/Qwen2.5-VL-3B-Instruct{JOINED}Efficient-Large-Model/Sana_1600M_1024px_diffusers": MetaQueryShape(
        QWEN_3B, QWEN_3B_VISION, SANA_1600M, DC_AE
    )
}
PUBLISHED: dict[str, JanusShape | ShowOShape | MetaQueryShape] = {**JANUS, **SHOW_O, **METAQUERY}
"""By hub id; sizes from the published configurations."""

LOCAL: dict[str, Callable[[Path], Sizes]] = {
    "janus": lambda folder: janus_sizes(JanusConfig.from_pretrained(folder)),
    "multi_modality": lambda folder: janus_sizes(deepseek.read_config(folder)),
    "showo": _showo_at,
    "Showo": _showo_at,
    "metaquery": _metaquery_at,
}
"""Sizes of a checkpoint folder, by the family that its config.json names."""
