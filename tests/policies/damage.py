"""Damage to a copy of a checkpoint folder, to see that loading refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from safetensors.torch import load_file, save_file

Damage: TypeAlias = Callable[[Path], object]


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def change_text(name: str, change: Callable[[str], str]) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        (folder / name).unlink()  # it may be a link to the original
        (folder / name).write_text(change(text))

    return damage


def change_json(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    def changed(text: str) -> str:
        values = json.loads(text)
        change(values)
        return json.dumps(values)

    return change_text(name, changed)


def change_weights(change: Callable[[dict[str, Any]], object], names: str = "*.safetensors") -> Damage:
    """Of all files of these names."""

    def damage(folder: Path) -> None:
        for file in folder.glob(names):
            weights = load_file(file)
            change(weights)
            file.unlink()
            save_file(weights, file, {"format": "pt"})

    return damage
