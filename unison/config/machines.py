"""Other processes and other machines: how a run is spread over them, how judges there are asked and serve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unison.config.fields import Section
from unison.types import Count, Positive

Strategy = Literal["ddp", "fsdp2"]


@dataclass(frozen=True)
class RemoteConfig(Section, place="remote"):
    """How rewards on servers are asked, `remote:http://host:port/<reward>`."""

    timeout: Positive = 120.0
    """Seconds for one request."""
    patience: Positive = 900.0
    """Seconds for which a request is repeated while the server is away or busy, before the reward fails."""


@dataclass(frozen=True)
class DistributedConfig(Section, place="distributed"):
    """How a run on several processes is spread over them; docs/distributed.md says when to choose what."""

    strategy: Strategy = "ddp"
    """What every process keeps between the phases of a step: all weights and optimiser states (`ddp`), or its part of
    them, gathered for a rollout or an update (`fsdp2`)."""
    processes_per_group: Count = 1
    """Processes that share out the siblings of an item: more than 1 where there are fewer items than processes."""
    timeout: Positive = 1800.0
    """Seconds that a process waits for another before the run fails."""


@dataclass(frozen=True)
class ServeConfig(Section):
    """What a reward server takes on."""

    batch: Count = 64
    """Most trajectories judged in one call, of as many requests as wait."""
    queue: Count = 128
    """Requests that one worker holds; more are told to come back (503, with Retry-After)."""
    megabytes: Count = 64
    """Largest request."""
