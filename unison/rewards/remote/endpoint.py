"""A model behind an OpenAI-compatible endpoint: conversations of text and pictures in, replies out.

An address is written `http://host:port/v1#model`. The bearer token, where the server wants one, is read from the
environment variable UNISON_API_KEY: it is never part of a configuration, a message or a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from unison.rewards.remote.http import Client, ClientError, Failure, in_base64, is_url

if TYPE_CHECKING:
    import httpx2
    from PIL.Image import Image

TOKEN = "UNISON_API_KEY"
SCHEMES = ("http://", "https://")
"""How an address begins, where a checkpoint could stand as well."""

Payload: TypeAlias = dict[str, Any]


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


@dataclass(eq=False, kw_only=True)
class Endpoint(Client):
    """A client of one model; `complete` asks `workers` conversations at a time. `url` ends where /chat/completions
    follows."""

    token: ClassVar[str] = TOKEN
    remedies: ClassVar[Mapping[int, str]] = {
        404: "is the model's name right, and does the URL end where /chat/completions follows, mostly in /v1?"
    }

    model: str
    picture: Literal["PNG", "WEBP"] = "PNG"
    """Form in which pictures are sent; both are lossless."""
    cache: Path | None = None
    """Folder in which replies are kept, by model and conversation; with it nothing is asked twice. `counts` tells how
    many replies came from it, beside the tokens that the server counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.counts |= dict.fromkeys(("cached", "prompt_tokens", "completion_tokens"), 0)

    @property
    def name(self) -> str:
        return f"the endpoint {self.url} (model {self.model!r})"

    @classmethod
    def parse(cls, address: str) -> Endpoint:
        """The endpoint of `http://host:port/v1#model`.

        Raises:
            ClientError: not such an address, or a token in it.
        """
        url, _, model = address.partition("#")
        if "@" in url:
            raise ClientError(f"the endpoint's address holds a secret: put it into the environment variable {TOKEN}")
        if not is_url(url) or not model:
            raise ClientError(f"{address!r} is no endpoint: write http://host:port/v1#model, with the model's name")
        return cls(url=url.rstrip("/"), model=model)

    def check(self, logprobs: int = 0, image: Image | None = None) -> None:
        """Asks for one token, cached nowhere: address, token and model are right.

        Args:
            image: shown to a model that must see pictures.

        Raises:
            ClientError: they are not, or log-probabilities are needed and not given.
        """
        parts = ("Reply with the word Yes.",) if image is None else (image, "Reply with the word Yes.")
        told = self._ask(self._payload([Message("user", parts)], 1, logprobs))
        if logprobs and not told.first:
            raise self.failed(Failure("gives no log-probabilities", "choose a server that does", False), 1)

    def complete(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, logprobs: int = 0
    ) -> list[Completion]:
        """The reply to each conversation at temperature 0.

        Args:
            max_tokens: longest reply.
            logprobs: how many of the likeliest first tokens to give the log-probability of.

        Raises:
            ClientError: a request that failed at every attempt, or that the server refused.
        """
        told: list[Completion] = []
        for outcome in self.outcomes(conversations, max_tokens, logprobs):
            if isinstance(outcome, ClientError):
                raise outcome
            told.append(outcome)
        return told

    def outcomes(
        self, conversations: Sequence[Sequence[Message]], max_tokens: int, logprobs: int = 0
    ) -> Iterator[Completion | ClientError]:
        """As `complete`, each in turn as soon as it is there, and an error in the place of what failed."""

        def ask(messages: Sequence[Message]) -> Completion | ClientError:
            try:
                return self._cached(self._payload(messages, max_tokens, logprobs))
            except ClientError as error:
                return error

        yield from self.pool.map(ask, conversations)

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
            self.count(cached=1)
            return Completion(**json.loads(path.read_text(encoding="utf-8")))
        told = self._ask(payload)
        self.cache.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")  # a killed run leaves no half reply
        draft.write_text(json.dumps({"text": told.text, "first": told.first}), encoding="utf-8")
        draft.replace(path)
        return told

    def _ask(self, payload: Payload) -> Completion:
        told, attempts = self.ask(lambda client: client.post(f"{self.url}/chat/completions", json=payload), self._read)
        return replace(told, used=told.used | {"attempts": attempts})

    def _read(self, response: httpx2.Response) -> Completion | Failure:
        try:
            body = response.json()
            choice = body["choices"][0]
            text = str(choice["message"]["content"] or "")
            first = _first_tokens(choice)
        except (ValueError, KeyError, IndexError, TypeError):
            return self.misunderstood(response, "is no chat completion", again=True, kind="no completion")
        told = body.get("usage") or {}
        used = {name: int(told.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        self.count(**used)
        return Completion(text, first, used)


def _part(part: str | Image, form: Literal["PNG", "WEBP"]) -> Payload:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url = f"data:image/{form.lower()};base64,{in_base64(part, form)}"
    return {"type": "image_url", "image_url": {"url": url}}


def _first_tokens(choice: Mapping[str, Any]) -> dict[str, float]:
    """Log-probabilities of the likeliest first tokens; none where the server gives none."""
    tokens = (choice.get("logprobs") or {}).get("content") or []
    return {row["token"]: float(row["logprob"]) for row in tokens[0]["top_logprobs"]} if tokens else {}
