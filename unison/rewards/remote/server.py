"""Rewards over HTTP, for runs that name them `remote:http://host:port/<reward>` (`unison.rewards.remote.client`).

    GET  /health     no token: the worker is up; requests that it holds, by reward
    GET  /<reward>   what a request may hold
    POST /<reward>   trajectories in JSON (`unison.rewards.remote.wire`) -> {"values": [0.5, null, ...]}

What waits for a reward is judged together, first come first served, in the one thread of a worker that judges. Nobody
waits for a batch to fill: it is what has come while the last one was judged. Errors are `{"detail": "..."}` with 400
for what cannot be read, 401 for the token, 404 for the name, 413 for the size, 500 with the reward's name where it
raised, and 503 with Retry-After where too many wait.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing.process import BaseProcess
from typing import TypeAlias

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from unison.config import ServeConfig
from unison.rewards import REWARDS, load_rewards, values_of
from unison.rewards.remote import wire
from unison.rewards.remote.client import REMOTE, TOKEN, Terms
from unison.rewards.remote.http import token_in
from unison.types import RewardFn, Trajectory

WORK = "UNISON_SERVE"  # how the first process tells the workers what to serve
DRAINED = 2**28  # bytes that are read of a request that is refused: a client that still writes does not listen
SMALL = 2**16  # bytes of a request that are read sooner than a thread is found for them
IDLE = 75  # seconds for which idle connections are kept: longer than clients do, so that they are the ones to close
LOOPBACK = ("127.0.0.1", "localhost", "::1")
logger = logging.getLogger(__name__)

Outcome: TypeAlias = "list[float | None] | Exception"


# -- judging ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Job:
    """A request that waits."""

    trajectories: list[Trajectory]
    request: Request
    outcome: asyncio.Future[Outcome]

    async def is_gone(self) -> bool:
        """Whether nobody waits for the outcome any more; a client that gave up will have asked again."""
        if gone := await self.request.is_disconnected():
            self.outcome.set_result(ConnectionError("the client is gone"))
        return gone


class Bench:
    """One reward, and the requests that wait for it."""

    def __init__(self, name: str, reward: RewardFn, config: ServeConfig, thread: ThreadPoolExecutor) -> None:
        self.name, self.reward, self.config, self.thread = name, reward, config, thread
        self.held = 0  # requests that are being read, wait or are judged
        self.seconds = 0.0  # that the last batch took
        self.waiting: deque[Job] = deque()
        self.come = asyncio.Event()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Holds one of the places of the queue.

        Raises:
            HTTPException: 503, there is none.
        """
        if self.held >= self.config.queue:
            after = str(max(1, math.ceil(self.seconds)))
            raise HTTPException(503, f"{self.held} requests wait for reward {self.name!r}", {"Retry-After": after})
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def values(self, trajectories: list[Trajectory], request: Request) -> list[float | None]:
        """The reward's values, once it is this request's turn.

        Raises:
            HTTPException: 413, more rows than are judged in one call; 500, the reward raised.
        """
        if len(trajectories) > self.config.batch:
            raise HTTPException(413, f"{len(trajectories)} trajectories, at most {self.config.batch} in a request")
        job = Job(trajectories, request, asyncio.get_running_loop().create_future())
        self.waiting.append(job)
        self.come.set()
        outcome = await job.outcome
        if isinstance(outcome, Exception):
            raise HTTPException(500, f"reward {self.name!r} failed: {type(outcome).__name__}: {outcome}")
        return outcome

    async def work(self) -> None:
        """Judges what waits, batch after batch."""
        loop = asyncio.get_running_loop()
        while True:
            await self.come.wait()
            jobs = [job for job in self._next() if not await job.is_gone()]
            start = time.monotonic()
            rows = [job.trajectories for job in jobs]
            outcomes = await loop.run_in_executor(self.thread, judge, self.reward, rows)
            self.seconds = time.monotonic() - start
            for job, outcome in zip(jobs, outcomes, strict=True):
                job.outcome.set_result(outcome)

    def _next(self) -> list[Job]:
        """The requests whose turn it is."""
        jobs, rows = [], 0
        while self.waiting and rows + len(self.waiting[0].trajectories) <= self.config.batch:
            jobs.append(self.waiting.popleft())
            rows += len(jobs[-1].trajectories)
        if not self.waiting:
            self.come.clear()
        return jobs


def judge(reward: RewardFn, requests: Sequence[Sequence[Trajectory]]) -> list[Outcome]:
    """The values of each request, or its own exception: where they fail together, each is judged alone."""
    try:
        values = iter(values_of(reward, [t for request in requests for t in request], None))
    except Exception as error:
        if len(requests) > 1:
            return [outcome for request in requests for outcome in judge(reward, [request])]
        logger.exception("a reward failed")
        return [error]
    return [list(islice(values, len(request))) for request in requests]


