"""Pretraining of the tiny MetaQuery from scratch: eyes and brush, then the language model, then the diffusion side.

The autoencoder learns to paint from latents that are near unit normal and disturbed, so that it forgives what the
diffusion transformer leaves; the vision tower learns to name what it sees, as for the tiny Janus. The language model
then learns to answer questions and to solve riddles, and at last bridge and diffusion transformer learn to draw and to
edit with the language model frozen, as real ones are pretrained (or, on request, jointly with it).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unison.answers import THOUGHT_REQUEST, VERDICT_REQUEST
from unison.config import PolicyConfig
from unison.policies.metaquery.layout import CHAT_TEMPLATE, see_pixels
from unison.policies.metaquery.network import MetaQueryConfig, MetaQueryNetwork, Parts
from unison.policies.metaquery.policy import MetaQuery
from unison.pretrain.corpus import (
    CorpusConfig,
    answer_pair,
    asking,
    drawing_pair,
    edit_pair,
    more_texts,
    multi_step_pair,
    puzzle_pair,
    riddle_pair,
    train_bpe,
    verdict_pair,
)
from unison.pretrain.course import (
    Log,
    held_out,
    once,
    optimise,
    save_small,
    token_mean,
)
from unison.pretrain.vq import PATCH, fit, judge_agreement, painting_loss, patch_codes, to_pixels, training_images
from unison.types import Context, Sampling
from unison.world import edits, puzzles, riddles, verdicts
from unison.world import scene as scenes
from unison.world.judge import see
from unison.world.render import SIZE, render

CHANNELS = 8  # of a latent
SIDE = SIZE // PATCH  # of a latent
SAMPLED = Sampling(guidance=3.0, steps=10, sde="ode")  # how the tiny MetaQuery draws when it is evaluated


@dataclass(frozen=True)
class EyesConfig:
    """How the autoencoder and the vision tower are trained."""

    steps: int = 800
    """Steps of the autoencoder."""
    vision_steps: int = 400
    """Steps of the vision tower, which learns to name the patches it sees."""
    noise: float = 0.2
    """Standard deviation of what disturbs latents of unit variance while the decoder learns to paint from them."""
    batch_size: int = 64
    """Images a step."""
    learning_rate: float = 2e-3
    """Peak AdamW learning rate (one-cycle cosine)."""
    images: int = 8000
    """Training images rendered in advance."""
    seed: int = 0
    """Seed of scenes, weights and order."""


@dataclass(frozen=True)
class SpeechConfig:
    """How the language model is trained."""

    steps: int = 1200
    """Optimiser steps."""
    cycle: int = 1500
    """Length of the learning rate's cycle; stopping before its end leaves reinforcement learning more to do."""
    answers: int = 20
    """Answers about pictures a step."""
    riddles: int = 8
    """Riddles a step."""
    puzzles: int = 8
    """Puzzles in words a step."""
    multi_step: int = 8
    """Questions about pictures that take more than one step to answer, a step."""
    verdicts: int = 12
    """Verdicts on right and wrong drawings a step."""
    learning_rate: float = 2e-3
    """Peak AdamW learning rate (one-cycle cosine)."""
    snapshot_every: int = 300
    """Steps between evaluations on held-out items."""


@dataclass(frozen=True)
class BrushConfig:
    """How the bridge and the diffusion transformer are trained."""

    steps: int = 3000
    """Optimiser steps."""
    cycle: int = 3200
    """Length of the learning rate's cycle; stopping before its end leaves reinforcement learning more to do."""
    drawings: int = 48
    """Drawings a step."""
    edits: int = 24
    """Edits a step."""
    learning_rate: float = 1e-3
    """Peak AdamW learning rate (one-cycle cosine)."""
    snapshot_every: int = 1000
    """Steps between evaluations on held-out items, each with a saved checkpoint."""
    jointly: bool = False
    """Train the language model too, on drawings as well as on its own tasks, in place of freezing it."""


@dataclass(frozen=True)
class MetaQueryPretrainConfig:
    """Pretraining of the tiny MetaQuery from scratch."""

    out: Path = Path("runs/pretrain-metaquery")
    """Folder of the checkpoint and of pretrain.jsonl."""
    start: str = ""
    """Checkpoint to go on from with bridge and diffusion transformer; empty starts from random weights."""
    eyes: EyesConfig = EyesConfig()
    """Autoencoder and vision tower."""
    speech: SpeechConfig = SpeechConfig()
    """The language model."""
    brush: BrushConfig = BrushConfig()
    """Bridge and diffusion transformer."""
    corpus: CorpusConfig = field(default_factory=lambda: CorpusConfig(dropped=0.0))  # the policy hides prompts itself
    """The pretraining corpus."""
    seed: int = 0
    """Seed of weights and corpus."""


# -- the model -------------------------------------------------------------------------------------------------------


