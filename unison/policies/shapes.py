"""Shapes of published checkpoints, for dry runs without a download and for reduced-width tests."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import JanusConfig, JanusVisionConfig, JanusVQVAEConfig, LlamaConfig


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


PUBLISHED = {
    "deepseek-community/Janus-Pro-1B": JanusShape(2048, 24, 16, 5632, 102400, 1024, 24, 16),
    "deepseek-community/Janus-1.3B": JanusShape(2048, 24, 16, 5632, 102400, 1024, 24, 16),
    "deepseek-community/Janus-Pro-7B": JanusShape(4096, 30, 32, 11008, 102400, 1024, 24, 16),
}
"""By hub id; sizes from the published configurations."""
