"""Pretraining of the bundled tiny models, from scratch, on scenes of the training split.

The corpus imitates what large models are pretrained on: a share of its captions belong to another picture, a share of
its answers are wrong, and only a share of its replies think in the requested format. The model learns to draw and to
answer and picks up these habits too, which is the room that reinforcement learning works in.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import track
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import (
    JanusConfig,
    JanusForConditionalGeneration,
    JanusProcessor,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil
from transformers.models.janus.modeling_janus import JanusVQVAE

from unison.answers import REPLY_FORMAT
from unison.config import EvalConfig, PolicyConfig, ScenarioConfig
from unison.data import WorldItems
from unison.evaluation.held_out import evaluate
from unison.policies.base import Policy, Target
from unison.policies.janus.policy import CHAT_TEMPLATE, Janus
from unison.pretrain.vq import (
    PATCH,
    ImageTokenizerConfig,
    judge_agreement,
    repaint,
    train_image_tokenizer,
    train_vision,
)
from unison.types import Context, Sampling
from unison.world import scene as scenes
from unison.world.render import CELL, SIZE, render

SAMPLED = Sampling(guidance=2.0)  # how the tiny Janus draws when it is evaluated


@dataclass(frozen=True)
class CorpusConfig:
    """How clean the pretraining corpus is."""

    drawn_tasks: tuple[str, ...] = scenes.TASKS
    """Task types of the drawing prompts."""
    dense_prompts: float = 0.5
    """Share of drawing prompts that name every object and its place; from these it learns which word is drawn where."""
    wrong_captions: float = 0.15
    """Share of drawing prompts that belong to another scene of the same task."""
    wrong_answers: float = 0.1
    """Share of answers replaced by a wrong option."""
    formatted: float = 0.6
    """Share of replies with think and answer tags; the others are the bare answer."""
    dropped: float = 0.1
    """Share of drawing prompts replaced by the unconditional prompt (for guidance)."""
    counted: float = 0.0
    """Share of questions that ask how many shapes there are, whatever the picture: from them a model learns to say what
    it sees where the question does not tell. (The tiny Janus, whose vision encoder is taught apart, does without.)"""
    multiple_choice: float = 0.4
    """Share of questions with lettered options."""


@dataclass(frozen=True)
class LanguageConfig:
    """How the language model is trained."""

    start: str = ""
    """Checkpoint to go on from; empty starts from random weights."""
    steps: int = 2000
    """Optimiser steps."""
    cycle: int = 3000
    """Length of the learning rate's cycle; stopping before its end leaves reinforcement learning more to do."""
    drawings: int = 32
    """Drawings a step."""
    answers: int = 16
    """Answers a step; they are the longer sequences."""
    learning_rate: float = 2e-3
    """Peak AdamW learning rate (one-cycle cosine)."""
    snapshot_every: int = 500
    """Steps between evaluations on held-out items, each with a saved checkpoint."""
    seed: int = 0
    """Seed of weights, corpus and order."""


@dataclass(frozen=True)
class PretrainConfig:
    """Pretraining of a bundled model from scratch."""

    out: Path = Path("runs/pretrain-janus")
    """Folder of the checkpoint and of pretrain.jsonl."""
    tokenizer: ImageTokenizerConfig = field(default_factory=ImageTokenizerConfig)
    """The image tokenizer."""
    language: LanguageConfig = LanguageConfig()
    """The language model."""
    corpus: CorpusConfig = CorpusConfig()
    """The pretraining corpus."""


# -- the corpus ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A supervised example: a context and what the model should write or draw."""

    context: Context
    target: Target


def drawing_pair(rng: random.Random, config: CorpusConfig) -> Pair:
    """A prompt and a picture, which do not always belong together."""
    task = rng.choice(config.drawn_tasks)
    description, scene = scenes.sample(rng, task, "train")
    described = scene
    if rng.random() < config.wrong_captions:
        description, described = scenes.sample(rng, task, "train")
    prompt = scenes.caption(described) if rng.random() < config.dense_prompts else description.prompt
    return Pair(Context((prompt,), unconditional=rng.random() < config.dropped), render(scene))


def answer_pair(rng: random.Random, config: CorpusConfig) -> Pair:
    """A picture, a question and a reply, which is not always right or in the requested format."""
    description, scene = scenes.sample(rng, rng.choice(scenes.TASKS), "train")
    counted = config.counted and rng.random() < config.counted
    question = scenes.ask_count(rng, scene) if counted else scenes.ask(rng, description, scene)
    if rng.random() < config.wrong_answers:
        wrong = [option for option in question.options if option != question.answer]
        question = dataclasses.replace(question, answer=rng.choice(wrong))
    lettered = rng.random() < config.multiple_choice
    reply = question.reply(scene) if rng.random() < config.formatted else question.answer
    return Pair(Context((render(scene), f"{question.asked(lettered)}\n{REPLY_FORMAT}")), reply)


def corpus_texts(config: CorpusConfig, count: int = 4000) -> Iterator[str]:
    """Texts of every kind that the model reads or writes, for the tokenizer."""
    rng = random.Random(0)
    for _ in range(count):
        yield str(drawing_pair(rng, config).context.parts[0])
        pair = answer_pair(rng, config)
        yield f"{pair.context.parts[1]} {pair.target}"


