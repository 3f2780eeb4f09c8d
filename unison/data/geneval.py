"""GenEval's prompt file: what each drawing must show, read strictly, with errors that name the line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unison.data.objects import COCO, COLORS
from unison.types import RELATIONS, TASKS, Clause, Item, Wanted


def read_prompts(path: Path) -> list[Item]:
    """The prompts of a file such as GenEval's `evaluation_metadata.jsonl`, one an item, numbered from 0 as ids.

    A line is an object with `prompt`, `tag`, `include` and, where there is one, `exclude` (see `read_wanted`).

    Raises:
        ValueError: no such file, no prompts in it, or a line that cannot be read; says which and why.
    """
    if not path.is_file():
        raise ValueError(f"prompts = {str(path)!r}: no such file; give GenEval's evaluation_metadata.jsonl or its like")
    lines = enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
    rows = [_read_line(line, f"prompts = {str(path)!r}, line {number}") for number, line in lines if line.strip()]
    if not rows:
        raise ValueError(f"prompts = {str(path)!r}: the file is empty; it needs a prompt a line")
    return [
        Item(id=f"{number:05d}", prompt=prompt, task=wanted.tag, wanted=wanted)
        for number, (prompt, wanted) in enumerate(rows)
    ]


def _read_line(line: str, where: str) -> tuple[str, Wanted]:
    try:
        row = json.loads(line)
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or not row["prompt"].strip():
            raise ValueError("it has no 'prompt'")
        return row["prompt"], read_wanted(row)
    except ValueError as error:
        raise ValueError(f"{where}: {error} (it reads {line:.80})") from error


def read_wanted(row: Mapping[str, Any]) -> Wanted:
    """What the drawing of a prompt must show.

    Args:
        row: `tag`, one of the six tasks; `include` and optionally `exclude`, lists of `{class, count, color?,
            position?}`. The position `[relation, i]` is that of these objects to those of the i-th entry.

    Raises:
        ValueError: names the entry, the field, its value and the choices.
    """
    tag = _choice(row.get("tag"), "tag", TASKS)
    include, exclude = (_clauses(row.get(name), name) for name in ("include", "exclude"))
    if not include:
        raise ValueError("it has no 'include': a list of objects with 'class' and 'count'")
    return Wanted(tag, include, exclude)


def _clauses(entries: Any, name: str) -> tuple[Clause, ...]:
    if not isinstance(entries, list | None):
        raise ValueError(f"{name!r} = {entries!r:.60} is not a list of objects")
    return tuple(_clause(entry, f"{name}[{i}]", i) for i, entry in enumerate(entries or ()))


def _clause(entry: Any, where: str, number: int) -> Clause:
    if not isinstance(entry, dict):
        raise ValueError(f"{where} = {entry!r:.60} is not an object with 'class' and 'count'")
    noun = _choice(entry.get("class"), f"{where}.class", COCO)
    count, color, position = entry.get("count"), entry.get("color"), entry.get("position")
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{where}.count = {count!r} is not a number from 1")
    if color is not None:
        _choice(color, f"{where}.color", COLORS)
    return Clause(noun, count, color, None if position is None else _position(position, where, number))


def _position(position: Any, where: str, number: int) -> tuple[str, int]:
    if not isinstance(position, list | tuple) or len(position) != 2 or position[1] not in range(number):
        raise ValueError(f"{where}.position = {position!r:.60} is not [relation, number of an earlier entry]")
    return _choice(position[0], f"{where}.position", RELATIONS), position[1]


def _choice(value: Any, name: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise ValueError(f"{name} = {value!r:.60} is not one of {', '.join(choices)}")
    return value
