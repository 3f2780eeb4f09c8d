"""Requests a second to a reward server on this machine: python -m benchmarks.speed.remote [--quick]

The scorer is a trivial one, `format`, so that what is measured is the way there and back: pictures and JSON, HTTP, the
queue and the batch, both sides on the same cores. Prints the table and writes it between its markers in
docs/benchmarks.md (not with --quick, whose figures say little).
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import psutil
import tyro
from PIL import Image

from benchmarks.pages import publish_lines
from unison.config import RemoteConfig
from unison.rewards.remote.client import RemoteReward
from unison.rewards.remote.http import ClientError
from unison.types import Item, Trajectory

COLUMNS = (
    "a request",
    "requests/s, median [min, max] of a second",
    "trajectories/s",
    "latency, median",
    "99%",
    "computing, server + client",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
REPLY = "<think> one square </think><answer> red </answer>"


class Load(NamedTuple):
    """What a request holds."""

    trajectories: int
    pixels: int
    """Side of each drawing; 0 sends text alone."""

    def __str__(self) -> str:
        what = f"a drawing of {self.pixels} pixels" if self.pixels else "text alone"
        return f"{self.trajectories} trajector{'ies' if self.trajectories > 1 else 'y'}, {what}"


LOADS = (Load(1, 0), Load(1, 48), Load(1, 384), Load(16, 48), Load(16, 384))


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """A second of each: does everything run?"""
    seconds: int = 10
    """Seconds of each load."""
    connections: int = 16
    """Requests at a time."""
    workers: int = 1
    """Processes of the server."""


class Measured(NamedTuple):
    """Requests of one load."""

    rates: list[int]
    """Finished in each whole second."""
    latencies: list[float]
    """Seconds of each."""
    computing: tuple[float, float]
    """Seconds that server and client computed for each, wherever the rest of the time went."""


@contextmanager
def server(workers: int) -> Iterator[tuple[str, psutil.Process]]:
    """A server of `format` in processes of its own; its address, and the first process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["serve-reward", "format", "--port", str(port), "--workers", str(workers)]
    process = subprocess.Popen([sys.executable, "-m", "unison", *words], stdout=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}/format", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def connect(address: str, options: Options) -> RemoteReward:
    """The client that runs use, once the server is up."""
    for _ in range(60):
        try:
            return replace(RemoteReward.parse(address, RemoteConfig(timeout=30)), workers=options.connections).checked()
        except ClientError:
            time.sleep(1)
    raise RuntimeError(f"no server at {address} after minutes")


def measure(reward: RemoteReward, process: psutil.Process, load: Load, seconds: int) -> Measured:
    """Keeps all connections busy for the seconds."""
    rows, begun = trajectories(load), time.perf_counter()
    finished: list[float] = []
    latencies: list[float] = []

    def ask(_: int) -> None:
        while (start := time.perf_counter()) < begun + seconds:
            values = reward.request(rows)
            assert values == (1.0,) * load.trajectories
            finished.append(time.perf_counter() - begun)
            latencies.append(time.perf_counter() - start)

    server, client = computed(process), time.process_time()
    list(reward.pool.map(ask, range(reward.workers)))
    spent = ((computed(process) - server) / len(finished), (time.process_time() - client) / len(finished))
    return Measured([sum(s <= t < s + 1 for t in finished) for s in range(seconds)], latencies, spent)


def computed(process: psutil.Process) -> float:
    """Seconds of computing by the process and those that it started."""
    times = [p.cpu_times() for p in (process, *process.children(recursive=True))]
    return sum(t.user + t.system for t in times)


def trajectories(load: Load) -> list[Trajectory]:
    """Distinct drawings of one item, blocks of random colours."""
    rng, side = np.random.default_rng(0), load.pixels // 4
    blocks = rng.integers(0, 256, (load.trajectories, side, side, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    item = Item("a", prompt="a red square", answer="red")
    return [Trajectory(item, (), (REPLY,), (Image.fromarray(b),) if side else ()) for b in blocks]


def row(load: Load, measured: Measured) -> str:
    """A line of the table."""
    rates, times = measured.rates, sorted(measured.latencies)
    median, late = (1000 * times[round(share * (len(times) - 1))] for share in (0.5, 0.99))
    rate = statistics.median(rates)
    told = f"**{rate:.0f}** [{min(rates)}, {max(rates)}] | {rate * load.trajectories:.0f}"
    there, here = (1000 * seconds for seconds in measured.computing)
    return f"| {load} | {told} | {median:.0f} ms | {late:.0f} ms | {there:.2f} + {here:.2f} ms |"


def main(options: Options) -> None:
    """Measures, prints, writes."""
    seconds = 1 if options.quick else options.seconds
    how = f"{seconds} seconds of each, {options.connections} requests at a time, {options.workers} worker(s)"
    what = "reward `format`, client and server on the same cores"
    with server(options.workers) as (address, process):
        reward = connect(address, options)
        reward(trajectories(LOADS[0]), None)
        lines = (row(load, measure(reward, process, load, seconds)) for load in LOADS)
        publish_lines("benchmarks.speed.remote", HEADER, lines, how, what, written=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
