"""Pretraining of the bundled tiny models, from scratch, on scenes of the training split.

The corpus imitates what large models are pretrained on: a share of its captions belong to another picture, a share of
its answers are wrong, and only a share of its replies think in the requested format. The model learns to draw and to
answer and picks up these habits too, which is the room that reinforcement learning works in.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from tokenizers import processors
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.modeling_janus import JanusVQVAE

from unison.config import PolicyConfig
from unison.policies.janus.pictures import Pictures
from unison.policies.janus.policy import CHAT_TEMPLATE, Janus
from unison.pretrain.corpus import (
    CorpusConfig,
    train_bpe,
)
from unison.pretrain.course import (
    Log,
    PretrainConfig,
    image_tokenizer,
    teach,
)
from unison.pretrain.vq import (
    PATCH,
    judge_agreement,
    repaint,
    train_image_tokenizer,
    train_vision,
)
from unison.types import Sampling
from unison.world.render import CELL, SIZE

SAMPLED = Sampling(guidance=2.0)  # how the tiny Janus draws when it is evaluated


# -- the model -------------------------------------------------------------------------------------------------------


def build_tokenizer(config: CorpusConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the corpus with Janus's special tokens."""
    special = {
        "bos_token": "<｜begin▁of▁sentence｜>",
        "eos_token": "<｜end▁of▁sentence｜>",
        "pad_token": "<｜▁pad▁｜>",
    }
    marks = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = train_bpe(config, [*special.values(), *marks.values(), "<|User|>", "<|Assistant|>"])
    bos = special["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **special, extra_special_tokens=marks, padding_side="left", model_max_length=2048
    )


def build_processor(config: CorpusConfig) -> JanusProcessor:
    """The real processor at the world's picture size."""
    images = Pictures(size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=CELL)
    tokens = (SIZE // PATCH) ** 2
    return JanusProcessor(images, build_tokenizer(config), chat_template=CHAT_TEMPLATE, num_image_tokens=tokens)


def build_janus(processor: JanusProcessor, width: int = 128, layers: int = 4) -> JanusForConditionalGeneration:
    """The real class at toy size, randomly initialised."""
    tokenizer = processor.tokenizer  # type: ignore[attr-defined]
    side = SIZE // PATCH
    text = LlamaConfig(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        initializer_range=0.05,  # the usual 0.02 starts a model this narrow with attention that looks nowhere
        intermediate_size=width * 8 // 3,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = JanusVisionConfig(
        hidden_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        num_image_tokens=side**2,
        projection_dim=width,
        depth=2,
    )
    drawing = JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=512,
        latent_channels=64,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 2],
        num_res_blocks=1,
        num_patches=side,
        projection_dim=width,
        image_token_embed_dim=width,
    )
    config = JanusConfig(
        text_config=text,
        vision_config=vision,
        vq_config=drawing,
        image_token_id=tokenizer.image_token_id,
        tie_word_embeddings=False,
    )
    network = JanusForConditionalGeneration(config)
    network.generation_config.update(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        guidance_scale=2,
    )
    kwargs = {"boi_token_id": tokenizer.boi_token_id}
    vars(network.generation_config)["generation_kwargs"] = kwargs  # `update` drops names that it does not know
    return network


def pretrain_janus(config: PretrainConfig, held_out_items: int = 240) -> Path:
    """Builds and trains the tiny Janus; returns its checkpoint folder, in plain `transformers` format (bfloat16)."""
    config.out.mkdir(parents=True, exist_ok=True)
    log = Log(config.out / "pretrain.jsonl")
    settings = PolicyConfig(config.language.start, frozen=("vqmodel",))
    if config.language.start:
        policy = Janus.load(config.language.start, settings)
    else:
        policy = Janus(*untaught(config, log), settings)

    return teach(policy, config, SAMPLED, held_out_items, log)


def untaught(config: PretrainConfig, log: Log) -> tuple[JanusForConditionalGeneration, JanusProcessor]:
    """A Janus that can see and paint patches, with a random language model, and its processor."""
    torch.manual_seed(config.language.seed)
    processor = build_processor(config.corpus)
    network = build_janus(processor)
    vq = network.model.vqmodel
    vq.load_state_dict(image_tokenizer(config, lambda: JanusVQVAE(vq.config), train_image_tokenizer, log))
    log({"stage": "image tokenizer", "judge_agreement": judge_agreement(partial(repaint, vq))})
    with torch.no_grad():
        network.model.generation_embeddings.weight.copy_(vq.quantize.embedding.weight)
    train_vision(network.model.vision_model, config.tokenizer, log)
    return network, processor
