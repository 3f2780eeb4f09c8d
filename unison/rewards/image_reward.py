"""ImageReward: human preference of a drawing for its prompt, read by a text encoder that attends to the picture.

No checkpoint is published in this layout, so the reward takes a folder, `image_reward:<folder>`, with an `ImageReward`
and a `BlipProcessor` as `save_pretrained` writes them. The authors' ImageReward.pt is a pickle. It becomes such a
folder once, `blip` being any BLIP checkpoint with the usual vocabulary of 30,524:

    network = ImageReward(published_config())
    network.load_state_dict(from_published(torch.load("ImageReward.pt", weights_only=True)))
    network.save_pretrained(folder)
    BlipProcessor.from_pretrained(blip, size={"height": 224, "width": 224}).save_pretrained(folder)

The file itself was not at hand: the mapping is tested on its key names, the formula on tiny random weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import BlipConfig, BlipProcessor, BlipTextModel, BlipVisionModel
from transformers.models.blip.modeling_blip import BlipPreTrainedModel

from unison.rewards.models import device_of, judge_pairs, load
from unison.rewards.quality import ScoreHead
from unison.types import Trajectory

if TYPE_CHECKING:
    from PIL.Image import Image

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the head's output on the authors' pairs
PROMPT_TOKENS = 35
RENAMED = (  # parts of the authors' names -> those of `transformers`, in this order
    (r"^blip\.visual_encoder\.", "vision_model."),
    (r"^blip\.", ""),
    (r"\.cls_token$", ".embeddings.class_embedding"),
    (r"\.pos_embed$", ".embeddings.position_embedding"),
    (r"\.patch_embed\.proj\.", ".embeddings.patch_embedding."),
    (r"^vision_model\.norm\.", "vision_model.post_layernorm."),
    (r"\.blocks\.", ".encoder.layers."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
    (r"\.norm([12])\.", r".layer_norm\1."),
)


def image_reward(trajectories: Sequence[Trajectory], policy: Any, checkpoint: str) -> list[float | None]:
    """Preference of the last drawing for its prompt in the authors' standard deviations: about -2 to 2, 0 on average.

    Prompts are cut after 35 tokens. None where there is no drawing or no prompt.

    Source: Xu et al. 2023, arXiv 2304.05977.
    """

    def judge(images: list[Image], prompts: list[str]) -> list[float]:
        model, processor = load(ImageReward, BlipProcessor, checkpoint, device_of(policy))
        inputs = processor(
            images=[image.convert("RGB") for image in images],
            text=prompts,
            padding=True,
            truncation=True,
            max_length=PROMPT_TOKENS,
            return_tensors="pt",
        )
        return model(**inputs.to(model.device)).tolist()

    return judge_pairs(trajectories, judge)


class ImageReward(BlipPreTrainedModel):
    """BLIP's vision model, its text encoder with cross-attention, and a head on the first token's state."""

    def __init__(self, config: BlipConfig) -> None:
        super().__init__(config)
        parts: Any = config
        self.vision_model = BlipVisionModel(parts.vision_config)
        self.text_encoder = BlipTextModel(parts.text_config, add_pooling_layer=False)
        self.mlp = ScoreHead()
        self.post_init()

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Standardised scores. [B, 3, H, W], [B, S], [B, S] -> [B]"""
        picture = self.vision_model(pixel_values=pixel_values).last_hidden_state  # [B, tokens, D]
        seen = torch.ones(picture.shape[:2], dtype=torch.long, device=picture.device)
        states = self.text_encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=picture,
            encoder_attention_mask=seen,
        ).last_hidden_state  # [B, S, 768]
        return (self.mlp(states[:, 0]) - MEAN) / STD


def published_config() -> BlipConfig:
    """The sizes of the published model: ViT-L/16 at 224 pixels and BERT-base, 446 M weights with the head."""
    vision: Any = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision |= {"image_size": 224, "layer_norm_eps": 1e-6}
    text: Any = {"vocab_size": 30524, "num_attention_heads": 12, "encoder_hidden_size": 1024}
    return BlipConfig(text_config=text, vision_config=vision)


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The authors' weights under the names of `ImageReward`; what is no weight of it is dropped."""
    kept = {key: value for key, value in weights.items() if not key.endswith("position_ids")}
    return {_renamed(key): value for key, value in kept.items()}


def _renamed(key: str) -> str:
    for pattern, replacement in RENAMED:
        key = re.sub(pattern, replacement, key)
    return key
