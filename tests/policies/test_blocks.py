"""Scoring in one packed sequence is scoring in rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.policies.test_decode import llama
from unison.config import PolicyConfig
from unison.policies.decoding import causal
from unison.policies.decoding import packed as blocks
from unison.policies.decoding.causal import Prompts, Rows, Speaker
from unison.policies.janus.policy import Janus
from unison.types import Context, Sampling

WIDTH, VOCABULARY = 48, 40
ROWS = Rows(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([3, 3, 3, 4, 4]))
SAMPLING = Sampling(guidance=2.0)


@pytest.fixture
def parts() -> tuple[nn.Module, list[Tensor], nn.Embedding, nn.Linear, list[Tensor]]:
    """A decoder, prefixes, embedding, head and continuations of unequal length."""
    network = llama(num_key_value_heads=2)
    generator = torch.Generator().manual_seed(1)
    prefixes = [torch.randn(n, WIDTH, generator=generator) for n in (3, 9, 5, 4, 6)]
    continuations = [torch.randint(VOCABULARY, (n,), generator=generator) for n in (7, 1, 4, 2, 6)]
    return network, prefixes, nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY), continuations


def dense(layout: blocks.Layout) -> Tensor:
    """The mask for ordinary attention, which computes everything that it hides. [1, 1, T, T] bool"""
    at = torch.arange(len(layout.owner))
    return layout.sees(at[:, None], at)[None, None]


def test_a_token_sees_its_prefix_and_its_own_past() -> None:
    layout = blocks.Layout.of([2, 1], torch.tensor([0, 0, 1]), [2, 0, 1])
    names = ["p0", "p0", "p1", "a", "a", "c"]
    seen = [[names[k] + str(k) for k in range(6) if dense(layout)[0, 0, q, k]] for q in range(6)]
    assert seen == [["p00"], ["p00", "p01"], ["p12"], ["p00", "p01", "a3"], ["p00", "p01", "a3", "a4"], ["p12", "c5"]]
    assert layout.positions.tolist() == [0, 1, 0, 2, 3, 1]


def test_packed_states_and_gradients_are_those_of_rows(parts) -> None:
    network, prefixes, embed, head, continuations = parts
    weights = [*network.parameters(), *embed.parameters(), *head.parameters()]
    in_rows = torch.cat(causal.score(Speaker(network, embed, head), Prompts(prefixes, ROWS), SAMPLING, continuations))
    expected = torch.autograd.grad(in_rows.sum(), weights, allow_unused=True)
    every = [*continuations, *continuations]
    hidden = torch.cat(blocks.states(network, prefixes, ROWS.branches(), embed, every, dense))
    conditional, unconditional = hidden.chunk(2)
    logits = torch.lerp(head(unconditional), head(conditional), SAMPLING.guidance)
    packed = torch.log_softmax(logits, -1).gather(-1, torch.cat(continuations)[:, None]).squeeze(-1)
    assert torch.allclose(packed, in_rows, atol=1e-4)
    found = torch.autograd.grad(packed.sum(), weights, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.allclose(one, other, atol=1e-4 * other.abs().max().item())


@torch.no_grad()
def test_flex_attention_scores_what_ordinary_attention_scores(parts) -> None:
    network, prefixes, embed, head, continuations = parts
    in_rows = causal.score(Speaker(network, embed, head), Prompts(prefixes, ROWS), SAMPLING, continuations)
    blocks.accept(network)
    flex = PolicyConfig("", attention="flex")
    packed = causal.score(Speaker(network, embed, head, flex), Prompts(prefixes, ROWS), SAMPLING, continuations)
    again = causal.score(Speaker(network, embed, head), Prompts(prefixes, ROWS), SAMPLING, continuations)
    assert [len(row) for row in packed] == [7, 1, 4, 2, 6]
    assert torch.allclose(torch.cat(packed), torch.cat(in_rows), atol=1e-4)
    assert torch.allclose(torch.cat(again), torch.cat(in_rows), atol=1e-5)


@torch.no_grad()
def test_a_policy_scores_the_same_in_one_sequence(make_policy: Callable[..., Janus]) -> None:
    contexts = [context for words in ("a", "a red circle") for context in [Context((words,))] * 2]
    plain, flex = make_policy(), make_policy(attention="flex")
    for actions in (
        plain.write(contexts, Sampling(max_tokens=5), range(4)),
        plain.draw(contexts, Sampling(guidance=3.0), range(4)),
    ):
        for one, other in zip(plain(contexts, actions), flex(contexts, actions), strict=True):
            assert torch.allclose(one, other, atol=1e-4)
