"""What a reply is asked to look like, how it is read, and when it is right.

Every reply that is judged has a thought in `<think>` and an answer in `<answer>`. The requests below ask for it; they
follow a question or a prompt on a line of their own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from string import ascii_uppercase

from unison.types import Item

# -- what is asked for -----------------------------------------------------------------------------------------------

REPLY_FORMAT = "Think in <think> </think>, then answer in <answer> </answer>."
"""The request that follows a question to the tiny models."""
QUESTION_SUFFIX = (
    "First reason step by step between <think> and </think>, then give only the final answer (the option letter, or "
    "1 to 3 words) between <answer> and </answer>."
)
THOUGHT_REQUEST = "Think in <think> </think>, then say what to draw in <answer> </answer>."
"""The request that follows a prompt that needs a thought before it is drawn."""
VERDICT_REQUEST = (
    "Does the picture show this? Think in <think> </think>, then say right, or wrong and what to do, "
    "in <answer> </answer>."
)
"""The request that follows the prompt when a model is to judge its drawing."""


def formatted(thought: str, answer: str) -> str:
    """A whole reply in the requested format."""
    return f"<think> {thought} </think><answer> {answer} </answer>"


def lettered(question: str, options: Sequence[str]) -> str:
    """The question with its options below it, one a line: `A. ..`, `B. ..`."""
    return "\n".join([question, *(f"{x}. {option}" for x, option in zip(ascii_uppercase, options, strict=False))])


# -- how it is read --------------------------------------------------------------------------------------------------

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


def unwrap_answer(text: str) -> str:
    """The inside of `<answer>..</answer>` where there is such a block, or what follows `####`, as in GSM8K."""
    block = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    return block[1].strip() if block else text.rpartition("####")[2].strip()


def is_formatted(reply: str) -> bool:
    """Whether the whole reply is a think block then an answer block, neither empty nor holding further tags."""
    found = FORMAT.fullmatch(reply)
    return bool(found) and all(part.strip() and not TAG.search(part) for part in found.groups())


def says_right(reply: str) -> bool | None:
    """What a reply in the requested format says of the drawing, by the first word of its answer, in whatever case and
    with whatever mark after it; None out of the format, or where that word is neither `right` nor `wrong`."""
    if not is_formatted(reply):
        return None
    first, *_ = re.split(r"[\s.,:;!?]", parse_answer(reply).lower())
    return {"right": True, "wrong": False}.get(first)


# -- when it is right ------------------------------------------------------------------------------------------------


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


def soft_credit(reply: str, item: Item) -> float:
    """1 for a right answer; else, where the question is open-ended, the F1 of shared words, in [0, 1].

    Source: the F1 of SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250); CoRL's released code gives partial credit by a
    soft word overlap too.
    """
    if is_right(reply, item) or item.kind == "multiple_choice":
        return float(is_right(reply, item))
    given, truth = (Counter(WORD.findall(normalise(text))) for text in (parse_answer(reply), item.answer or ""))
    return 2 * (given & truth).total() / max((given + truth).total(), 1)
