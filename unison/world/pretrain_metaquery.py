"""Pretraining of the tiny MetaQuery from scratch."""

from __future__ import annotations

from typing import Any

from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unison.policies.metaquery_net import MetaQueryConfig, MetaQueryNetwork, Parts
from unison.policies.metaquery_prompt import CHAT_TEMPLATE
from unison.world.pretrain import CorpusConfig, train_bpe
from unison.world.pretrain_vq import PATCH
from unison.world.render import SIZE

CHANNELS = 8  # of a latent
SIDE = SIZE // PATCH  # of a latent


def build_tokenizer(config: CorpusConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the corpus with Qwen's special tokens."""
    pad, end = "<|endoftext|>", "<|im_end|>"
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(config, [pad, end, *marks]),
        eos_token=end,
        pad_token=pad,
        padding_side="left",
        model_max_length=2048,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_image_processor() -> Qwen2VLImageProcessorPil:
    """The real processor at the world's picture size."""
    return Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": (2 * PATCH) ** 2, "longest_edge": (2 * SIZE) ** 2},
    )


def build_language_model(
    tokenizer: PreTrainedTokenizerFast, width: int, layers: int, vision_width: int, vision_layers: int
) -> Qwen2_5_VLForConditionalGeneration:
    """The real class at toy size, randomly initialised."""
    ids: Any = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": -(-len(tokenizer) // 64) * 64,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 32,
        "initializer_range": 0.05,  # the usual 0.02 starts a model this narrow with attention that looks nowhere
        "intermediate_size": width * 8 // 3,
        "max_position_embeddings": 2048,
        # turns of a head's 16 pairs of channels by time, height and width
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": vision_width,
        "intermediate_size": vision_width * 8 // 3,
        "num_heads": vision_width // 32,
        "patch_size": PATCH,
        "window_size": SIZE,
        "out_hidden_size": width,
        "fullatt_block_indexes": list(range(vision_layers)),
        "initializer_range": 0.05,
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
    )
    network = Qwen2_5_VLForConditionalGeneration(config)
    network.generation_config.update(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return network


def build_transformer(context_width: int, width: int, layers: int) -> SanaTransformer2DModel:
    """The real class at toy size, randomly initialised."""
    heads = width // 32
    return SanaTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=heads,
        attention_head_dim=32,
        num_layers=layers,
        num_cross_attention_heads=heads,
        cross_attention_head_dim=32,
        cross_attention_dim=width,
        caption_channels=context_width,
        mlp_ratio=2.0,
        sample_size=SIDE,
        patch_size=1,
        interpolation_scale=1,  # places of positions, which the 4K checkpoint has too
    )


def build_autoencoder(widths: tuple[int, ...] = (16, 32, 32, 64)) -> AutoencoderDC:
    """The real class at toy size, randomly initialised; as many halvings as there are widths after the first."""
    count = len(widths)
    blocks = ("ResBlock",) * (count - 1) + ("EfficientViTBlock",)
    layers, scales = (1,) * count, ((),) * count
    return AutoencoderDC(
        latent_channels=CHANNELS,
        attention_head_dim=16,
        encoder_block_types=blocks,  # type: ignore[arg-type]
        decoder_block_types=blocks,  # type: ignore[arg-type]
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_layers_per_block=layers,  # type: ignore[arg-type]
        decoder_layers_per_block=layers,  # type: ignore[arg-type]
        encoder_qkv_multiscales=scales,
        decoder_qkv_multiscales=scales,
    )


def build_metaquery(
    corpus: CorpusConfig,
    width: int = 128,
    layers: int = 4,
    vision_width: int = 96,
    vision_layers: int = 3,
    transformer_width: int = 128,
    transformer_layers: int = 6,
    queries: int = 16,
) -> Parts:
    """All parts of the real classes at toy size, randomly initialised."""
    tokenizer = build_tokenizer(corpus)
    config = MetaQueryConfig(
        queries=queries,
        side=SIDE,
        source_side=SIZE,
        layers=2,
        heads=width // 32,
        feed_forward=2 * width,
        system_prompt="",
    )
    network = MetaQueryNetwork(
        config,
        build_language_model(tokenizer, width, layers, vision_width, vision_layers),
        build_transformer(width, transformer_width, transformer_layers),
        build_autoencoder(),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    )
    return Parts(network.eval(), tokenizer, build_image_processor())
