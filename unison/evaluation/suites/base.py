"""What all suites are made of: the job they are given, how they sample, and one runner.

A suite says what its protocol is, how the records of some keys are made, and what they come to. The runner shares the
keys out to all processes, makes records in batches, keeps them as they are made and goes on where it was interrupted.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from accelerate import PartialState
from rich.progress import Progress

from unison.config import PolicyConfig, check_sampling
from unison.data import Items
from unison.evaluation.held_out import Pictures
from unison.evaluation.records import Cuts, Evaluation, Record
from unison.evaluation.suites.ledger import Ledger
from unison.policies import family_of, load_policy, locate
from unison.policies.base import Policy
from unison.types import Item, Sampling

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


@dataclass(frozen=True, kw_only=True)
class SuiteOptions(ABC):
    """What every suite has."""

    least: ClassVar[Mapping[str, float]] = dict.fromkeys(("images", "batch_size", "steps", "max_tokens"), 1)
    """The least of what a suite has of these."""

    batch_size: int = 32
    """Items drawn, edited or asked at a time; figures do not depend on it."""

    @property
    @abstractmethod
    def sampling(self) -> Sampling:
        """How drawings, or else replies, are sampled."""

    def check(self) -> None:
        """Rejects numbers that nothing can be sampled with.

        Raises:
            ValueError: names the option, its value and the remedy.
        """
        check_sampling(self.sampling)
        for name, value in self.told(*self.least).items():
            if value < self.least[name]:
                raise ValueError(f"{name} = {value}: must be at least {self.least[name]}")

    def told(self, *names: str) -> dict[str, Any]:
        """The options of those names that the suite has, for its protocol."""
        return {name: vars(self)[name] for name in names if name in vars(self)}


@dataclass(frozen=True, kw_only=True)
class DrawOptions(SuiteOptions):
    """How prompts are drawn."""

    guidance: float = 5.0
    """Guidance scale of drawings."""
    rounds: int = 18
    """Rounds of masked decoding, in models that draw by it."""
    steps: int = 10
    """Denoising steps without noise, in models that draw by flow matching."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(guidance=self.guidance, rounds=self.rounds, steps=self.steps)


@dataclass(frozen=True)
class Run(ABC):
    """One evaluation, ready to be run or gone on with."""

    name: ClassVar[str]
    """The suite's."""

    options: SuiteOptions
    job: Job
    items: Sequence[Item] | Items

    @abstractmethod
    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on."""

    @abstractmethod
    def make(self, keys: Sequence[Any]) -> Iterable[Record]:
        """The records of some keys, each with its key as text in `key`; each is kept as soon as it comes."""

    def keys(self, process: int = 0, processes: int = 1) -> Sequence[Any]:
        """The keys that one process makes, of one process all of them in the order of the result.

        By default numbers of items: of the first `items`, where that is an option and not 0, or of all.
        """
        return range(len(self.items))[: self.options.told("items").get("items") or None][process::processes]

    @abstractmethod
    def result(self, records: list[Record]) -> Evaluation:
        """What the records of all keys come to."""

    def __call__(self) -> Evaluation | None:
        """Makes what is not there yet; None in all processes but the first."""
        records = self._finished()
        return None if records is None else self.result(records)

    def told(
        self, records: list[Record], figures: Mapping[str, Cuts], fields: Mapping[str, str], notes: Sequence[str] = ()
    ) -> Evaluation:
        """The evaluation, with the protocol that its figures hold for."""
        return Evaluation(0, records, self.name, self.ledger.protocol, figures, notes, fields=fields)

    @property
    def pictures(self) -> Pictures:
        """Where pictures are kept, and from where records name them."""
        return self.job.pictures(self.name)

    @cached_property
    def ledger(self) -> Ledger:
        """What is made already; all processes open it at once."""
        return Ledger(self.job.file(self.name), self.protocol(), self.job)

    def _finished(self) -> list[Record] | None:
        """The records of all keys in order, in the first process."""
        processes, ledger, size = self.job.processes, self.ledger, self.options.batch_size
        own = self.keys(processes.process_index, processes.num_processes)
        todo = [key for key in own if ledger.is_open(str(key))]
        with Progress(transient=True, disable=not processes.is_main_process) as progress:
            task = progress.add_task(self.name, total=len(todo))
            for start in range(0, len(todo), size):
                for record in self.make(todo[start : start + size]):
                    ledger.append(record)
                    progress.advance(task)
        processes.wait_for_everyone()
        if not processes.is_main_process:
            return None
        found = ledger.read()
        return [found[str(key)] for key in self.keys()]


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
