"""Weights of checkpoints that are not in `transformers` format: safetensors only, every key accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open
from torch import Tensor

T = TypeVar("T")
CONVERSION = (
    "import sys, torch, pathlib; from safetensors.torch import save_file; "
    "[save_file({k: v.contiguous().clone() for k, v in s.get('model', s).items()}, f.with_suffix('.safetensors')) "
    "for f in pathlib.Path(sys.argv[1]).glob('pytorch_model*.bin') for s in [torch.load(f, weights_only=True)]]"
)
"""Turns the pickled weights of a folder into safetensors; unwraps a state dict under the key `model`."""


@dataclass(frozen=True)
class Report:
    """Every weight of a checkpoint that does not simply become one of the network's."""

    missing: tuple[str, ...]
    """Names of the network that no weight of the checkpoint becomes."""
    unexpected: tuple[str, ...]
    """Names of the checkpoint that become no weight of the network."""
    misshapen: tuple[str, ...]
    """Names of the checkpoint with the shape found and the shape wanted."""
    dropped: tuple[str, ...]
    """Names of the checkpoint that are left out on purpose."""

    def __str__(self) -> str:
        """What stands in the way of loading, a line per key."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "misshapen": self.misshapen}
        return "\n".join(f"  {kind}: {key}" for kind, keys in kinds.items() for key in keys)

    def __bool__(self) -> bool:
        """Whether anything does."""
        return bool(self.missing or self.unexpected or self.misshapen)


def compare(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], dropped: str = "(?!)") -> Report:
    """Holds weights of the same naming against each other by name and shape; both may be on the meta device.

    Args:
        dropped: regular expression of whole names that are left out on purpose.
    """
    left_out = tuple(name for name in found if re.fullmatch(dropped, name))
    kept = [name for name in found if name not in left_out]
    return Report(
        missing=tuple(sorted(wanted.keys() - found.keys())),
        unexpected=tuple(name for name in kept if name not in wanted),
        misshapen=tuple(
            f"{name} is {list(found[name].shape)}, the configuration wants {list(wanted[name].shape)}"
            for name in kept
            if name in wanted and found[name].shape != wanted[name].shape
        ),
        dropped=left_out,
    )


def read_fields(kind: type[T], raw: Mapping[str, Any], file: Path | str) -> T:
    """The fields of a configuration, among others in the file that are ignored.

    Raises:
        ValueError: one is missing or of the wrong type.
    """
    names = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    try:
        return TypeAdapter(kind).validate_python({name: value for name, value in raw.items() if name in names})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{file} {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def find_files(folder: Path, alternative: str = "") -> list[Path]:
    """The folder's weights: one file of a usual name, or all shards.

    Raises:
        ValueError: there are no safetensors; says how pickled weights are converted, and the alternative.
    """
    for name in ("model.safetensors", "pytorch_model.safetensors"):
        if (folder / name).is_file():
            return [folder / name]
    if files := sorted(folder.glob("*.safetensors")):
        return files
    raise ValueError(
        f"{folder} holds no *.safetensors. Pickled weights (pytorch_model*.bin) are not read, for they can run code; "
        "convert those of a local copy (hf download <id> --local-dir <folder>) with\n"
        f'  python -c "{CONVERSION}" <folder>' + (f"\nor {alternative}" if alternative else "")
    )


def read_headers(files: Sequence[Path]) -> dict[str, Tensor]:
    """Names and shapes of the weights, on the meta device: nothing is read but the headers."""
    shapes: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                shapes[name] = torch.empty(opened.get_slice(name).get_shape(), device="meta")
    return shapes


def read_state(files: Sequence[Path], leave_out: Sequence[str] = ()) -> dict[str, Tensor]:
    """The weights themselves."""
    state: dict[str, Tensor] = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if name not in leave_out]  # noqa: SIM118
            state |= {name: opened.get_tensor(name) for name in names}
    return state
