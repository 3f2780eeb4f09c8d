"""What a run ran on, for its report."""

from __future__ import annotations

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def describe() -> dict[str, object]:
    """Command, versions, machine and commit, as JSON-able values."""
    import torch

    from unison.config import best_device

    packages = ("unison", "torch", "transformers", "accelerate", "peft", "datasets")
    return {
        "command": shlex.join(["unison", *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "device": named(best_device()),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def named(device: Any) -> str:
    """A torch device as its maker calls it."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