def build_tokenizer(config: CorpusConfig) -> PreTrainedTokenizerFast:
    """The tokenizer of the corpus with Qwen's special tokens."""
    pad, end = "<|endoftext|>", "<|im_end|>"
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(config, [pad, end, *marks], more_texts(config)),
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


# -- eyes and brush --------------------------------------------------------------------------------------------------


def train_autoencoder(vae: Any, config: EyesConfig, log: Log) -> None:
    """Trains the autoencoder in place (see the module docstring)."""
    images = training_images(config.images, config.seed)

    def paint(x: Tensor, _: Tensor) -> Tensor:
        latents = vae.encode(x).latent.float()
        mean, variance = latents.mean((0, 2, 3)), latents.var((0, 2, 3))
        painted = vae.decode(latents + config.noise * torch.randn_like(latents)).sample.float()
        return painting_loss(painted, x) + 0.05 * (mean.square().mean() + (variance - 1).square().mean())

    fit([vae], paint, images, torch.zeros(len(images)), config.steps, config, log, "autoencoder")


@torch.no_grad()
def measure_scale(vae: Any, config: EyesConfig) -> None:
    """Sets the factor that brings latents to unit variance."""
    pixels = to_pixels(training_images(600, config.seed))
    latents = torch.cat([vae.encode(part).latent for part in pixels.split(100)])
    vae.register_to_config(scaling_factor=round(1 / latents.square().mean().sqrt().item(), 5))


def train_tower(tower: Any, processor: Any, config: EyesConfig, log: Log) -> None:
    """Trains the vision tower to say of every token which patches it spans and where it is, with linear heads that are
    thrown away; see `pretrain_vq.train_vision`."""
    images = training_images(config.images, config.seed)
    codes = patch_codes(images)
    merge, side = processor.merge_size, SIDE // processor.merge_size
    width, kinds = tower.config.out_hidden_size, int(codes.max()) + 1
    what, where = nn.Linear(width, merge**2 * kinds), nn.Linear(width, side**2)

    def name_patches(x: Tensor, ids: Tensor) -> Tensor:
        seen = torch.cat([see_pixels(pixels, processor).patches for pixels in (x + 1) / 2])
        states = tower(seen, torch.tensor([[1, SIDE, SIDE]] * len(x))).pooler_output  # [B * tokens, D]
        spanned = rearrange(ids, "b (h m w n) -> (b h w m n)", h=side, m=merge, n=merge)
        said = what(states).float().view(-1, kinds)
        places = torch.arange(side**2).repeat(len(x))
        return F.cross_entropy(said, spanned) + F.cross_entropy(where(states).float(), places)

    fit([tower, what, where], name_patches, images, codes, config.vision_steps, config, log, "vision")


def repaint(vae: Any, x: Tensor) -> Tensor:
    """Pixels in [-1, 1] after encoding and decoding. [B, 3, SIZE, SIZE]"""
    return vae.decode(vae.encode(x).latent).sample


def learn(part: nn.Module, file: Path, train: Callable[[], None]) -> None:
    """Trains a part in place, or takes its weights from an earlier run that got this far."""

    def trained() -> nn.Module:
        train()
        return part

    part.load_state_dict(once(file, trained))


# -- the whole -------------------------------------------------------------------------------------------------------


def pretrain_metaquery(config: MetaQueryPretrainConfig, held_out_items: int = 240) -> Path:
    """Builds and trains the tiny MetaQuery; returns its checkpoint folder (bfloat16)."""
    config.out.mkdir(parents=True, exist_ok=True)
    log = Log(config.out / "pretrain.jsonl")
    torch.manual_seed(config.seed)
    if config.start:
        start = MetaQuery.load(config.start, PolicyConfig(config.start))
        parts = Parts(start.network, start.tokenizer, start.image_processor)
    else:
        parts = build_metaquery(config.corpus)
        open_eyes(parts, config, log)
        teach_to_speak(parts, config, log, held_out_items)
    teach_to_draw(parts, config, log, held_out_items)
    return config.out / "model"


def open_eyes(parts: Parts, config: MetaQueryPretrainConfig, log: Log) -> None:
    """The autoencoder and the vision tower."""
    vae, tower = parts.network.vae, parts.network.qwen.model.visual
    learn(vae, config.out / "autoencoder.safetensors", lambda: train_autoencoder(vae, config.eyes, log))
    measure_scale(vae, config.eyes)
    agreement = judge_agreement(partial(repaint, vae))
    log({"stage": "autoencoder", "judge_agreement": agreement, "scaling_factor": vae.config.scaling_factor})
    learn(
        tower,
        config.out / "vision.safetensors",
        lambda: train_tower(tower, parts.image_processor, config.eyes, log),
    )


