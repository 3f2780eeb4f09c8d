"""What the tiny models read, write and draw while they are pretrained, and the tokenizer of its words."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from unison.answers import NUMBERS, REPLY_FORMAT, THOUGHT_REQUEST, VERDICT_REQUEST
from unison.policies.base import Target
from unison.types import Context
from unison.world import edits, puzzles, riddles, verdicts
from unison.world import scene as scenes
from unison.world.render import render


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


def edit_pair(rng: random.Random, config: CorpusConfig) -> Pair:
    """A picture with an instruction, and the picture that follows; the instruction is now and then another's."""
    edit = edits.sample(rng, "train")
    said = edits.sample(rng, "train").instruction if rng.random() < config.wrong_captions else edit.instruction
    return Pair(Context((render(edit.before), said)), render(edit.after))


def asking(text: str, request: str = REPLY_FORMAT, seen: scenes.Scene | None = None) -> Context:
    """A text with the request that follows it, about a picture of the scene if there is one."""
    words = f"{text}\n{request}"
    return Context((words,) if seen is None else (render(seen), words))


def riddle_pair(rng: random.Random, config: CorpusConfig) -> Pair:
    """A riddle and the thought that solves it, or, out of the requested format, the solution alone."""
    made = riddles.riddle(scenes.sample(rng, rng.choice(config.drawn_tasks), "train")[0])
    reply = made.reply if rng.random() < config.formatted else made.answer
    return Pair(asking(made.prompt, THOUGHT_REQUEST), reply)


def puzzle_pair(rng: random.Random, config: CorpusConfig) -> Pair:
    """A puzzle in words and the thought that solves it, or its answer alone, which is not always right."""
    made = puzzles.sample(rng, "train")
    return Pair(asking(made.text), _solution(rng, config, made))


def multi_step_pair(rng: random.Random, config: CorpusConfig) -> Pair:
    """A picture, a question that takes more than one step and its reply, as for puzzles."""
    _, scene = scenes.sample(rng, rng.choice(scenes.TASKS), "train")
    made = puzzles.about(rng, scene)
    return Pair(asking(made.text, seen=scene), _solution(rng, config, made))


def _solution(rng: random.Random, config: CorpusConfig, puzzle: puzzles.Puzzle) -> str:
    if rng.random() < config.wrong_answers:
        wrong = [word for word in _alternatives(puzzle.answer) if word != puzzle.answer]
        puzzle = replace(puzzle, answer=rng.choice(wrong))
    return puzzle.reply if rng.random() < config.formatted else puzzle.answer


def _alternatives(answer: str) -> Sequence[str]:
    """The kind of words that the answer belongs to."""
    return next(words for words in (NUMBERS[:10], scenes.COLORS, scenes.SHAPES) if answer in words)


def verdict_pair(rng: random.Random, config: CorpusConfig) -> Pair:
    """A picture shown for a prompt, right or flawed, and the verdict on it or, out of the format, its answer alone."""
    made = verdicts.sample(rng, "train")
    said = verdicts.verdict(made.shown, made.description)
    reply = said.reply if rng.random() < config.formatted else said.answer
    return Pair(asking(made.description.prompt, VERDICT_REQUEST, made.shown), reply)


def more_texts(config: CorpusConfig, count: int = 2000) -> Iterator[str]:
    """What is read and written beyond the tiny Janus's corpus, for the tokenizer."""
    rng = random.Random(0)
    for _ in range(count):
        yield f"user\n{edits.sample(rng, 'train').instruction}"
        for make in (riddle_pair, puzzle_pair, multi_step_pair, verdict_pair):
            pair = make(rng, config)
            yield f"user\n{pair.context.parts[-1]}"
            yield f"assistant\n{pair.target}"