# -- HTTP -------------------------------------------------------------------------------------------------------------


def build(rewards: Mapping[str, RewardFn], config: ServeConfig) -> FastAPI:
    """The application. Requests need the token that the environment holds now; without one they need none."""
    thread = ThreadPoolExecutor(1)  # rewards share models that are loaded on first use
    benches = {name: Bench(name, reward, config, thread) for name, reward in rewards.items()}
    secret, most_bytes = token_in(TOKEN), config.megabytes * 2**20

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        works = [asyncio.create_task(bench.work()) for bench in benches.values()]
        yield
        for work in works:
            work.cancel()

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    def find(name: str, request: Request) -> Bench:
        _authorise(request, secret)
        if name not in benches:
            raise HTTPException(404, f"no reward {name!r} here; there are {', '.join(benches)}")
        return benches[name]

    @app.get("/health")
    async def health() -> dict[str, dict[str, int]]:
        return {"held": {name: bench.held for name, bench in benches.items()}}

    @app.get("/{name}")
    async def terms(name: str, request: Request) -> Terms:
        return Terms(reward=find(name, request).name, bytes=most_bytes, rows=config.batch)

    @app.post("/{name}")
    async def score(name: str, request: Request) -> JSONResponse:
        with ExitStack() as place:
            try:
                bench = find(name, request)
                place.enter_context(bench.place())
            except HTTPException:
                await _body(request, 0)
                raise
            trajectories = await _trajectories(await _body(request, most_bytes), most_bytes)
            return JSONResponse({"values": await bench.values(trajectories, request)})

    return app


def _authorise(request: Request, secret: str) -> None:
    given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if secret and not hmac.compare_digest(given.encode(), secret.encode()):
        told = "this is not the bearer token of this server" if given else "this server wants a bearer token"
        raise HTTPException(401, told, {"WWW-Authenticate": "Bearer"})


async def _body(request: Request, most: int) -> bytes | None:
    """The body; None where it has more bytes than `most`, which are read but not kept: a client that still writes does
    not listen."""
    kept, size = bytearray(), 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= most:
                kept += part
            else:
                kept.clear()
            if size > DRAINED:
                break
    except ClientDisconnect:
        raise HTTPException(400, "the client is gone") from None
    return bytes(kept) if size <= most else None


async def _trajectories(body: bytes | None, most: int) -> list[Trajectory]:
    if body is None:
        raise HTTPException(413, f"the request has more than {most:,} bytes, the most that is read")
    try:
        return wire.read(body) if len(body) < SMALL else await asyncio.to_thread(wire.read, body)
    except wire.WireError as error:
        raise HTTPException(400, str(error)) from None


# -- processes --------------------------------------------------------------------------------------------------------


def load(specs: Sequence[str]) -> dict[str, RewardFn]:
    """The named rewards under the names they are served by, which are those before the first colon.

    Raises:
        ValueError: none, two of one name, one that cannot be judged apart from a run, or as `load_rewards`.
    """
    names = [spec.partition(":")[0] for spec in specs]
    if not names:
        raise ValueError("serve-reward: name at least one reward; `unison recipes` lists them")
    for name in names:
        if name in REWARDS and REWARDS[name].reads_policy:
            raise ValueError(
                f"serve-reward {name}: it reads the policy that is trained, its hidden states or its captions, which "
                f"no server has; give it to the run itself: --rewards.{name.replace('_', '-')} 1"
            )
        if name == REMOTE:
            raise ValueError(f"serve-reward {name}: another server has it; give its address to the run itself")
        if names.count(name) > 1:
            raise ValueError(f"serve-reward {' '.join(specs)}: two would be /{name}; start a server for each")
    return dict(zip(names, load_rewards(specs).values(), strict=True))


def serve(specs: Sequence[str], config: ServeConfig, host: str, port: int, workers: int) -> None:
    """Serves until it is stopped; each worker is a process with models of its own.

    Raises:
        ValueError: rewards that cannot be served, or strangers that could ask for them.
    """
    if host not in LOOPBACK and not token_in(TOKEN):
        raise ValueError(f"--host {host}: others can reach it; put a token into the environment variable {TOKEN}")
    names = list(load(specs))
    os.environ[WORK] = json.dumps([specs, asdict(config), workers])
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s")
    print(f"serving {', '.join(f'http://{host}:{port}/{name}' for name in names)}", flush=True)
    uvicorn.run(
        "unison.rewards.remote.server:worker",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_level="warning",
        access_log=False,
        timeout_keep_alive=IDLE,
    )


def worker() -> FastAPI:
    """One worker's application, of what `serve` was asked for."""
    specs, config, workers = json.loads(os.environ[WORK])
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    return build(load(specs), ServeConfig(**config))


def _end_with(parent: BaseProcess) -> None:
    """A first process that is killed leaves no workers that hold the port."""
    parent.join()
    os._exit(1)
