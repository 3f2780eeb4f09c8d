"""Shapes of Show-o checkpoints, for the dry run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, PreTrainedTokenizerFast

from unison.config import PolicyConfig
from unison.hub import ASSETS
from unison.policies.decoding.masked import POSITIONS_PER_CHUNK, still_masked
from unison.policies.showo import magvit
from unison.policies.showo.magvit import MagvitConfig
from unison.policies.showo.network import ShowOConfig, ShowONetwork, read_config, read_magvit_config
from unison.policies.showo.policy import ShowO, read_tokenizer
from unison.policies.sizes import Shape, Shapes
from unison.types import Sampling, Tokens

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


def _shape(
    sizes: ShowOConfig, painter: MagvitConfig, vision: Any, tokenizer: PreTrainedTokenizerFast, config: PolicyConfig
) -> Shape:
    with torch.device("meta"):
        network = ShowONetwork(sizes, painter, vision).to(getattr(torch, config.dtype))
        network.image_tokenizer.float()
        policy = ShowO(network, tokenizer, config)
    length = sizes.num_vq_tokens
    return Shape(policy, partial(_drawing, length), policy.side, partial(_per_pass, length))


def _per_pass(length: int, sampling: Sampling) -> int:
    return max(1, POSITIONS_PER_CHUNK // (length * (2 if sampling.scores_guided else 1)))


def _drawing(length: int, sampling: Sampling | None) -> Tokens:
    """Its first positions are decided last; a given one has all to predict."""
    left = torch.tensor([0] if sampling is None else [*still_masked(length, sampling.rounds)[:-1], 0])
    order = (left[:, None] > torch.arange(length)).sum(0)
    ids, all_of_it = torch.zeros(length, dtype=torch.long), torch.ones(length, dtype=torch.bool)
    return Tokens("image", ids, order, torch.zeros(length), all_of_it, sampling or Sampling())


def _published(tokens: int, clip: bool, config: PolicyConfig) -> Shape:
    """The published configuration, with the bundled model's tokenizer."""
    sizes = ShowOConfig(w_clip_vit=clip, llm_vocab_size=50295, codebook_size=8192, num_vq_tokens=tokens)
    tokenizer = read_tokenizer(ASSETS / "tiny-showo", "")
    return _shape(sizes, magvit.PUBLISHED, CLIP_LARGE if clip else None, tokenizer, config)


def _local(folder: Path, config: PolicyConfig) -> Shape:
    """Parts that are not in the folder are the published ones, as on loading."""
    sizes, tower = read_config(folder), folder / "vision"
    vision = None
    if sizes.w_clip_vit:
        vision = CLIPVisionConfig.from_pretrained(tower) if tower.is_dir() else CLIP_LARGE
    bundled = not (folder / "tokenizer.json").is_file()  # the published one is not in the folder
    tokenizer = read_tokenizer(ASSETS / "tiny-showo" if bundled else folder, "")
    return _shape(sizes, read_magvit_config(folder / "image_tokenizer"), vision, tokenizer, config)


SHAPES = Shapes(
    _local,
    {
        "showlab/show-o": partial(_published, 256, False),
        "showlab/show-o-512x512": partial(_published, 1024, False),
        "showlab/show-o-512x512-wo-llava-tuning": partial(_published, 1024, False),
        "showlab/show-o-w-clip-vit": partial(_published, 256, True),
        "showlab/show-o-w-clip-vit-512x512": partial(_published, 1024, True),
    },
)
