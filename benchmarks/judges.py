"""Judges at toy size, for tests and benchmarks: the real classes in the real layout of files, with random weights."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertModel,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPProcessor,
    DetrConfig,
    DetrForObjectDetection,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ResNetConfig,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.detr.image_processing_pil_detr import DetrImageProcessorPil

from unison.data.objects import COCO
from unison.rewards.image_reward import ImageReward
from unison.rewards.quality import AestheticHead
from unison.types import TASKS
from unison.world.scene import sample

KINDS: dict[str, tuple[str, ...]] = {
    "llm_judge": ("causal",),
    "llm_judge_soft": ("causal",),
    "blip_bertscore": ("blip", "encoder"),
    "blip_embedding": ("blip", "encoder"),
    "self_bertscore": ("encoder",),
    "self_embedding": ("encoder",),
    "clip": ("clip",),
    "clip_direction": ("clip",),
    "clip_reconstruction": ("clip",),
    "pickscore": ("clip",),
    "hps": ("clip",),
    "image_reward": ("image_reward",),
    "aesthetic": ("clip", "head"),
    "geneval": ("detector", "clip"),
    "geneval_strict": ("detector", "clip"),
    "geneval_verdict": ("detector", "clip"),
    "geneval_improvement": ("detector", "clip"),
}
"""What `build` makes for each reward with checkpoints, in the reward's order."""


@dataclass(frozen=True)
class JudgeSize:
    """The sizes of all of them. Heads are 768 wide, and so are the embeddings that they read, as published."""

    width: int
    layers: int
    image: int
    """Side of the pictures they see, in pixels: a multiple of 16."""

    def text(self, vocabulary: int) -> dict[str, Any]:
        """Fields of a configuration that all text encoders share."""
        marks = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
        return self._shared() | marks | {"vocab_size": vocabulary, "max_position_embeddings": 64}

    def vision(self) -> dict[str, Any]:
        """Those of all vision encoders."""
        return self._shared() | {"image_size": self.image, "patch_size": 16}

    def halves(self) -> dict[str, int]:
        """Those of an encoder and of a decoder."""
        return {"layers": self.layers, "ffn_dim": self.width, "attention_heads": 2}

    def _shared(self) -> dict[str, Any]:
        width = {"hidden_size": self.width, "intermediate_size": 3 * self.width // 2}
        return width | {"num_hidden_layers": self.layers, "num_attention_heads": 2}


def spec(name: str, folders: Mapping[str, str | Path]) -> str:
    """The reward's name with the checkpoints it takes, as a recipe or an option writes it."""
    return ":".join([name, *(str(folders[kind]) for kind in KINDS.get(name, ()))])


def build(folder: Path, size: JudgeSize) -> dict[str, Path]:
    """Writes one checkpoint of each kind; returns their folders by kind."""
    torch.manual_seed(0)
    words, spoken = build_tokenizer(), build_tokenizer(more=("Yes", "No"))
    text, vision, side = size.text(len(words)), size.vision(), {"height": size.image, "width": size.image}
    clip: Any = CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)
    blip: Any = BlipConfig(text_config=text | {"encoder_hidden_size": size.width}, vision_config=vision)
    wide: Any = BlipConfig(
        text_config=text | {"hidden_size": 768, "num_hidden_layers": 1, "encoder_hidden_size": size.width},
        vision_config=vision,
    )
    deep: Any = text | {"num_hidden_layers": 3 * size.layers}
    reader = BlipProcessor(BlipImageProcessorPil(size=side), words)
    made: dict[str, tuple[Any, Any]] = {
        "clip": (CLIPModel(clip), CLIPProcessor(CLIPImageProcessorPil(size=side, crop_size=side), words)),
        "blip": (BlipForConditionalGeneration(blip), reader),
        "image_reward": (ImageReward(wide), reader),
        "encoder": (BertModel(BertConfig(**deep)), words),
        "detector": (build_detector(size), DetrImageProcessorPil(size={"height": size.image, "width": size.image})),
        "causal": (LlamaForCausalLM(_causal(size, len(spoken))), spoken),
    }
    for kind, (model, processor) in made.items():
        enlarge(model).save_pretrained(folder / kind)
        processor.save_pretrained(folder / kind)
    (folder / "head").mkdir()
    save_file(_head(), folder / "head" / "model.safetensors")
    return {kind: folder / kind for kind in (*made, "head")}


def _causal(size: JudgeSize, vocabulary: int) -> LlamaConfig:
    fields: dict[str, Any] = size.text(vocabulary) | {"max_position_embeddings": 512}
    return LlamaConfig(**{name: value for name, value in fields.items() if name != "sep_token_id"})


def build_tokenizer(more: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Words of the world, and more, as tokens, with the marks of BERT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    rng = random.Random(0)
    words = {w for _ in range(300) for w in sample(rng, rng.choice(TASKS), "train")[0].prompt.split()}
    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {word: i for i, word in enumerate([*marks, *sorted(words), *more])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    core.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    roles = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[CLS]", "eos": "[SEP]"}
    tokens: dict[str, Any] = {f"{role}_token": mark for role, mark in roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=32, **tokens)


def build_detector(size: JudgeSize) -> DetrForObjectDetection:
    """A DETR with COCO's labels."""
    stem: Any = {"embedding_size": size.width, "hidden_sizes": [size.width], "depths": [1], "layer_type": "basic"}
    backbone = ResNetConfig(**stem | {"out_features": ["stage1"]})
    halves = {f"{half}_{kind}": n for half in ("encoder", "decoder") for kind, n in size.halves().items()}
    labels = {"id2label": dict(enumerate(COCO)), "label2id": {noun: i for i, noun in enumerate(COCO)}}
    rest: Any = {"use_timm_backbone": False, "backbone_config": backbone, "d_model": size.width, "num_queries": 8}
    config = DetrConfig(**rest | halves | labels)
    return DetrForObjectDetection(config)


def enlarge(model: torch.nn.Module) -> Any:
    """Weights so large that every part of an input matters, whatever the width."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                scale = 1.7 * weight[0].numel() ** -0.5
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    return model


def _head() -> dict[str, torch.Tensor]:
    """An aesthetic head whose scores lie about the middle of the scale of 1 to 10."""
    tensors = AestheticHead().state_dict()
    random_ = {key: 2 * torch.randn(t.shape) * t.shape[-1] ** -0.5 for key, t in tensors.items() if t.ndim == 2}
    return {key: random_.get(key, torch.full_like(t, 5.0 if len(t) == 1 else 0.0)) for key, t in tensors.items()}
