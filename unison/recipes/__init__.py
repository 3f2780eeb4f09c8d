"""Recipes by name: functions that return a run's configuration. The first line of a docstring is its summary."""

from __future__ import annotations

from collections.abc import Callable

from unison.config import RunConfig, pick
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
    return pick(RECIPES, name, "recipe")


def summary(name: str) -> str:
    """One line on a recipe."""
    return (find(name).__doc__ or "").strip().splitlines()[0]
