"""Replies of unequal length, with finished ones making room for those that wait, against batch after batch.

Both write the same replies, so many at a time: a batch goes on until its longest reply ends, and only then comes the
next. Replies end at random, after 64 tokens on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from unison.policies.actions import sampled
from unison.policies.decisions.tokens import uniforms
from unison.policies.decoding import causal, refill
from unison.policies.janus.policy import Janus
from unison.types import Context, Sampling

QUESTION = "What is to the left of the two squares? Think before you answer."
AVERAGE = 64


def sides(policy: Janus, count: int, width: int, longest: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Writers of `count` replies to one question, `width` at a time, each giving their ids."""
    stop, sampling, u = policy.tokenizer.eos_token_id, Sampling(max_tokens=longest), uniforms(range(count), longest)
    speaker = replace(policy._speaker("text"), head=_ending_head(policy.network.lm_head, stop))
    with torch.no_grad():
        prefixes = policy._prompts([Context((QUESTION,))], "text", guided=False).prefixes

    def write(u: Tensor, width: int) -> list[Tensor]:
        prompts = causal.Prompts(prefixes, causal.Rows(torch.zeros(len(u), dtype=torch.long), None))
        writer = replace(speaker, config=replace(policy.config, rows_writing=width))
        written = refill.sample(writer, prompts, sampling, u, stop)
        return [sampled("text", i, p, stop, sampling).ids for i, p in zip(*written, strict=True)]

    return {
        "refilled": lambda: write(u, width),
        "batches": lambda: [reply for batch in u.split(width) for reply in write(batch, 0)],
    }


def _ending_head(head: nn.Module, stop: int) -> nn.Linear:
    """The head with a bias that ends one text in `AVERAGE` at any token, about, whatever the random weights say."""
    assert isinstance(head, nn.Linear)
    ending = nn.Linear(head.in_features, head.out_features)
    with torch.no_grad():
        ending.weight.copy_(head.weight)
        ending.weight[stop] = 0
        ending.bias.zero_()
        ending.bias[stop] = math.log(head.out_features / (AVERAGE - 1))
    return ending
