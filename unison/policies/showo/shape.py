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


def _published(sizes: ShowOConfig, config: PolicyConfig) -> Shape:
    """With the bundled model's tokenizer."""
    vision = CLIP_LARGE if sizes.w_clip_vit else None
    return _shape(sizes, magvit.PUBLISHED, vision, read_tokenizer(ASSETS / "tiny-showo", ""), config)


def _local(folder: Path, config: PolicyConfig) -> Shape:
    """Parts that are not in the folder are the published ones, as on loading."""
    sizes, tower = read_config(folder), folder / "vision"
    vision = None
    if sizes.w_clip_vit:
        vision = CLIPVisionConfig.from_pretrained(tower) if tower.is_dir() else CLIP_LARGE
    bundled = not (folder / "tokenizer.json").is_file()  # the published one is not in the folder
    tokenizer = read_tokenizer(ASSETS / "tiny-showo" if bundled else folder, "")
    return _shape(sizes, read_magvit_config(folder / "image_tokenizer"), vision, tokenizer, config)


PUBLISHED = {
    f"showlab/show-o{name}": ShowOConfig(clip, llm_vocab_size=50295, codebook_size=8192, num_vq_tokens=tokens)
    for name, tokens, clip in (
        ("", 256, False),
        ("-512x512", 1024, False),
        ("-512x512-wo-llava-tuning", 1024, False),
        ("-w-clip-vit", 256, True),
        ("-w-clip-vit-512x512", 1024, True),
    )
}
"""By hub id; the published configurations."""
SHAPES = Shapes(_local, {path: partial(_published, sizes) for path, sizes in PUBLISHED.items()})
