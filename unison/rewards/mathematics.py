"""Is a mathematical answer equal to the true one, however it is written: the verifier of puzzles such as GSM8K's."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from unison.answers import ANSWER, parse_answer
from unison.types import Trajectory

MARKED = re.compile(r"\$|\\boxed|\\\(|\\\[")  # an author says where the mathematics is
SOLUTION = "####"  # after it stands the answer in GSM8K's solutions
PROSE = re.compile(r"(?<![\\A-Za-z])(?!sqrt|sin|cos|tan|log|exp)[A-Za-z]{3,}")
TOWER = re.compile(r"\d\s*(\^|\*\*)[\s{(]*\d+\s*(\^|\*\*)")  # a power of a power, whose value may not fit in memory
SECONDS = 5  # longest reading or comparison


def math(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the last reply's answer equals the item's as mathematics, by the package `math_verify`.

    1/2, 0.5 and \\frac{1}{2} are equal, as are (x+1)^2 and x^2+2x+1. The answer is what stands in the answer tags, or
    the last result of a reply without them. None where there is no reply, or the item's answer is no mathematics.
    """
    return [_judge(t.texts[-1], t.item.answer) if t.texts and t.item.answer else None for t in trajectories]


def _judge(reply: str, answer: str) -> float | None:
    truth = read(answer.rpartition(SOLUTION)[2])
    return float(is_equal(truth, read(parse_answer(reply), ANSWER.search(reply) is None))) if truth else None


def read(text: str, prose: bool = False) -> list[Any]:
    """What the text means, in readings; none where it is no mathematics. A text without marks is read as a whole, and
    prose for the last result in it."""
    from math_verify import parse

    if TOWER.search(text):
        return []
    _hush()
    whole = not (prose or MARKED.search(text) or PROSE.search(text))
    return parse(f"${text.strip()}$" if whole else text, parsing_timeout=_seconds())


def is_equal(truth: list[Any], given: list[Any]) -> bool:
    """Whether any reading of one equals any of the other; numbers to 6 decimals."""
    from math_verify import verify

    return bool(given) and verify(truth, given, timeout_seconds=_seconds())


def _seconds() -> Any:
    """The package's timeouts are signals, which Python gives to the main thread alone; elsewhere there are none, and it
    would call every answer wrong."""
    return SECONDS if threading.current_thread() is threading.main_thread() else None


def _hush() -> None:
    """It warns at every call that timeouts are off."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)
