"""Rewards that read a reply: is the answer right, is the format kept."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from unison.types import Item, Trajectory

FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
TAG = re.compile(r"</?(think|answer)>")
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
OPTION = re.compile(r"\(?([A-Z])[.):]\s*(.+?)(?=\s+\(?[A-Z][.):]\s|$)", re.DOTALL)
WORD = re.compile(r"\w+")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def parse_answer(reply: str) -> str:
    """What stands in the answer tags, or the whole reply where there are none."""
    found = ANSWER.search(reply)
    return (found.group(1) if found else reply).strip()


def is_formatted(reply: str) -> bool:
    """Whether the whole reply is a think block then an answer block, neither empty nor holding further tags."""
    found = FORMAT.fullmatch(reply)
    return bool(found) and all(part.strip() and not TAG.search(part) for part in found.groups())


def normalise(text: str) -> str:
    """Lower case, single spaces, no trailing dot, number words as digits."""
    words = text.strip().lower().rstrip(".").split()
    return " ".join(str(NUMBERS.index(word)) if word in NUMBERS else word for word in words)


def is_right(reply: str, item: Item) -> bool:
    """Whether the parsed answer equals the item's.

    Multiple choice accepts the letter, the letter with its text, or the option's text (METHODS, CoRL); options are read
    from the question. Open-ended answers are compared after `normalise`.
    """
    given, truth = parse_answer(reply), (item.answer or "").strip()
    if item.kind == "open_ended":
        return normalise(given) == normalise(truth)
    options = {x: _first_line(option) for x, option in OPTION.findall(item.question or "")}
    named = [x for x, option in options.items() if normalise(option) == normalise(truth)]  # the truth may be the text
    bare = truth.strip("().: ").upper()
    letter = named[0] if named and bare not in options else bare[:1]
    text = options.get(letter, "")
    accepted = {letter, text, *(f"{mark} {text}" for mark in (letter, f"{letter}.", f"{letter}:", f"{letter})"))}
    right = {normalise(a) for a in accepted if a}
    return normalise(given.strip("()")) in right or given.strip("().: ").upper() == letter


def _first_line(option: str) -> str:
    """An option's text without what follows the list of options (such as a request for a format)."""
    return option.split("\n")[0].strip()


def accuracy(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the last reply's answer is right (CoRL's R_acc)."""
    return [float(is_right(t.texts[-1], t.item)) if t.texts and t.item.answer else None for t in trajectories]


def accuracy_soft(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """As `accuracy`, but an open-ended answer that is not right earns the F1 of its words against the truth's."""
    return [soft_credit(t.texts[-1], t.item) if t.texts and t.item.answer else None for t in trajectories]


def soft_credit(reply: str, item: Item) -> float:
    """1 for a right answer; else, where the question is open-ended, the F1 of shared words, in [0, 1].

    Source: the F1 of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250); CoRL's released code gives partial credit by a
    soft word overlap too.
    """
    if is_right(reply, item) or item.kind == "multiple_choice":
        return float(is_right(reply, item))
    given, truth = (Counter(WORD.findall(normalise(text))) for text in (parse_answer(reply), item.answer or ""))
    return 2 * (given & truth).total() / max((given + truth).total(), 1)


def format_(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the last reply keeps the format (CoRL's R_format, strict)."""
    return [float(is_formatted(t.texts[-1])) if t.texts else None for t in trajectories]


OVERLONG = 0.2
"""Last share of the longest reply's length over which `overlong` falls, as in DAPO (4,096 of 20,480 tokens)."""


def overlong(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """0 for replies that leave room, falling to -1 for those that fill `scenario.text.max_tokens`, which are cut short.

    Source: soft overlong punishment, DAPO, arXiv 2503.14476, eq. 13. The trajectory's longest reply counts.
    """
    replies = [[turn.action for turn in t.turns if turn.action.modality == "text"] for t in trajectories]
    fills = [[len(reply) / reply.sampling.max_tokens for reply in some] for some in replies]
    return [max(min((1 - OVERLONG - max(fill)) / OVERLONG, 0.0), -1.0) if fill else None for fill in fills]
