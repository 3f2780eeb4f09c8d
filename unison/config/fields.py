"""Fields of a section: the ranges that their types state, and the one checker that holds values to them."""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Mapping
from functools import lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Interval

T = TypeVar("T")
NotNegative: TypeAlias = Annotated[float, Interval(ge=0)]
Share: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
CountOrNone: TypeAlias = Annotated[int, Interval(ge=0)]
"""0 is off, or no limit."""

BOUNDS = {
    "gt": (operator.gt, "above"),
    "ge": (operator.ge, "at least"),
    "lt": (operator.lt, "below"),
    "le": (operator.le, "at most"),
}


class Section:
    """A part of a configuration, whose fields, and then the rules between them, are checked as soon as it is made."""

    place: ClassVar[str] = ""
    """What precedes the names of its fields where the user states them."""

    def __init_subclass__(cls, place: str = "") -> None:
        cls.place = place

    def __post_init__(self) -> None:
        check_fields(self, self.place)
        self.check()

    def check(self) -> None:
        """Rejects fields that cannot be together."""


def check_fields(section: Any, place: str = "") -> None:
    """Holds the fields of a dataclass to the ranges and choices of their types, and every float to be finite; in
    dataclasses inside it as well, unless they are sections, which did it themselves.

    Raises:
        ValueError: names the field as the user states it, its value and what it must be.
    """
    for name, kind in _types(type(section)).items():
        value, path = vars(section)[name], f"{place}.{name}" if place else name
        if isinstance(value, Section):
            continue
        if dataclasses.is_dataclass(value):
            check_fields(value, path)
        else:
            _check(value, kind, path)


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """
    Raises:
        ValueError: the rule, what the value must be, does not hold.
    """
    if not holds:
        raise ValueError(f"{name} = {value!r}: must be {rule}")


def pick(table: Mapping[str, T], name: str, field: str) -> T:
    """The entry of that name.

    Raises:
        ValueError: unknown name; says the field, the nearest name and all choices.
    """
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{field} = {name!r} is unknown; {hint}choices: {', '.join(table)}")
    return table[name]


@lru_cache
def _types(section: type) -> dict[str, Any]:
    known = get_type_hints(section, include_extras=True)
    return {field.name: known[field.name] for field in dataclasses.fields(section)}


def _check(value: Any, kind: Any, path: str, otherwise: str = "") -> None:
    """Holds a value, and what it is made of, to a type; `otherwise` is what it may be besides, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    require(not isinstance(value, float) or math.isfinite(value), path, value, "a finite number")
    if origin is Annotated:
        _check(value, inner[0], path)
        require(not (rule := _outside(value, inner[1])), path, value, rule + otherwise)
    elif origin is Literal:
        require(value in inner, path, value, f"one of {', '.join(map(str, inner))}")
    elif origin in (Union, UnionType):
        for one in [one for one in inner if isinstance(value, _plain(one))][:1]:
            _check(value, one, path, ", or None" if NoneType in inner else "")
    elif isinstance(value, dict):
        for key, one in value.items():
            _check(key, inner[0], f"{path}: the name")
            _check(one, inner[1], f"{path}[{key!r}]")
    elif isinstance(value, tuple):
        for number, one in enumerate(value):
            _check(one, inner[0 if inner[-1] is ... else number], f"{path}[{number}]")


def _outside(value: float, rule: Interval) -> str:
    """What the value must be, in words; nothing where it is."""
    bounds = {name: bound for name, bound in dataclasses.asdict(rule).items() if bound is not None}
    if all(BOUNDS[name][0](value, bound) for name, bound in bounds.items()):
        return ""
    if bounds.keys() == {"ge", "le"}:
        return f"between {rule.ge} and {rule.le}"
    return " and ".join(f"{BOUNDS[name][1]} {bound}" for name, bound in bounds.items())


def _plain(kind: Any) -> Any:
    """What `isinstance` knows of a type."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Annotated, Literal):
        return _plain(inner[0]) if origin is Annotated else type(inner[0])
    return (float, int) if kind is float else origin or kind
