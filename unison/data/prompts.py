"""Drawing prompts in GenEval's six categories, each with a question about the drawing and its answer.

Source: UniRL, arXiv 2505.23380, for questions, answers and the number of object names; GenEval, arXiv 2310.11513, for
categories, colours, numbers and relations. No picture belongs to them: a model draws and is asked about its drawing.

What keeps them apart from GenEval's 553 test prompts:

* always: the sentences. GenEval's prompts all read "a photo of ...", these never do, so no text is shared;
* with GenEval's prompt file (`prompts:<file>`): the meaning too. No prompt asks for what a test prompt asks for, in
  other words, in another order or seen from the other object ("a dog left of a cat" is "a cat right of a dog").
  GenEval names each of COCO's 80 objects on its own, so then `single_object` is left with the other 80 names.

Without the file a prompt may ask for what a test prompt asks for, unless it names one of the 80 objects of our own.
Held-out prompts are a tenth of all meanings, chosen by a hash, and never occur in training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from unison.answers import NUMBERS
from unison.config import Suffix
from unison.data.objects import COCO, COLORS, OBJECTS, UNCOLORED, Phrase
from unison.data.rows import check_index, join
from unison.types import COUNTS, RELATIONS, TASKS, Clause, Item, Split, Wanted

SENTENCES = ("a picture of {}", "an image of {}", "a snapshot showing {}", "{}", "{} in plain view", "a scene with {}")
ALIASES = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}  # COCO's own names
MIRRORED = {"right of": "left of", "below": "above"}
TRIES = 10_000  # draws for one item; only a file that excludes nearly everything needs more
HELD_OUT = 10  # one meaning in so many is for evaluation

logger = logging.getLogger(__name__)

Meaning: TypeAlias = tuple[object, ...]


@dataclass(frozen=True)
class Request:
    """What a prompt asks for: one phrase, or two with an optional relation of the first to the second."""

    task: str
    phrases: tuple[Phrase, ...]
    relation: str | None = None

    def __str__(self) -> str:
        return f" {self.relation or 'and'} ".join(map(str, self.phrases))

    @property
    def meaning(self) -> Meaning:
        """Equal for requests that the same pictures satisfy, whatever their words and order."""
        asked = [(p.noun, p.count, p.color or "") for p in self.phrases]
        if self.relation in MIRRORED:
            return MIRRORED[self.relation], *reversed(asked)
        return (self.relation, *asked) if self.relation else ("", *sorted(asked))

    @property
    def question(self) -> tuple[str, str]:
        """The category's question about the drawing, and its answer."""
        first, last = self.phrases[0], self.phrases[-1]
        match self.task:
            case "single_object":
                return "What is the main item in this image?", first.noun
            case "two_object":
                return "What are two items in this image?", f"There is {first} and {last}"
            case "counting":
                return "How many items in this image?", f"{NUMBERS[first.count]} {first.counted}"
            case "colors":
                return "What is the color of the object?", first.color or ""
            case "position":
                asked = "What are two objects and What is position relationship between two main items?"
                told = f"The {first.noun} {first.are} {self.relation} the {last.noun}"
                return f"{asked} Use one sentence.", told
            case _:
                asked = "What are two objects and the colors of two objects in the image? Use one sentence"
                told = " and ".join(f"the {p.noun} {p.are} {p.color}" for p in self.phrases)
                return asked, told[0].upper() + told[1:]

    @property
    def wanted(self) -> Wanted | None:
        """The same in GenEval's terms, as its prompts of the category put it; None where it names no object of COCO."""
        if any(phrase.noun not in COCO for phrase in self.phrases):
            return None
        clauses = [Clause(phrase.noun, phrase.count, phrase.color) for phrase in self.phrases]
        if self.relation:
            subject, target = clauses
            clauses = [target, replace(subject, position=(self.relation, 0))]
        counted = self.task == "counting"
        exclude = (Clause(clauses[0].noun, clauses[0].count + 1),) if counted else ()
        return Wanted(self.task, tuple(clauses), exclude)