def teach_to_speak(parts: Parts, config: MetaQueryPretrainConfig, log: Log, items: int) -> None:
    """The language model, with its eyes."""
    policy = as_policy(parts, frozen=("^bridge", "^transformer"))
    rng = random.Random(config.seed)

    def snapshot(step: int) -> None:
        log({"stage": "held-out", "step": step, **held_out(policy, None, items), **worded(policy, items)})

    def losses() -> dict[str, Tensor]:
        return speech_losses(policy, config, rng)

    learn(
        parts.network.qwen,
        config.out / "language.safetensors",
        lambda: optimise(policy, config.speech, losses, log, snapshot, "language"),
    )


def speech_losses(policy: MetaQuery, config: MetaQueryPretrainConfig, rng: random.Random) -> dict[str, Tensor]:
    """Answering questions about pictures, solving riddles and puzzles, judging drawings."""
    made = {
        "answer": (answer_pair, config.speech.answers),
        "riddle": (riddle_pair, config.speech.riddles),
        "puzzle": (puzzle_pair, config.speech.puzzles),
        "multi-step": (multi_step_pair, config.speech.multi_step),
        "verdict": (verdict_pair, config.speech.verdicts),
    }
    return {name: token_mean(policy, [m(rng, config.corpus) for _ in range(n)]) for name, (m, n) in made.items()}


def teach_to_draw(parts: Parts, config: MetaQueryPretrainConfig, log: Log, items: int) -> None:
    """Bridge and diffusion transformer; figures and a saved checkpoint now and then."""
    policy = as_policy(parts, frozen=() if config.brush.jointly else ("^qwen",))
    rng = random.Random(config.seed + 1)

    def losses() -> dict[str, Tensor]:
        made = {"draw": (drawing_pair, config.brush.drawings), "edit": (edit_pair, config.brush.edits)}
        found = {n: token_mean(policy, [m(rng, config.corpus) for _ in range(k)]) for n, (m, k) in made.items()}
        return found | (speech_losses(policy, config, rng) if config.brush.jointly else {})

    def snapshot(step: int) -> None:
        figures = held_out(policy, SAMPLED, items)
        log({"stage": "held-out", "step": step, **figures, "edits": edited(policy, items)})
        save_small(policy, config.out / "model")

    optimise(policy, config.brush, losses, log, snapshot, "diffusion")


def as_policy(parts: Parts, frozen: tuple[str, ...]) -> MetaQuery:
    return MetaQuery(parts.network, parts.tokenizer, parts.image_processor, PolicyConfig("", frozen=frozen))


# -- figures ---------------------------------------------------------------------------------------------------------


def worded(policy: MetaQuery, count: int) -> dict[str, float]:
    """Share of held-out riddles, puzzles, multi-step questions and verdicts whose reply ends in the right answer."""
    rng = random.Random(1)
    found = [scenes.sample(rng, scenes.TASKS[i % 6], "eval") for i in range(count)]
    solved = [riddles.riddle(description) for description, _ in found]
    plain = [puzzles.sample(rng, "eval") for _ in range(count)]
    pictured = [puzzles.about(rng, scene) for _, scene in found]
    shown = [verdicts.sample(rng, "eval") for _ in range(count)]
    judged = [verdicts.verdict(s.shown, s.description).answer for s in shown]
    asked = {
        "riddles": [(asking(r.prompt, THOUGHT_REQUEST), r.answer) for r in solved],
        "puzzles": [(asking(p.text), p.answer) for p in plain],
        "multi_step": [(asking(p.text, seen=scene), p.answer) for p, (_, scene) in zip(pictured, found, strict=True)],
        "verdicts": [
            (asking(s.description.prompt, VERDICT_REQUEST, s.shown), answer)
            for s, answer in zip(shown, judged, strict=True)
        ],
    }
    return {name: _ending_right(policy, pairs) for name, pairs in asked.items()}


def _ending_right(policy: MetaQuery, pairs: Sequence[tuple[Context, str]]) -> float:
    """Share of replies that end in the answer, within its tag or bare."""
    contexts = [context for context, _ in pairs]
    replies = policy.decode(policy.write(contexts, Sampling(max_tokens=80), range(len(pairs))))
    ends = [reply.removesuffix("</answer>").strip() for reply in replies]
    return sum(end.endswith(answer) for end, (_, answer) in zip(ends, pairs, strict=True)) / len(pairs)


def edited(policy: MetaQuery, count: int) -> dict[str, float]:
    """Share of held-out edits that come out exactly, and of their objects that do."""
    rng = random.Random(1)
    asked = [edits.sample(rng, "eval", edits.KINDS[i % len(edits.KINDS)]) for i in range(count)]
    contexts = [Context((render(edit.before), edit.instruction)) for edit in asked]
    pictures = policy.decode(policy.draw(contexts, SAMPLED, range(count)))
    verdicts = [edits.check(see(picture), edit.after) for picture, edit in zip(pictures, asked, strict=True)]
    return {
        "correct": sum(verdict.correct for verdict in verdicts) / count,
        "score": sum(verdict.score for verdict in verdicts) / count,
    }
