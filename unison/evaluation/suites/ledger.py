"""Finished work that outlives a kill: records appended to a file a process, read back by whoever goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unison.evaluation.records import Record

if TYPE_CHECKING:
    from unison.evaluation.suites.base import Job

PROTOCOL = "protocol"  # the key of a file's first line


class Ledger:
    """Records by their `key`, in `<stem>-<process>.jsonl` beside the suite's JSON file.

    The first line of a file is the protocol that its records were made by. A line that a kill cut short counts as not
    written. Every process reads all files, whichever number of processes wrote them, and appends to its own; processes
    share out the keys in a fixed way, so that no two of them make the same record.

    A record whose field `failed` holds something is to be made again; any other of its key takes its place.

    Raises:
        ValueError: the files hold records of another protocol.
    """

    def __init__(self, file: Path, protocol: Mapping[str, Any], job: Job) -> None:
        self.file, self.protocol = file, json.loads(json.dumps(protocol))
        file.parent.mkdir(parents=True, exist_ok=True)
        if job.overwrite and job.processes.is_main_process:
            for path in self._files():
                path.unlink()
        job.processes.wait_for_everyone()
        self.records = self.read()
        self._started = False
        self.own = file.with_name(f"{file.stem}-{job.processes.process_index}.jsonl")
        job.processes.wait_for_everyone()  # before any process writes

    def read(self) -> dict[str, Record]:
        """All finished records by key, of every process."""
        found: dict[str, Record] = {}
        for path in self._files():
            lines = whole_lines(path)
            self._check(path, next(lines, {PROTOCOL: self.protocol})[PROTOCOL])
            for record in lines:
                if not record.get("failed") or record["key"] not in found:
                    found[record["key"]] = record
        return found

    def is_open(self, key: str) -> bool:
        """Whether there is no record of that key, or one that failed."""
        return key not in self.records or bool(self.records[key].get("failed"))

    def append(self, record: Record) -> None:
        """Adds a finished record; it is on disk when this returns."""
        with self.own.open("ab") as file:
            if not self._started and not _drop_rest(self.own):
                file.write(_line({PROTOCOL: self.protocol}))
            self._started = True
            file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        self.records[record["key"]] = record

    def _files(self) -> list[Path]:
        return sorted(self.file.parent.glob(f"{self.file.stem}-*.jsonl"))

    def _check(self, path: Path, protocol: Mapping[str, Any]) -> None:
        names = {*protocol, *self.protocol}
        differ = sorted(name for name in names if protocol.get(name) != self.protocol.get(name))
        if differ:
            first = differ[0]
            raise ValueError(
                f"{path} holds an evaluation with another {', '.join(differ)} ({first}: {protocol.get(first)!r}, now "
                f"{self.protocol.get(first)!r}): choose another --out, or start over with --overwrite"
            )


def whole_lines(path: Path) -> Iterator[Any]:
    """The values of a JSONL file's lines, but for a last one that was cut short."""
    for line in path.read_bytes().split(b"\n")[:-1]:
        yield json.loads(line)


def _drop_rest(path: Path) -> int:
    """Cuts off what follows the last whole line; returns the bytes that stay."""
    kept = path.read_bytes().rfind(b"\n") + 1
    os.truncate(path, kept)
    return kept


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"
