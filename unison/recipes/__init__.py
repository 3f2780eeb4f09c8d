"""Recipes by name: functions that return a run's configuration. The first line of a docstring is its summary."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from unison.config import RunConfig
from unison.recipes import corl

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "corl/tiny": corl.tiny,
    "corl/janus-pro-1b": corl.janus_pro_1b,
}


def find(name: str) -> Callable[[], RunConfig]:
    """The recipe of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"recipe {name!r} is unknown; {hint}choices: {', '.join(RECIPES)}")
    return RECIPES[name]


def summary(name: str) -> str:
    """One line on a recipe."""
    return (find(name).__doc__ or "").strip().splitlines()[0]
