"""Configurations as files, those of earlier layouts too."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from functools import cache
from typing import TYPE_CHECKING, Any

from unison.config.earlier import modern
from unison.config.run import RunConfig

if TYPE_CHECKING:
    from pydantic import TypeAdapter


def to_json(config: RunConfig) -> str:
    """The resolved configuration as JSON; `from_json` reads it back."""
    return json.dumps(dataclasses.asdict(config), indent=2, default=str)


def from_json(text: str) -> RunConfig:
    """Reads a saved configuration, of this layout or an earlier one.

    Raises:
        ValueError: an unknown field (with the nearest known one), a missing field, a value of the wrong type, or one
            that an earlier version allowed and this one does not.
    """
    from pydantic import ValidationError

    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the configuration is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError("the configuration is not a JSON object")
    modern(values)
    _reject_unknown(values, RunConfig, "")
    try:
        return _reader().validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        if cause := first.get("ctx", {}).get("error"):  # a rule of our own, which says all
            raise ValueError(str(cause)) from error
        where = ".".join(str(x) for x in first["loc"]) or "configuration"
        raise ValueError(f"{where} = {first['input']!r}: {first['msg']}") from error


@cache
def _reader() -> TypeAdapter[RunConfig]:
    from pydantic import TypeAdapter

    return TypeAdapter(RunConfig)


def _reject_unknown(values: Any, kind: type, where: str) -> None:
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, hints, n=1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(hints)}"
            raise ValueError(f"unknown field {where}{name} = {value!r}; {remedy}")
        if dataclasses.is_dataclass(hints[name]) and isinstance(value, dict):
            _reject_unknown(value, hints[name], f"{where}{name}.")  # type: ignore[arg-type]
