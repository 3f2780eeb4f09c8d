"""Janus and Janus-Pro checkpoints in DeepSeek's own layout (`model_type` "multi_modality"), converted on load.

These are the uploads from before `transformers` had the family: other key names, sizes partly hidden behind the names
of sub-models, and a processor in custom code. What is loaded is the Janus policy, which saves in `transformers` format.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from unison.config import PolicyConfig, pick
from unison.hub import fetch
from unison.policies.checkpoint_files import Report, find_files, read_headers, read_state
from unison.policies.janus.pictures import Pictures
from unison.policies.janus.policy import CHAT_TEMPLATE, Janus

log = logging.getLogger(__name__)

TOWERS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "patch_size": 16,
    },
}
"""Sizes of the vision encoders by `vision_config.params.model_name`."""

IMAGE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "VQ-16": {
        "base_channels": 128,
        "channel_multiplier": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "latent_channels": 256,
    },
}
"""Sizes of the image tokenizers by `gen_vision_config.cls`."""

TOKENS = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜▁pad▁｜>",
    "image_token": "<image_placeholder>",
    "boi_token": "<begin_of_image>",
    "eoi_token": "<end_of_image>",
}
"""The family's special tokens; all are in the tokenizer's own vocabulary."""

VISION, BLOCK, VQ = (
    r"vision_model\.vision_tower\.",
    r"vision_model\.vision_tower\.blocks\.(\d+)\.",
    r"gen_vision_model\.",
)
LAYER = r"model.vision_model.encoder.layers.\1."
RENAMES = {
    rf"{VISION}patch_embed\.proj\.(\w+)": r"model.vision_model.embeddings.patch_embedding.\1",
    rf"{VISION}pos_embed": "model.vision_model.embeddings.position_embedding.weight",
    rf"{VISION}norm\.(\w+)": r"model.vision_model.post_layernorm.\1",
    rf"{BLOCK}norm([12]\.\w+)": rf"{LAYER}layer_norm\2",
    rf"{BLOCK}attn\.qkv\.(\w+)": rf"{LAYER}self_attn.{{}}_proj.\2",
    rf"{BLOCK}attn\.proj\.(\w+)": rf"{LAYER}self_attn.projection_layer.\2",
    rf"{BLOCK}mlp\.(fc[12]\.\w+)": rf"{LAYER}mlp.\2",
    r"aligner\.layers\.0\.(\w+)": r"model.aligner.fc1.\1",
    r"aligner\.layers\.2\.(\w+)": r"model.aligner.hidden_layers.0.\1",
    rf"{VQ}encoder\.conv_blocks\.(\d+)\.res\.(.+)": r"model.vqmodel.encoder.down.\1.block.\2",
    rf"{VQ}encoder\.conv_blocks\.(\d+)\.((?:attn|downsample)\..+)": r"model.vqmodel.encoder.down.\1.\2",
    rf"{VQ}decoder\.conv_blocks\.(\d+)\.res\.(.+)": r"model.vqmodel.decoder.up.\1.block.\2",
    rf"{VQ}decoder\.conv_blocks\.(\d+)\.((?:attn|upsample)\..+)": r"model.vqmodel.decoder.up.\1.\2",
    rf"{VQ}(encoder|decoder)\.mid\.0\.(.+)": r"model.vqmodel.\1.mid.block_1.\2",
    rf"{VQ}(encoder|decoder)\.mid\.1\.(.+)": r"model.vqmodel.\1.mid.attn_1.\2",
    rf"{VQ}(encoder|decoder)\.mid\.2\.(.+)": r"model.vqmodel.\1.mid.block_2.\2",
    rf"{VQ}((?:encoder|decoder)\.(?:conv_in|norm_out|conv_out)\.\w+)": r"model.vqmodel.\1",
    rf"{VQ}((?:quant_conv|post_quant_conv|quantize\.embedding)\.\w+)": r"model.vqmodel.\1",
    r"gen_embed\.weight": "model.generation_embeddings.weight",
    r"gen_aligner\.layers\.0\.(\w+)": r"model.generation_aligner.fc1.\1",
    r"gen_aligner\.layers\.2\.(\w+)": r"model.generation_aligner.hidden_layers.0.\1",
    r"gen_head\.output_mlp_projector\.(\w+)": r"model.generation_head.proj_out.\1",
    r"gen_head\.(vision_head\.\w+)": r"model.generation_head.\1",
    r"language_model\.model\.(.+)": r"model.language_model.\1",
    r"language_model\.(lm_head\.weight)": r"\1",
}
"""DeepSeek's name of a weight, whole, and the name in `transformers`; {} stands for q, k and v of a fused weight."""

