"""Log-probabilities of a group's replies to one picture and question, and their gradient.

Siblings that hold one `Context` object share its pass through the network. The other side is the same policy given
an equal context per reply, which is what a batch without sharing computes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL.Image import Image
from torch import Tensor

from unison.policies.janus.policy import Janus
from unison.types import Context, Sampling, Tokens

QUESTION = (
    "What is the colour of the shape to the left of the two squares? Answer in one word inside <answer> </answer>."
)


def sides(policy: Janus, picture: Image, group: int, length: int) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Scorers of one group of replies, each giving log-probabilities [G, L] and the trained weights' gradient [N]."""
    parts = (picture, QUESTION)
    generator = torch.Generator().manual_seed(0)
    replies = [_reply(torch.randint(10, 400, (length,), generator=generator)) for _ in range(group)]
    shared = [Context(parts)] * group
    separate = [Context(parts) for _ in range(group)]

    def score(contexts: list[Context]) -> tuple[Tensor, Tensor]:
        logp = torch.stack(policy(contexts, replies))
        logp.mean().backward()
        trained = [p for p in policy.parameters() if p.grad is not None]
        gradient = torch.cat([p.grad.flatten() for p in trained])  # type: ignore[union-attr]
        policy.zero_grad()
        return logp.detach(), gradient

    return {"shared": lambda: score(shared), "separate": lambda: score(separate)}


def _reply(ids: Tensor) -> Tokens:
    length = len(ids)
    return Tokens(
        "text", ids, torch.arange(length), torch.zeros(length), torch.ones(length, dtype=torch.bool), Sampling()
    )
