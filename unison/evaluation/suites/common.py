"""What suites share: the job they are given, and the result they return, as JSON and as a table."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

from accelerate import PartialState

from unison.config import PolicyConfig
from unison.evaluation.environment import describe
from unison.evaluation.stats import Estimate, task_mean
from unison.policies import family_of, load_policy, locate
from unison.policies.base import Policy

RESULTS = Path("runs/eval")
"""Where results go if nothing is said."""
ALL = "all"
"""The cut over all tasks: the mean of theirs, or for a conditional share the share over all items."""
Cuts: TypeAlias = Mapping[str, Estimate]
"""A figure over all tasks and in each; a task without it is absent."""
Record: TypeAlias = dict[str, Any]


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

    def pictures(self, suite: str) -> Path:
        """The folder of the suite's pictures, beside that file."""
        file = self.file(suite)
        return file.with_name(f"{file.stem}-pictures")

    def protocol(self) -> dict[str, Any]:
        """What is evaluated, for the protocol of its figures."""
        return {
            "checkpoint": self.checkpoint,
            "checkpoint_files": fingerprint(self.checkpoint),
            "family": family_of(locate(self.checkpoint)),
            "dtype": self.dtype,
        }


@dataclass(frozen=True)
class Result:
    """Figures with the protocol that they hold for."""

    suite: str
    protocol: Mapping[str, Any]
    """All that the figures depend on, JSON-able."""
    figures: Mapping[str, Cuts]
    records: Sequence[Record]
    """What was measured, one for each drawing or item."""
    notes: Sequence[str] = ()
    """What a reader of the figures must know."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """What was asked of a judge, what of it failed and what it cost."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """The field of records that a figure averages, where it has another name than the figure."""

    @classmethod
    def load(cls, path: Path) -> Result:
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is no result.
        """
        try:
            told = json.loads(path.read_text())
            known: dict[str, Any] = {f.name: told[f.name] for f in dataclasses.fields(cls) if f.name in told}
            known["figures"] = {
                name: {cut: Estimate(**estimate) for cut, estimate in cuts.items()}
                for name, cuts in told["figures"].items()
            }
            return cls(**known)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not the result of a suite ({error}): give what `unison eval` wrote") from error

    @property
    def tasks(self) -> list[str]:
        """Every task that a figure has, in the order of the figures."""
        return [cut for cut in dict.fromkeys(cut for cuts in self.figures.values() for cut in cuts) if cut != ALL]

    def rows(self) -> dict[str, list[str]]:
        """The cells of every figure as printed: over all tasks with the interval, then for each task."""
        return {name: figure_cells(cuts, self.tasks) for name, cuts in self.figures.items()}

    def body(self) -> str:
        """The table, the notes and the protocol."""
        heads = ["figure", "all tasks [95% interval]", *self.tasks]
        figures = table(heads, [[name, *row] for name, row in self.rows().items()])
        protocol = "\n".join(f"- {name}: {one_line(value)}" for name, value in self.protocol.items())
        told = [f"Counts: {counted(self.counts)}"] if self.counts else []
        return "\n\n".join([figures, *told, *self.notes, f"Protocol:\n\n{protocol}"])

    def markdown(self) -> str:
        """The page of the result."""
        return f"# {self.suite}\n\n{self.body()}\n"

    def save(self, path: Path) -> None:
        """Writes the JSON file, and the Markdown page beside it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = dataclasses.asdict(self) | {"environment": describe()}
        path.write_text(json.dumps(whole, indent=1))
        path.with_suffix(".md").write_text(self.markdown())


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows))


def slug(name: str) -> str:
    """A checkpoint's name as that of a folder; `owner/name` as the hub's cache writes it, `owner--name`."""
    return re.sub(r"[^\w.-]+", "-", name.replace("/", "--")).strip("-.")


def cuts(columns: Mapping[str, Sequence[float]], weights: Mapping[str, float] | None = None) -> Cuts:
    """A figure from its values by task: over all tasks, weighed alike or as given, and in each."""
    single = {task: task_mean({task: values}) for task, values in columns.items()}
    return {ALL: task_mean(columns, weights)} | single


def means(records: Iterable[Record], field: str) -> dict[str, list[float]]:
    """The mean of a field over each item's records, by task; records and items without it are left out."""
    values: dict[str, dict[str, list[float]]] = {}
    for record in records:
        if record[field] is not None:
            values.setdefault(record["task"], {}).setdefault(item_of(record), []).append(float(record[field]))
    return {task: [sum(some) / len(some) for some in items.values()] for task, items in values.items()}


def item_of(record: Record) -> str:
    """What a record is about: its `id`, or the part of its `key` that the records of one item share."""
    return record["id"] if "id" in record else record["key"].split("/")[0]


def figure_cells(cuts: Cuts, tasks: Sequence[str]) -> list[str]:
    """A figure as printed; a dash where a cut does not have it."""
    single = [cuts.get(task) for task in tasks]
    return [str(cuts[ALL]) if ALL in cuts else "-", *(f"{e.value:.3f}" if e else "-" for e in single)]


def one_line(value: Any) -> str:
    """A value of the protocol as printed."""
    return " ".join(str(value).split())


def counted(counts: Mapping[str, int]) -> str:
    """Counts as printed."""
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def fingerprint(checkpoint: str) -> str:
    """Changes with the files of a local folder (their names, sizes and times); empty for a hub id.

    Raises:
        ValueError: no such folder.
    """
    folder = Path(locate(checkpoint))
    return state_of(folder) if folder.is_dir() else ""


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