def draw(rng: random.Random, task: str, nouns: Sequence[str] = OBJECTS) -> Request:
    """Any request of the category for objects of these names."""
    colored = [noun for noun in nouns if noun not in UNCOLORED]
    match task:
        case "single_object":
            return Request(task, (Phrase(rng.choice(nouns)),))
        case "counting":
            return Request(task, (Phrase(rng.choice(nouns), rng.choice(COUNTS)),))
        case "colors":
            return Request(task, (Phrase(rng.choice(colored), color=rng.choice(COLORS)),))
        case "color_attr":
            pairs = zip(rng.sample(colored, 2), rng.sample(COLORS, 2), strict=True)
            return Request(task, tuple(Phrase(noun, color=color) for noun, color in pairs))
        case _:
            relation = rng.choice(RELATIONS) if task == "position" else None
            return Request(task, tuple(Phrase(noun) for noun in rng.sample(nouns, 2)), relation)


@dataclass(frozen=True)
class PromptItems:
    """`size` prompts, the six categories in turn; item i depends on (split, seed, i) and what is excluded alone.

    For a `detector` they name COCO's 80 objects alone, so that each says what must be found in the drawing, and have no
    question. As GenEval tests each of these on its own, no category of single objects is left beside its file.

    Raises:
        ValueError: (on access) nearly every request of a category is excluded.
    """

    split: Split
    suffix: Suffix
    seed: int
    size: int
    excluded: frozenset[Meaning] = frozenset()
    detector: bool = False
    skipped: int = field(default=0, init=False)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int, /) -> Item:
        check_index(index, self.size)
        rng = random.Random(f"prompts:{self.split}:{self.seed}:{index}")
        tasks = TASKS[1:] if self.detector and self.excluded else TASKS
        request = self._request(rng, tasks[index % len(tasks)])
        question, answer = request.question
        return Item(
            id=f"prompts-{self.split}-{self.seed}-{index}",
            prompt=rng.choice(SENTENCES).format(request),
            question=None if self.detector else join(question, self.suffix, "open_ended"),
            answer=None if self.detector else answer,
            task=request.task,
            wanted=request.wanted,
        )

    def _request(self, rng: random.Random, task: str) -> Request:
        for _ in range(TRIES):
            request = draw(rng, task, COCO if self.detector else OBJECTS)
            if held_out(request.meaning) is (self.split == "eval") and request.meaning not in self.excluded:
                return request
        raise ValueError(f"prompts:<file> leaves no prompt of {task}: give GenEval's own file")


def held_out(meaning: Meaning) -> bool:
    """Whether requests of this meaning are for evaluation."""
    return hashlib.blake2b(repr(meaning).encode(), digest_size=4).digest()[0] % HELD_OUT == 0


# -- GenEval's file --------------------------------------------------------------------------------------------------


def read_excluded(path: Path) -> frozenset[Meaning]:
    """The meanings of the test prompts in GenEval's `evaluation_metadata.jsonl`.

    A line is an object with `tag`, `prompt` and `include`, a list of `{class, count, color?, position?}`; the position
    `[relation, i]` is that of the object to the i-th.

    Raises:
        ValueError: no such file, or a line that cannot be read; says which.
    """
    if not path.is_file():
        raise ValueError(f"prompts:{path}: no such file; give GenEval's evaluation_metadata.jsonl")
    found = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            found.add(_read_request(json.loads(line)).meaning)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"prompts:{path}, line {number}: not a prompt in GenEval's format "
                f"(tag, include with class and count, prompt): {error!r}"
            ) from error
    return frozenset(found)


def _read_request(row: Mapping[str, Any]) -> Request:
    things = row["include"]
    names: list[str] = [ALIASES.get(str(thing["class"]), str(thing["class"])) for thing in things]
    for name in names:
        if name not in OBJECTS:
            logger.warning("GenEval's prompts name %r, which is no object of ours: nothing is excluded by it", name)
    phrases = tuple(Phrase(n, thing["count"], thing.get("color")) for n, thing in zip(names, things, strict=True))
    placed = [(i, *thing["position"]) for i, thing in enumerate(things) if thing.get("position")]
    if not placed:
        return Request(row["tag"], phrases)
    (subject, relation, other) = placed[0]
    return Request(row["tag"], (phrases[subject], phrases[other]), relation)
