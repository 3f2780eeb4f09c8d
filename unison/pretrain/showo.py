"""Pretraining of the tiny Show-o from scratch: its image tokenizer first, then the decoder on the tiny Janus's corpus.

As for the tiny Janus (`pretrain_vq.py`), every distinct patch of the world's pictures gets a code; here a code is a row
of signs, which the encoder learns bit by bit.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unison.config import PolicyConfig
from unison.policies.showo.magvit import Magvit, MagvitConfig
from unison.policies.showo.network import PhiSizes, ShowOConfig, ShowONetwork
from unison.policies.showo.policy import ShowO
from unison.pretrain.corpus import (
    CorpusConfig,
    train_bpe,
)
from unison.pretrain.course import (
    LanguageConfig,
    Log,
    PretrainConfig,
    image_tokenizer,
    teach,
)
from unison.pretrain.vq import (
    PATCH,
    ImageTokenizerConfig,
    fit,
    judge_agreement,
    painting_loss,
    patch_codes,
    training_images,
)
from unison.types import Sampling
from unison.world.render import SIZE

TOKENS = (SIZE // PATCH) ** 2  # of a drawing
SAMPLED = Sampling(guidance=3.0, rounds=18, choice_temperature=3.0)  # how the tiny Show-o draws when it is evaluated
PAINTER = MagvitConfig(
    channels=32,
    groups=8,
    bits=7,
    encoder_multipliers=(1, 1, 1, 2),
    encoder_blocks=(1, 1, 1, 1),
    decoder_multipliers=(1, 1, 1, 2),
    decoder_blocks=(1, 1, 1, 1),
)

# masked decoding learns more slowly than drawing token by token: a step predicts two thirds of a drawing's tokens
DEFAULT = PretrainConfig(
    Path("runs/pretrain-showo"),
    language=LanguageConfig(steps=3600, cycle=4600, snapshot_every=900),
    corpus=CorpusConfig(counted=0.3),
)


def build_tokenizer(config: CorpusConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the corpus with the one special token of Show-o's own."""
    end = "<|endoftext|>"
    tokenizer = train_bpe(config, [end])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end, model_max_length=2048
    )


def build_showo(tokenizer: PreTrainedTokenizerFast, width: int = 128, layers: int = 4) -> ShowONetwork:
    """The real class at toy size, randomly initialised."""
    sizes = ShowOConfig(
        w_clip_vit=False,
        llm_vocab_size=len(tokenizer),
        codebook_size=PAINTER.codes,
        num_vq_tokens=TOKENS,
        llm_model_path="",
        max_seq_length=64,
        phi=PhiSizes(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            initializer_range=0.05,  # the usual 0.02 starts a model this narrow with attention that looks nowhere
        ),
    )
    return ShowONetwork(sizes, PAINTER)


# -- the image tokenizer ---------------------------------------------------------------------------------------------


def train_magvit(magvit: Magvit, config: ImageTokenizerConfig, log: Log) -> None:
    """Trains the image tokenizer in place; leaves it frozen in eval mode.

    Raises:
        ValueError: there are fewer codes than the world has patches.
    """
    images = training_images(config.images, config.seed)
    codes = patch_codes(images)
    used = int(codes.max()) + 1
    if used > magvit.config.codes:
        raise ValueError(f"bits = {magvit.config.bits}: the world has {used} distinct patches")
    log({"stage": "codebook", "distinct_patches": used})

    def name_codes(x: Tensor, ids: Tensor) -> Tensor:
        bits = magvit.latents(x).flatten(2).mT.float()  # [B, tokens, bits]
        return F.binary_cross_entropy_with_logits(bits, (magvit.quantize.signs(ids) + 1) / 2)

    def paint_codes(x: Tensor, ids: Tensor) -> Tensor:
        return painting_loss(magvit.decode(ids).float(), x)

    fit([magvit.encoder], name_codes, images, codes, config.encoder_steps, config, log, "encoder")
    fit([magvit.decoder], paint_codes, images, codes, config.decoder_steps, config, log, "decoder")
    magvit.requires_grad_(False).eval()


def repaint(magvit: Magvit, x: Tensor) -> Tensor:
    """Pixels in [-1, 1] after encoding and decoding. [B, 3, SIZE, SIZE]"""
    return magvit.decode(magvit.encode(x))


# -- the whole -------------------------------------------------------------------------------------------------------


def pretrain_showo(config: PretrainConfig, held_out_items: int = 240) -> Path:
    """Builds and trains the tiny Show-o; returns its checkpoint folder (bfloat16)."""
    config.out.mkdir(parents=True, exist_ok=True)
    log = Log(config.out / "pretrain.jsonl")
    settings = PolicyConfig(config.language.start)
    policy = ShowO.load(config.language.start, settings) if config.language.start else untaught(config, settings, log)
    torch.manual_seed(config.language.seed)
    return teach(policy, config, SAMPLED, held_out_items, log)


def untaught(config: PretrainConfig, settings: PolicyConfig, log: Log) -> ShowO:
    """A Show-o that can name and paint patches, with a random decoder."""
    torch.manual_seed(config.language.seed)
    tokenizer = build_tokenizer(config.corpus)
    network = build_showo(tokenizer)
    network.image_tokenizer.load_state_dict(image_tokenizer(config, lambda: Magvit(PAINTER), train_magvit, log))
    log({"stage": "image tokenizer", "judge_agreement": judge_agreement(partial(repaint, network.image_tokenizer))})
    return ShowO(network.eval(), tokenizer, settings)
