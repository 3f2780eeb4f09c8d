"""Rewards that a server judges (`unison serve-reward`): asked at `http://host:port/<reward>`.

A GET there says that the server, the reward and the token are right, and what a request may hold; a POST judges. A
server that is away or busy is waited for, up to `patience`; what it cannot judge is None, and a reward that raises
there raises here. Values are those of the reward itself: pictures travel without loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import BaseModel, Field, ValidationError

from unison.config import RemoteConfig
from unison.rewards.remote import wire
from unison.rewards.remote.http import Client, ClientError, Failure, is_url
from unison.types import Trajectory

if TYPE_CHECKING:
    import httpx2

M = TypeVar("M", bound=BaseModel)
TOKEN = "UNISON_REWARD_TOKEN"
REMOTE = "remote"
REQUESTS, ROWS = 16, 16  # of a process at a time; most trajectories of one
FIRST_PATIENCE = 5.0  # seconds, before training: nothing is lost yet


class Terms(BaseModel):
    """What a server says of a reward."""

    reward: str
    bytes: int = Field(gt=0)
    """Most bytes of a request."""
    rows: int = Field(gt=0)
    """Most trajectories that are judged in one call; a request of more would wait for itself."""


@dataclass(eq=False, kw_only=True)
class RemoteReward(Client):
    """A reward `(trajectories, policy) -> values` that is judged elsewhere, `workers` requests at a time."""

    token: ClassVar[str] = TOKEN
    remedies: ClassVar[Mapping[int, str]] = {
        404: "name a reward that the server has, as in http://host:port/clip",
        413: "raise the server's --megabytes",
        422: "client and server must be of one version of Unison",
    }
    final: ClassVar[tuple[int, ...]] = (500,)  # the reward itself raised, and would again

    rows: int
    """Most trajectories of a request."""
    most_bytes: int = 2**63
    """Most bytes of a request; a trajectory that alone has more is sent all the same, and the server says no."""

    @property
    def name(self) -> str:
        return f"the reward server {self.url}"

    @classmethod
    def parse(cls, address: str, config: RemoteConfig) -> RemoteReward:
        """The reward at `http://host:port/<reward>`.

        Raises:
            ClientError: not such an address, or a token in it.
        """
        if "@" in address:
            raise ClientError(f"the server's address holds a secret: put it into the environment variable {TOKEN}")
        if not is_url(address) or not address.rpartition("/")[2] or address.count("/") < 3:
            raise ClientError(f"{address!r} is no reward on a server: write {REMOTE}:http://host:port/<reward>")
        return cls(
            url=address,
            timeout=config.timeout,
            attempts=10**6,  # patience ends sooner
            patience=config.patience,
            workers=REQUESTS,
            rows=ROWS,
        )

    def checked(self) -> RemoteReward:
        """The same with the limits of the server, which is there, has the reward and accepts the token.

        Raises:
            ClientError: it is not there, or does not.
        """
        brief = replace(self, patience=min(self.patience, FIRST_PATIENCE))
        terms, _ = brief.ask(lambda client: client.get(self.url), lambda response: self._parsed(Terms, response))
        return replace(self, rows=min(self.rows, terms.rows), most_bytes=terms.bytes)

    def __call__(self, trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
        """The values, in order.

        Raises:
            ClientError: the server stayed away, or refused.
        """
        parts = list(self._parts(trajectories))
        return [value for values in self.pool.map(self.request, parts) for value in values]

    def _parts(self, trajectories: Sequence[Trajectory]) -> Iterator[list[Trajectory]]:
        """Neighbours that fit into one request."""
        part: list[Trajectory] = []
        size, items = 0, set[int]()
        for trajectory in trajectories:
            own, item = wire.size(trajectory), wire.item_size(trajectory.item)
            more = own + (0 if id(trajectory.item) in items else item)
            if part and (len(part) == self.rows or size + more > self.most_bytes):
                yield part
                part, size, items, more = [], 0, set(), own + item
            part.append(trajectory)
            size, items = size + more, items | {id(trajectory.item)}
        if part:
            yield part

    def request(self, part: Sequence[Trajectory]) -> tuple[float | None, ...]:
        """The values of what fits into one request."""
        body = wire.write(part)
        headers = {"Content-Type": "application/json"}

        def read(response: httpx2.Response) -> tuple[float | None, ...] | Failure:
            sent = self._parsed(wire.SentValues, response)
            if isinstance(sent, Failure):
                return sent
            if len(sent.values) != len(part):
                return Failure(f"gave {len(sent.values)} values for {len(part)} trajectories", "is it Unison's?", False)
            return sent.values

        values, _ = self.ask(lambda client: client.post(self.url, content=body, headers=headers), read)
        return values

    def _parsed(self, kind: type[M], response: httpx2.Response) -> M | Failure:
        try:
            return kind.model_validate_json(response.content)
        except ValidationError:
            return self.misunderstood(response, "no reward server does")
