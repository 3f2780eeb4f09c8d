"""What every suite of a command is given, and digests of what its figures depend on."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from accelerate import PartialState

from unison.config import PolicyConfig
from unison.evaluation.held_out import Pictures
from unison.policies import family_of, load_policy, locate
from unison.policies.base import Policy

RESULTS = Path("runs/eval")
"""Where results go if nothing is said."""


@dataclass(frozen=True)
class Job:
    """What every suite of a command is given."""

    checkpoint: str
    """Checkpoint folder, hub id or assets/<name>."""
    dtype: Literal["float32", "bfloat16"]
    """Type of the weights and of matrix products."""
    out: Path | None
    """Where results go: a folder, or the JSON file of the one suite."""
    overwrite: bool
    """Start over where there are results of another evaluation."""
    processes: PartialState

    @cached_property
    def policy(self) -> Policy:
        """The checkpoint as a policy, on this process's device, loaded when first asked for.

        Raises:
            ValueError: there is no such checkpoint.
        """
        policy = load_policy(PolicyConfig(self.checkpoint, dtype=self.dtype, compute_dtype=self.dtype))
        return policy.to(self.processes.device)

    def check(self) -> None:
        """That the checkpoint is there, as far as that is known without a download.

        Raises:
            ValueError: it is not.
        """
        locate(self.checkpoint)

    def file(self, suite: str) -> Path:
        """The suite's JSON file; what else it writes lies beside it."""
        out = self.out or RESULTS / slug(self.checkpoint)
        return out if out.suffix == ".json" else out / f"{suite}.json"

    def pictures(self, suite: str) -> Pictures:
        """Where the suite's pictures go, beside that file, from which records name them."""
        file = self.file(suite)
        return Pictures(file.parent, f"{file.stem}-pictures")

    def protocol(self) -> dict[str, Any]:
        """What is evaluated, for the protocol of its figures."""
        return {
            "checkpoint": self.checkpoint,
            "checkpoint_files": digest(Path(locate(self.checkpoint))),
            "family": family_of(locate(self.checkpoint)),
            "dtype": self.dtype,
        }


def slug(name: str) -> str:
    """A checkpoint's name as that of a folder; `owner/name` as the hub's cache writes it, `owner--name`."""
    return re.sub(r"[^\w.-]+", "-", name.replace("/", "--")).strip("-.")


def digest(path: Path) -> str:
    """Changes with a file's content, or with the names, sizes and times of a folder's files; empty where neither is."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
    return state_of(path) if path.is_dir() else ""


def state_of(folder: Path, pattern: str = "*") -> str:
    """A digest of the names, sizes and times of a folder's files, those in folders of its own among them."""
    files = [(path, path.stat()) for path in sorted(folder.rglob(pattern)) if path.is_file()]
    told = [(str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns) for path, stat in files]
    return hashlib.blake2b(repr(told).encode(), digest_size=8).hexdigest()
