"""What clients of HTTP services share: kept connections, bounded repetition, a token from the environment."""

from __future__ import annotations

import base64
import io
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx2
    from PIL.Image import Image

T = TypeVar("T")
LONGEST_PAUSE = 30.0  # seconds between two attempts, whatever the server asks for
EXCERPT = 300  # characters of a server's own message that an error repeats
logger = logging.getLogger(__name__)


class ClientError(ValueError):
    """A service that cannot be used; the message names it, what happened and the remedy."""

    def __init__(self, message: str, kind: str = "address", attempts: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        """What happened, in a word or two: `timeout`, `unreachable`, `status 500`, `address`, or a subclass's own."""
        self.attempts = attempts


class Failure(NamedTuple):
    """Why an attempt failed, and what to do about it."""

    what: str
    remedy: str
    again: bool
    """Whether another attempt may succeed."""
    pause: float = 0.0
    """Seconds that the server asks to wait."""
    kind: str = "address"
    """As in `ClientError`."""


@dataclass(eq=False, kw_only=True)
class Client:
    """A client that keeps its connections; what subclasses ask at once is asked `workers` requests at a time.

    A connection that breaks, a timeout and the statuses 408, 425, 429 and 5xx (but those of `final`) are tried again,
    `attempts` times in all within `patience` seconds, and `backoff` seconds apart, twice as long each time or as long
    as the server asks, up to 30 seconds.
    """

    token: ClassVar[str]
    """Environment variable that holds the bearer token: it is never part of a configuration, a message or a cache."""
    remedies: ClassVar[Mapping[int, str]] = {}
    """What to do about a status, beyond that of a wrong token."""
    final: ClassVar[tuple[int, ...]] = ()
    """Statuses of 5xx that another attempt would meet again."""

    url: str
    timeout: float = 120.0
    """Seconds for one attempt."""
    attempts: int = 4
    backoff: float = 0.5
    patience: float = math.inf
    """Seconds from the first attempt after which no other begins."""
    workers: int = 16
    counts: dict[str, int] = field(init=False, repr=False)
    """So far: attempts, and failures among them."""
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)
    _told: float = field(init=False, repr=False, default=-math.inf)

    def __post_init__(self) -> None:
        self.counts = {"attempts": 0, "failures": 0}

    @property
    def name(self) -> str:
        """The service, as errors call it."""
        return self.url

    def ask(
        self, send: Callable[[httpx2.Client], httpx2.Response], read: Callable[[httpx2.Response], T | Failure]
    ) -> tuple[T, int]:
        """What `read` makes of the first success, and how many attempts it took.

        Raises:
            ClientError: a request that failed at every attempt, or that the server refused.
        """
        pause, end = self.backoff, time.monotonic() + self.patience
        for tried in range(1, self.attempts + 1):
            told = self._attempt(send, read)
            if not isinstance(told, Failure):
                return told, tried
            self.count(failures=1)
            rest = end - time.monotonic()
            if not told.again or tried == self.attempts or rest <= 0:
                raise self.failed(told, tried)
            wait = min(max(pause, told.pause), LONGEST_PAUSE, rest)
            self._tell(told, wait)
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError(f"a service is asked at least once, got attempts = {self.attempts}")

    def failed(self, failure: Failure, attempts: int) -> ClientError:
        """What to raise."""
        return ClientError(f"{self.name} {failure.what}; {failure.remedy}", failure.kind, attempts)

    def misunderstood(self, response: httpx2.Response, what: str, again: bool = False, kind: str = "") -> Failure:
        """A success that another kind of server would give."""
        said = self._without_token(response.text)[:EXCERPT]
        return Failure(f"answered what {what}: {said!r}", "correct the address", again, kind=kind or "address")

    def count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self.counts[name] += number

    @cached_property
    def pool(self) -> ThreadPoolExecutor:
        """Threads that wait for replies, no more of them than there are connections."""
        return ThreadPoolExecutor(self.workers)

    # -- one attempt -------------------------------------------------------------------------------------------------

    def _attempt(
        self, send: Callable[[httpx2.Client], httpx2.Response], read: Callable[[httpx2.Response], T | Failure]
    ) -> T | Failure:
        import httpx2

        self.count(attempts=1)
        try:
            response = send(self._connections)
        except httpx2.TimeoutException:
            what = f"gave no answer in {self.timeout:g} s"
            return Failure(what, "is the server overloaded, or still loading?", True, kind="timeout")
        except httpx2.TransportError as error:
            what = f"cannot be reached ({error})"
            return Failure(what, "start the server, or correct the address", True, kind="unreachable")
        return read(response) if response.is_success else self._refusal(response)

    def _refusal(self, response: httpx2.Response) -> Failure:
        status = response.status_code
        again = (status in (408, 425, 429) or status >= 500) and status not in self.final
        asked = response.headers.get("retry-after", "")
        pause = float(asked) if asked.isdigit() else 0.0
        said = " ".join(self._without_token(response.text[: 10 * EXCERPT]).split())[:EXCERPT]
        return Failure(f"answered {status}: {said}", self._remedy(status), again, pause, f"status {status}")

    def _without_token(self, text: str) -> str:
        """Some servers repeat a token that they refuse."""
        return text.replace(secret, "<token>") if (secret := token_in(self.token)) else text

    def _remedy(self, status: int) -> str:
        if status in (401, 403):
            may = {401: "it accepts", 403: "may use it"}[status]
            return f"put a token that {may} into the environment variable {self.token}"
        return self.remedies.get(status, "look into the server's log" if status >= 500 else "see what the server says")

    def _tell(self, failure: Failure, wait: float) -> None:
        """Warns that a server is waited for, not more often than the longest pause: many threads may."""
        with self._lock:
            silent = time.monotonic() - self._told < LONGEST_PAUSE
            if not silent:
                self._told = time.monotonic()
        if not silent:
            logger.warning("%s %s; asking again in %.1f s", self.name, failure.what, wait)

    @cached_property
    def _connections(self) -> httpx2.Client:
        import httpx2

        headers = {"Authorization": f"Bearer {secret}"} if (secret := token_in(self.token)) else {}
        limits = httpx2.Limits(max_connections=self.workers, max_keepalive_connections=self.workers)
        return httpx2.Client(headers=headers, timeout=self.timeout, limits=limits)


def token_in(variable: str) -> str:
    """The token that the environment variable holds, or nothing."""
    return os.environ.get(variable, "").strip()


def is_url(url: str) -> bool:
    """Whether it is a URL of http or https with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that are no address
        return False


def in_base64(picture: Image, form: Literal["PNG", "WEBP"]) -> str:
    """A picture as JSON can hold it, without loss; the fastest compression, since links are faster than zlib."""
    file = io.BytesIO()
    picture.convert("RGB").save(file, form, lossless=True, compress_level=1)
    return base64.b64encode(file.getvalue()).decode()
