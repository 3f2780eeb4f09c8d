"""A model behind an OpenAI-compatible endpoint: conversations of text and pictures in, replies out.

An address is written `http://host:port/v1#model`. The bearer token, where the server wants one, is read from the
environment variable UNISON_API_KEY: it is never part of a configuration, a message or a cache.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx2
    from PIL.Image import Image

TOKEN = "UNISON_API_KEY"
LONGEST_PAUSE = 30.0  # seconds between two attempts, whatever the server asks for
EXCERPT = 200  # characters of a server's own message that an error repeats
SCHEMES = ("http://", "https://")
"""How an address begins, where a checkpoint could stand as well."""
REMEDIES = {
    401: f"put a token that it accepts into the environment variable {TOKEN}",
    403: f"put a token that may use it into the environment variable {TOKEN}",
    404: "is the model's name right, and does the URL end where /chat/completions follows, mostly in /v1?",
}

Payload: TypeAlias = dict[str, Any]


class EndpointError(ValueError):
    """An endpoint that cannot be used; the message names URL, what happened and the remedy."""

    def __init__(self, message: str, kind: str = "address", attempts: int = 0) -> None:
        super().__init__(message)
        self.kind = kind
        """What happened, in a word or two: `timeout`, `unreachable`, `status 500`, `no completion`, `address`."""
        self.attempts = attempts


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | Image, ...]
    """Texts and pictures in order."""

    def payload(self, form: Literal["PNG", "WEBP"]) -> Payload:
        """As the interface writes it; text alone is a plain string, which servers without pictures expect."""
        if all(isinstance(part, str) for part in self.parts):
            return {"role": self.role, "content": "\n".join(map(str, self.parts))}
        return {"role": self.role, "content": [_part(part, form) for part in self.parts]}


@dataclass(frozen=True)
class Completion:
    """What the model said."""

    text: str
    first: dict[str, float] = field(default_factory=dict)
    """Log-probability of the likeliest first tokens, where they were asked for and the server gives them."""
    used: dict[str, int] = field(default_factory=dict, compare=False)
    """The attempts made for it and the tokens that the server counted; nothing where it comes from the cache."""


class Failure(NamedTuple):
    """Why an attempt failed, and what to do about it."""

    what: str
    remedy: str
    again: bool
    """Whether another attempt may succeed."""
    pause: float = 0.0
    """Seconds that the server asks to wait."""
    kind: str = "address"
    """As in `EndpointError`."""


@dataclass(eq=False)
class Endpoint:
    """A client that keeps its connections; `complete` asks `workers` conversations at a time.

    A connection that breaks, a timeout and the statuses 408, 425, 429 and 5xx are tried again, `attempts` times in all
    and `backoff` seconds apart, twice as long each time or as long as the server asks, up to 30 seconds.
    """

    url: str
    """Up to where /chat/completions follows."""
    model: str
    timeout: float = 120.0
    """Seconds for one attempt."""
    attempts: int = 4
    backoff: float = 0.5
    workers: int = 16
    picture: Literal["PNG", "WEBP"] = "PNG"
    """Form in which pictures are sent; both are lossless."""
    cache: Path | None = None
    """Folder in which replies are kept, by model and conversation; with it nothing is asked twice."""
    counts: dict[str, int] = field(init=False, repr=False)
    """So far: attempts, failures among them, replies from the cache, and the tokens that the server counted."""
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        names = ("attempts", "failures", "cached", "prompt_tokens", "completion_tokens")
        self.counts = dict.fromkeys(names, 0)

    @classmethod
    def parse(cls, address: str) -> Endpoint:
        """The endpoint of `http://host:port/v1#model`.

        Raises:
            EndpointError: not such an address, or a token in it.
        """
        url, _, model = address.partition("#")
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and model
        except ValueError:  # a port that is no number, brackets that are no address
            sound = False
        if "@" in url:
            raise EndpointError(f"the endpoint's address holds a secret: put it into the environment variable {TOKEN}")
        if not sound:
            raise EndpointError(f"{address!r} is no endpoint: write http://host:port/v1#model, with the model's name")
        return cls(url.rstrip("/"), model)

    def check(self, logprobs: int = 0, image: Image | None = None) -> None:
        """Asks for one token, cached nowhere: address, token and model are right.

        Args:
            image: shown to a model that must see pictures.

        Raises:
            EndpointError: they are not, or log-probabilities are needed and not given.
        """
        parts = ("Reply with the word Yes.",) if image is None else (image, "Reply with the word Yes.")
        told = self._ask(self._payload([Message("user", parts)], 1, logprobs))
        if logprobs and not told.first:
            raise self._error(Failure("gives no log-probabilities", "choose a server that does", False), 1)

    def complete(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, logprobs: int = 0
    ) -> list[Completion]:
        """The reply to each conversation at temperature 0.

        Args:
            max_tokens: longest reply.
            logprobs: how many of the likeliest first tokens to give the log-probability of.

        Raises:
            EndpointError: a request that failed at every attempt, or that the server refused.
        """
        told: list[Completion] = []
        for outcome in self.outcomes(conversations, max_tokens, logprobs):
            if isinstance(outcome, EndpointError):
                raise outcome
            told.append(outcome)
        return told

    def outcomes(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, logprobs: int = 0
    ) -> Iterator[Completion | EndpointError]:
        """As `complete`, each in turn as soon as it is there, and an error in the place of what failed."""

        def ask(messages: Sequence[Message]) -> Completion | EndpointError:
            try:
                return self._cached(self._payload(messages, max_tokens, logprobs))
            except EndpointError as error:
                return error

        with ThreadPoolExecutor(self.workers) as pool:
            yield from pool.map(ask, conversations)

    # -- requests ------------------------------------------------------------------------------------------------

    def _payload(self, messages: Sequence[Message], max_tokens: int, logprobs: int) -> Payload:
        written = [message.payload(self.picture) for message in messages]
        payload: Payload = {"model": self.model, "messages": written, "max_tokens": max_tokens, "temperature": 0}
        return payload | ({"logprobs": True, "top_logprobs": logprobs} if logprobs else {})

    def _cached(self, payload: Payload) -> Completion:
        if self.cache is None:
            return self._ask(payload)
        name = hashlib.sha256(json.dumps(payload, sort_keys=True).encode()).hexdigest()
        path = self.cache / f"{name}.json"
        if path.is_file():
            self._count(cached=1)
            return Completion(**json.loads(path.read_text(encoding="utf-8")))
        told = self._ask(payload)
        self.cache.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")  # a killed run leaves no half reply
        draft.write_text(json.dumps({"text": told.text, "first": told.first}), encoding="utf-8")
        draft.replace(path)
        return told

    def _ask(self, payload: Payload) -> Completion:
        for tried in range(1, self.attempts + 1):
            told = self._attempt(payload)
            if isinstance(told, Completion):
                return replace(told, used=told.used | {"attempts": tried})
            self._count(failures=1)
            if not told.again or tried == self.attempts:
                raise self._error(told, tried)
            doubled = self.backoff * 2 ** (tried - 1)
            time.sleep(min(max(doubled, told.pause), LONGEST_PAUSE))
        raise AssertionError(f"an endpoint is asked at least once, got attempts = {self.attempts}")

    def _attempt(self, payload: Payload) -> Completion | Failure:
        import httpx2

        self._count(attempts=1)
        try:
            response = self._client.post(f"{self.url}/chat/completions", json=payload)
        except httpx2.TimeoutException:
            what = f"gave no answer in {self.timeout:g} s"
            return Failure(what, "is the server overloaded, or still loading?", True, kind="timeout")
        except httpx2.TransportError as error:
            what = f"cannot be reached ({error})"
            return Failure(what, "start the server, or correct the address", True, kind="unreachable")
        if not response.is_success:
            return self._refusal(response)
        return self._read(response)

    def _refusal(self, response: httpx2.Response) -> Failure:
        status = response.status_code
        again = status in (408, 425, 429) or status >= 500
        remedy = REMEDIES.get(status, "look into the server's log" if status >= 500 else "see what the server says")
        asked = response.headers.get("retry-after", "")
        said = " ".join(self._without_token(response.text[: 10 * EXCERPT]).split())[:EXCERPT]
        pause = float(asked) if asked.isdigit() else 0.0
        return Failure(f"answered {status}: {said}", remedy, again, pause, f"status {status}")

    def _read(self, response: httpx2.Response) -> Completion | Failure:
        try:
            body = response.json()
            choice = body["choices"][0]
            text = str(choice["message"]["content"] or "")
            first = _first_tokens(choice)
        except (ValueError, KeyError, IndexError, TypeError):
            said = self._without_token(response.text)[:EXCERPT]
            what = f"answered what is no chat completion: {said!r}"
            return Failure(what, "correct the address", True, kind="no completion")
        told = body.get("usage") or {}
        used = {name: int(told.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        self._count(**used)
        return Completion(text, first, used)

    def _error(self, failure: Failure, attempts: int) -> EndpointError:
        message = f"the endpoint {self.url} (model {self.model!r}) {failure.what}; {failure.remedy}"
        return EndpointError(message, failure.kind, attempts)

    @cached_property
    def _client(self) -> httpx2.Client:
        import httpx2

        headers = {"Authorization": f"Bearer {token}"} if (token := _token()) else {}
        limits = httpx2.Limits(max_connections=self.workers, max_keepalive_connections=self.workers)
        return httpx2.Client(headers=headers, timeout=self.timeout, limits=limits)

    def _without_token(self, text: str) -> str:
        """Some servers repeat a token that they refuse."""
        return text.replace(token, "<token>") if (token := _token()) else text

    def _count(self, **more: int) -> None:
        with self._lock:
            for name, number in more.items():
                self.counts[name] += number


def _token() -> str:
    return os.environ.get(TOKEN, "").strip()


def _part(part: str | Image, form: Literal["PNG", "WEBP"]) -> Payload:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    file = io.BytesIO()
    part.convert("RGB").save(file, form, lossless=True)
    url = f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _first_tokens(choice: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities of the likeliest first tokens; none where the server gives none."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return {row["token"]: float(row["logprob"]) for row in tokens[0]["top_logprobs"]} if tokens else {}
