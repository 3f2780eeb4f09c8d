"""Where items come from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from unison.config.fields import CountOrNone, Section, pick
from unison.types import AnswerKind

WorldKind = Literal["scenes", "counts", "edits", "riddles", "reflections", "puzzles", "steps"]
Suffix = str | dict[AnswerKind, str]


COCO_PROMPTS, HELD_OUT = "coco-prompts", "held-out"


@dataclass(frozen=True)
class DataConfig(Section, place="data"):
    """Where items come from."""

    train: str = "world"
    """`world`, `prompts`, a local JSONL / Parquet file or folder, or a hub id. The world's items are scenes to draw and
    to answer about; `world:<kind>` has others: counts (how many shapes are there?), edits of pictures, riddles to draw,
    reflections (pictures to judge and to correct), puzzles in words, or steps (questions that take several). `prompts`
    are GenEval-style, without pictures; `prompts:<GenEval's evaluation_metadata.jsonl>` asks for nothing that a test
    prompt asks for. `coco-prompts` name objects alone that the rewards `geneval` can judge, and ask no question."""
    eval: str = "world"
    """Held-out items, same choices; or `held-out`, those of `data.train`: of what makes its items its held-out ones, of
    a table each 40th row, which training then leaves out."""
    questions: Literal["open_ended", "multiple_choice", "mixed"] = "open_ended"
    """Form of the world's questions."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column of the data set for each field of an item; the CoRL names are the default."""
    question_suffix: Suffix = ""
    """Text appended to every question on a line of its own, such as the request for a format; or, by the kind of
    question, `multiple_choice <text> open_ended <text>`."""
    kinds: dict[str, AnswerKind] = field(default_factory=dict)
    """What the values of the `qa_type` column mean, beyond the usual names."""
    skip_bad_rows: bool = False
    """Count and skip rows that cannot be read instead of stopping."""
    streaming: CountOrNone = 0
    """Rows of the shuffle buffer when tables are streamed instead of loaded whole; 0 loads them."""

    def check(self) -> None:
        for name, source in (("data.train", self.train), ("data.eval", self.eval)):
            world_kind(source, name)

    @property
    def held_out(self) -> str:
        """The source of held-out items."""
        return self.train if self.eval == HELD_OUT else self.eval


def world_kind(source: str, field: str) -> WorldKind | None:
    """The kind of items of a source that is the world; None of any other.

    Raises:
        ValueError: the world has no such items.
    """
    place, _, kind = source.partition(":")
    if place != "world":
        return None
    return pick({name: name for name in get_args(WorldKind)}, kind or "scenes", f"{field} = {source!r}: the kind")


def is_prompts(source: str) -> bool:
    """Whether items are prompts, whose questions are about the drawing that is to be made."""
    return source.partition(":")[0] == "prompts"