DROPPED = rf"{VISION}attn_pool\..+|{VQ}quantize\.codebook_used|language_model\..+\.rotary_emb\.inv_freq"
"""Weights that the model does not use: the encoder's pooling head, a training statistic, a constant."""

ALTERNATIVE = "use the same model in transformers format, such as deepseek-community/Janus-Pro-1B"


def load(path: str, config: PolicyConfig) -> Janus:
    """Reads a checkpoint in DeepSeek's layout, safetensors only, as a Janus policy.

    Raises:
        ValueError: pickled weights; weights missing, unexpected or of the wrong shape, every one named; a
            configuration of other parts than the published ones; a tokenizer without the family's tokens.
    """
    try:
        folder = fetch(path)
        settings = read_config(folder)
        processor = read_processor(folder, settings)
        network = read_network(folder, settings, processor, config)
    except (ValueError, OSError, SafetensorError) as error:
        raise ValueError(f"policy.path = {path!r}: {error}") from error
    return Janus(network, processor, config)


# -- configuration -------------------------------------------------------------------------------------------------


def read_config(folder: Path) -> JanusConfig:
    """The `transformers` configuration that DeepSeek's config.json describes; token ids are the published ones.

    Raises:
        ValueError: a setting that is missing, or names a part other than the published checkpoints'.
    """
    raw = json.loads((folder / "config.json").read_text())
    for section in ("aligner_config", "gen_aligner_config"):
        for name, only in (("projector_type", "mlp_gelu"), ("depth", 2)):
            _require(raw, section, name, only)
    _require(raw, "vision_config", "select_layer", -1)
    tower = pick(TOWERS, _param(raw, "vision_config", "model_name"), "config.json vision_config.params.model_name")
    drawing = pick(
        IMAGE_TOKENIZERS, _section(raw, "gen_vision_config").get("cls", ""), "config.json gen_vision_config.cls"
    )
    image_size = _param(raw, "vision_config", "image_size")
    ignored = ("model_type", "torch_dtype", "_attn_implementation")
    language = {name: value for name, value in _section(raw, "language_config").items() if name not in ignored}
    return JanusConfig(
        text_config=LlamaConfig(**{"tie_word_embeddings": False, **language}),
        vision_config=JanusVisionConfig(
            **tower,
            image_size=image_size,
            num_image_tokens=(image_size // tower["patch_size"]) ** 2,
            projection_dim=_param(raw, "aligner_config", "n_embed"),
            depth=2,
        ),
        vq_config=JanusVQVAEConfig(
            **drawing,
            num_embeddings=_param(raw, "gen_vision_config", "image_token_size"),
            embed_dim=_param(raw, "gen_vision_config", "n_embed"),
            projection_dim=_param(raw, "gen_head_config", "image_token_embed"),
            image_token_embed_dim=_param(raw, "gen_head_config", "n_embed"),
            num_hidden_layers=2,
        ),
        tie_word_embeddings=False,
    )


def _section(raw: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    if not isinstance(raw.get(section), dict):
        raise ValueError(f"config.json has no {section}: it is not one of a Janus checkpoint in DeepSeek's layout")
    return raw[section]


def _param(raw: Mapping[str, Any], section: str, name: str) -> Any:
    params = _section(raw, section).get("params", {})
    if name not in params:
        raise ValueError(f"config.json has no {section}.params.{name}; it has {', '.join(params) or 'none'}")
    return params[name]


def _require(raw: Mapping[str, Any], section: str, name: str, only: object) -> None:
    if (value := _param(raw, section, name)) != only:
        raise ValueError(f"config.json {section}.params.{name} = {value!r}: only {only!r} can be converted")


# -- tokenizer and processor ---------------------------------------------------------------------------------------


def read_processor(folder: Path, config: JanusConfig) -> JanusProcessor:
    """The processor with the family's chat template and no system prompt.

    The tokenizer is taken from tokenizer.json as it stands (its config names a class that would rebuild it otherwise);
    the text starts with BOS. Image settings are those of preprocessor_config.json where there is one.

    Raises:
        ValueError: no tokenizer, or one without a token of the family.
    """
    tokenizer = read_tokenizer(folder)
    file = folder / "preprocessor_config.json"
    images = json.loads(file.read_text()) if file.is_file() else {}
    side = cast(Any, config).vision_config.image_size
    image_processor = Pictures(
        size={"height": side, "width": side},
        image_mean=images.get("image_mean", [0.5] * 3),
        image_std=images.get("image_std", [0.5] * 3),
        min_size=images.get("min_size", 14),
    )
    return JanusProcessor(
        image_processor,
        tokenizer,
        chat_template=CHAT_TEMPLATE,
        use_default_system_prompt=False,
        num_image_tokens=cast(Any, config).vision_config.num_image_tokens,
    )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of tokenizer.json with the family's special tokens.

    Raises:
        ValueError: there is none, or its vocabulary lacks a token.
    """
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the Rust side raises bare exceptions
        raise ValueError(f"cannot read tokenizer.json ({error})") from error
    for name, token in TOKENS.items():
        if tokenizer.token_to_id(token) is None:
            raise ValueError(
                f"tokenizer.json has no {token!r} ({name}); take the tokenizer of deepseek-ai/Janus-Pro-1B"
            )
    bos = TOKENS["bos_token"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    roles = ("bos_token", "eos_token", "pad_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{name: TOKENS[name] for name in roles},
        extra_special_tokens={name: token for name, token in TOKENS.items() if name not in roles},
        padding_side="left",
        model_max_length=16384,
    )


# -- weights -------------------------------------------------------------------------------------------------------


def convert(key: str, tensor: Tensor) -> dict[str, Tensor]:
    """The network's weights that one weight of the checkpoint becomes: three if fused, none if unknown."""
    target = next((re.sub(old, new, key) for old, new in RENAMES.items() if re.fullmatch(old, key)), None)
    if target is None:
        return {}
    if "{}" in target:
        return {target.format(name): part for name, part in zip("qkv", tensor.chunk(3), strict=True)}
    return {target: tensor.squeeze(0) if key.endswith("pos_embed") else tensor}


def compare(found: Mapping[str, Tensor], network: JanusForConditionalGeneration) -> Report:
    """Holds the checkpoint's weights against the network's by name and shape; both may be on the meta device."""
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    made: set[str] = set()
    unexpected, misshapen, dropped = [], [], []
    for key, tensor in found.items():
        parts = convert(key, tensor)
        if re.fullmatch(DROPPED, key):
            dropped.append(key)
        elif not parts or parts.keys() - wanted.keys():
            unexpected.append(key)
        elif wrong := [(part.shape, wanted[name]) for name, part in parts.items() if part.shape != wanted[name]]:
            misshapen.append(f"{key} gives {list(wrong[0][0])}, the configuration wants {list(wrong[0][1])}")
        made |= parts.keys()
    return Report(tuple(sorted(wanted.keys() - made)), tuple(unexpected), tuple(misshapen), tuple(dropped))


def read_network(
    folder: Path, settings: JanusConfig, processor: JanusProcessor, config: PolicyConfig
) -> JanusForConditionalGeneration:
    """The network with every weight accounted for. The report of keys comes from the headers, before anything is read.

    Raises:
        ValueError: pickled weights, or weights missing, unexpected or of the wrong shape.
    """
    ids = _token_ids(settings, processor)
    files = find_files(folder, ALTERNATIVE)
    headers = read_headers(files)
    with torch.device("meta"):
        report = compare(headers, JanusForConditionalGeneration(settings))
    if report:
        raise ValueError(f"its weights do not make a Janus of its config.json:\n{report}")
    if report.dropped:
        log.info("%s: weights that Janus does not use were dropped: %s", folder, ", ".join(report.dropped))
    state: dict[str, Tensor] = {}
    for key, tensor in read_state(files, report.dropped).items():
        state |= convert(key, tensor)
    network: Any = JanusForConditionalGeneration.from_pretrained(
        None, config=settings, state_dict=state, dtype=getattr(torch, config.dtype)
    )
    network.generation_config.update(**ids, do_sample=True, guidance_scale=5)
    return network.eval()


def _token_ids(settings: JanusConfig, processor: JanusProcessor) -> dict[str, int]:
    """Sets the tokenizer's ids in the configuration; returns those of BOS, EOS and pad."""
    tokenizer: Any = processor.tokenizer  # type: ignore[attr-defined]
    settings.image_token_id = tokenizer.image_token_id
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    cast(Any, settings).text_config.update(ids)
    return ids
