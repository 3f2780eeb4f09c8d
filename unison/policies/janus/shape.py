"""Shapes of Janus checkpoints, for the dry run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
)

from unison.config import PolicyConfig
from unison.hub import ASSETS
from unison.policies.actions import given
from unison.policies.janus import deepseek
from unison.policies.janus.policy import Janus, load_processor
from unison.policies.sizes import Shape, Shapes
from unison.types import Sampling, Tokens


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

    def shape(self, config: PolicyConfig) -> Shape:
        """With the bundled model's tokenizer."""
        sizes = self.config()
        return _shape(sizes, deepseek.read_processor(ASSETS / "tiny-janus", sizes), config)


def _shape(sizes: Any, processor: JanusProcessor, config: PolicyConfig) -> Shape:
    with torch.device("meta"):
        network = JanusForConditionalGeneration(sizes).to(getattr(torch, config.dtype))
        policy = Janus(network, processor, config)
    return Shape(policy, partial(_drawing, policy.drawing_tokens), sizes.vision_config.image_size)


def _drawing(length: int, sampling: Sampling | None) -> Tokens:
    return replace(given("image", torch.zeros(length, dtype=torch.long)), sampling=sampling or Sampling())


def _local(folder: Path, config: PolicyConfig) -> Shape:
    return _shape(JanusConfig.from_pretrained(folder), load_processor(str(folder)), config)


def _of_deepseek(folder: Path, config: PolicyConfig) -> Shape:
    sizes = deepseek.read_config(folder)
    return _shape(sizes, deepseek.read_processor(folder, sizes), config)


PUBLISHED = {
    "deepseek-community/Janus-Pro-1B": JanusShape(2048, 24, 16, 5632, 102400, 1024, 24, 16),
    "deepseek-community/Janus-1.3B": JanusShape(2048, 24, 16, 5632, 102400, 1024, 24, 16),
    "deepseek-community/Janus-Pro-7B": JanusShape(4096, 30, 32, 11008, 102400, 1024, 24, 16),
}
"""By hub id; sizes from the published configurations."""
SHAPES = Shapes(_local, {path: sizes.shape for path, sizes in PUBLISHED.items()})
DEEPSEEK = Shapes(_of_deepseek, {})
