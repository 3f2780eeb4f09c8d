"""The device that models and judges compute on: the best there is, unless one is named."""

from __future__ import annotations

import os

import torch

VARIABLE = "UNISON_DEVICE"
"""Names the device of a command and of all processes that it starts; `--device` of any verb sets it."""


def choose_device(name: str) -> None:
    """Has all models of this command and of the processes that it starts compute on the named device.

    Raises:
        ValueError: there is no such device here.
    """
    os.environ[VARIABLE] = name
    best_device()


def best_device() -> torch.device:
    """This process's device: the named one, else its accelerator (CUDA, ROCm, XPU, MPS), else the CPU.

    Of the accelerators that it sees, a process of a launch has the one of its number, counted round.

    Raises:
        ValueError: one is named that is not here.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    name = os.environ.get(VARIABLE) or (found.type if found else "cpu")
    kind, _, number = name.partition(":")
    here = {"cpu": 1} | ({found.type: torch.accelerator.device_count()} if found else {})
    rank = int(os.environ.get("LOCAL_RANK", "0")) % here.get(kind, 1)
    place = int(number) if number.isdigit() else rank
    if kind not in here or (number and not number.isdigit()) or (kind != "cpu" and place >= here[kind]):
        choices = ", ".join(k if k == "cpu" else f"{k}:0 to {k}:{count - 1}" for k, count in here.items())
        raise ValueError(f"device = {name!r}: not here; choices: {choices}")
    return torch.device("cpu") if kind == "cpu" else torch.device(kind, place)


def placement() -> dict[str, bool]:
    """What `accelerate` is to be told, so that it takes the same device."""
    device = best_device()
    if device.type != "cpu" and "LOCAL_RANK" not in os.environ:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)  # which it would choose by itself
    return {"cpu": device.type == "cpu"}  # else, without a GPU, every process of a launch takes itself for the only one
