"""The model that is measured: the real Janus class with random weights, at the family's published token pattern.

A drawing is 576 tokens out of 16,384 codes and a picture is read as 576 embeddings, as in every published Janus; only
the widths are small. Vision encoder and image decoder are smaller still, for no figure is about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import JanusConfig, JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unison.config import PolicyConfig
from unison.policies.janus.policy import Janus
from unison.policies.janus.shape import JanusShape
from unison.pretrain.janus import CHAT_TEMPLATE, CorpusConfig, build_tokenizer

MEASURED = JanusShape(
    width=512,
    layers=8,
    heads=8,
    feed_forward=1408,
    vocabulary=512,
    vision_width=64,
    vision_layers=2,
    vision_heads=2,
    vq_base_channels=32,
)


@dataclass(frozen=True)
class Drawing:
    """The token pattern of drawings and pictures."""

    side: int
    """A picture is `side ** 2` tokens."""
    codes: int
    """Size of the codebook."""

    @property
    def tokens(self) -> int:
        return self.side**2


PUBLISHED = Drawing(side=24, codes=16384)


def build_policy(shape: JanusShape = MEASURED, drawing: Drawing = PUBLISHED) -> Janus:
    """A policy with random weights.

    Args:
        shape: the widths.
        drawing: the token pattern.
    """
    torch.manual_seed(0)
    processor = build_processor(drawing)
    config = _with_drawing(shape.config(), drawing)
    config.image_token_id = processor.tokenizer.image_token_id  # type: ignore[attr-defined]
    network = JanusForConditionalGeneration(config).eval()
    speak(network, processor)
    return Janus(network, processor, PolicyConfig("random", frozen=("vqmodel",)))


def build_processor(drawing: Drawing) -> JanusProcessor:
    """The world's tokenizer and the real image processor at the published patch of 16 pixels."""
    size = 16 * drawing.side
    images = JanusImageProcessorPil(
        size={"height": size, "width": size}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=14
    )
    tokenizer = build_tokenizer(CorpusConfig())
    return JanusProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE, num_image_tokens=drawing.tokens)


def _with_drawing(config: Any, drawing: Drawing) -> JanusConfig:
    config.vq_config.num_patches = drawing.side
    config.vq_config.num_embeddings = drawing.codes
    config.vision_config.image_size = 16 * drawing.side
    config.vision_config.num_image_tokens = drawing.tokens
    return config


def speak(network: JanusForConditionalGeneration, processor: JanusProcessor) -> None:
    """Tells the network's own `generate` the tokens it needs."""
    tokenizer = processor.tokenizer  # type: ignore[attr-defined]
    network.generation_config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    generation: Any = network.generation_config
    generation.generation_kwargs = {"boi_token_id": tokenizer.boi_token_id}


def picture(drawing: Drawing) -> Image.Image:
    """A picture to ask about; its content plays no part."""
    return Image.new("RGB", (16 * drawing.side, 16 * drawing.side), (40, 90, 160))