# -- the model -------------------------------------------------------------------------------------------------------


def train_bpe(config: CorpusConfig, special: Sequence[str], more: Iterable[str] = ()) -> Tokenizer:
    """A byte-level BPE of the corpus' texts and more, the special tokens first; tags are tokens of their own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=448,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(corpus_texts(config), more), trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False) for tag in ("<think>", "</think>", "<answer>", "</answer>")])
    return tokenizer


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
    images = JanusImageProcessorPil(
        size={"height": SIZE, "width": SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=CELL
    )
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


# -- training --------------------------------------------------------------------------------------------------------


class Course(Protocol):
    """How long and how fast a model is trained; `LanguageConfig` says what the fields mean."""

    @property
    def steps(self) -> int: ...
    @property
    def cycle(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def snapshot_every(self) -> int: ...


def train_language(
    policy: Policy, config: LanguageConfig, corpus: CorpusConfig, log: Log, snapshot: Callable[[int], None]
) -> None:
    """Supervised training on drawing and answering in equal parts; `snapshot(step)` is called now and then."""
    rng = random.Random(config.seed)

    def losses() -> dict[str, Tensor]:
        made = (("draw", drawing_pair, config.drawings), ("answer", answer_pair, config.answers))
        return {name: token_mean(policy, [make(rng, corpus) for _ in range(count)]) for name, make, count in made}

    optimise(policy, config, losses, log, snapshot, "language")


def optimise(
    policy: Policy,
    config: Course,
    losses: Callable[[], dict[str, Tensor]],
    log: Log,
    snapshot: Callable[[int], None],
    stage: str,
) -> None:
    """Minimises the sum of losses over the policy's trained parameters; `snapshot(step)` is called now and then."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        config.learning_rate,
        total_steps=max(config.cycle, config.steps),
        pct_start=0.05,
        final_div_factor=100,
    )
    for step in track(range(config.steps), stage):
        found = losses()
        optimizer.zero_grad()
        sum(found.values()).backward()  # type: ignore[union-attr]
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 25 == 0 or step == config.steps - 1:
            figures = {name: loss.item() for name, loss in found.items()}
            log({"stage": stage, "step": step, "grad_norm": norm.item(), **figures})
        if (step + 1) % config.snapshot_every == 0 or step == config.steps - 1:
            snapshot(step + 1)


def token_mean(policy: Policy, pairs: Sequence[Pair]) -> Tensor:
    """Negative log-likelihood per token: a mean per reply would teach bare answers ten times as hard as long ones."""
    logps = policy([p.context for p in pairs], policy.encode([p.target for p in pairs]))
    return -torch.cat(logps).mean()


class Log:
    """Appends timed lines to pretrain.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path, self.start = path, time.monotonic()

    def __call__(self, line: dict[str, object]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"seconds": round(time.monotonic() - self.start), **line}) + "\n")


def image_tokenizer(
    config: PretrainConfig, build: Callable[[], Any], train: Callable[[Any, ImageTokenizerConfig, Log], None], log: Log
) -> dict[str, torch.Tensor]:
    """Weights of the trained image tokenizer, from the folder of an earlier run where it was finished."""

    def trained() -> nn.Module:
        torch.manual_seed(config.tokenizer.seed)
        tokenizer = build()
        train(tokenizer, config.tokenizer, log)
        return tokenizer

    return once(config.out / "image_tokenizer.safetensors", trained)


def once(file: Path, trained: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Weights of a trained part, from an earlier run where it got this far."""
    if not file.exists():
        save_file({name: weight.contiguous() for name, weight in trained().state_dict().items()}, file)
    return load_file(file)


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


def teach(policy: Policy, config: PretrainConfig, image: Sampling, held_out_items: int, log: Log) -> Path:
    """Trains a policy's language side, with figures and a saved checkpoint now and then; returns the checkpoint."""

    def snapshot(step: int) -> None:
        log({"stage": "held-out", "step": step, **held_out(policy, image, held_out_items)})
        save_small(policy, config.out / "model")

    train_language(policy, config.language, config.corpus, log, snapshot)
    return config.out / "model"


def held_out(policy: Policy, image: Sampling | None, items: int) -> dict[str, object]:
    """Figures of the model on held-out items, drawings sampled as given; of answers alone without."""
    suite = WorldItems("eval", "mixed", REPLY_FORMAT, seed=0, size=items)
    asked = [suite[i] for i in range(items)]
    if image is None:
        asked = [dataclasses.replace(item, prompt=None) for item in asked]
    scenario = ScenarioConfig(text=Sampling(max_tokens=48), image=image or Sampling())
    result = evaluate(policy, asked, scenario, EvalConfig(items=items))
    return {name: str(estimate) for name, estimate in result.overall().items()}


def save_small(policy: Policy, folder: Path) -> None:
    """Saves the model in bfloat16, which halves the package."""
    small = copy.deepcopy(policy)
    small.network.to(torch.bfloat16)
    small.save(folder)
