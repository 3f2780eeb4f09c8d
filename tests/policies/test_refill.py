"""Texts that are written a few at a time are those that are written all at once, with less computed in vain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from unison.config import PolicyConfig
from unison.policies.decisions.tokens import uniforms
from unison.policies.decoding import causal, cpu, refill
from unison.policies.decoding.causal import Prompts, Rows, Speaker
from unison.policies.janus.policy import Janus
from unison.policies.metaquery.policy import MetaQuery
from unison.policies.showo.policy import ShowO
from unison.types import Context, Sampling

Made = Callable[..., Janus | ShowO | MetaQuery]
WIDTH, VOCABULARY, LONGEST, STOP = 32, 12, 24, 3
LENGTHS = 3, 9, 5  # of the prefixes
OF_ROW = torch.tensor([0, 0, 1, 2, 2, 1, 0, 2])  # the prefix of each


class Foreign(LlamaModel):
    """The same network under a name that is not known, so that it takes the general path."""


class Writer:
    """A random decoder whose texts end after a few to all tokens."""

    def __init__(self, kind: type = LlamaModel) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
        self.network: Any = kind(config).eval()
        self.embed, self.head = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY)
        with torch.no_grad():
            for weight in [*self.network.parameters(), *self.head.parameters()]:
                weight.normal_(1 if weight.ndim == 1 else 0, 0.3)
            self.head.bias.zero_()
        self.prefixes = [torch.randn(length, WIDTH) for length in LENGTHS]

    def write(self, width: int, longest: int = LONGEST) -> list[tuple[list[int], Tensor]]:
        u = uniforms(range(len(OF_ROW)), longest)
        config, prompts = PolicyConfig("", rows_writing=width), Prompts(self.prefixes, Rows(OF_ROW, None))
        written = refill.sample(Speaker(self.network, self.embed, self.head, config), prompts, Sampling(), u, STOP)
        return [(cut(i.tolist()), p[: len(cut(i.tolist()))]) for i, p in zip(*written, strict=True)]


def cut(ids: list[int]) -> list[int]:
    return ids[: ids.index(STOP) + 1] if STOP in ids else ids


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Rows of every decoding step."""
    rows: list[int] = []
    plain = cpu.Decoder.__call__

    def count(self: cpu.Decoder, x: Tensor) -> Tensor:
        rows.append(len(x))
        return plain(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(cpu.Decoder, "__call__", count)
        yield rows


@pytest.mark.parametrize("kind", [LlamaModel, Foreign], ids=["our step", "general path"])
def test_texts_are_the_same_whatever_the_width(kind: type) -> None:
    writer = Writer(kind)
    at_once = writer.write(0)
    lengths = {len(ids) for ids, _ in at_once}
    assert len(lengths) >= 4
    assert max(lengths) >= 10
    for width in (1, 2, 3, 5, 8, 20):
        for (ids, logp), (expected, their_logp) in zip(writer.write(width), at_once, strict=True):
            assert ids == expected
            assert torch.allclose(logp, their_logp, atol=1e-5)


def test_no_text_is_longer_than_it_may_be() -> None:
    assert [len(ids) for ids, _ in Writer().write(3, longest=1)] == [1] * len(OF_ROW)
    short = Writer().write(3, longest=5)
    assert {len(ids) for ids, _ in short} <= {1, 2, 3, 4, 5}
    assert [ids for ids, _ in short] == [ids for ids, _ in Writer().write(0, longest=5)]


def test_fewer_rows_are_computed_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    needed = sum(len(ids) - 1 for ids, _ in writer.write(0))  # the last token is never read
    with counted(monkeypatch) as at_once:
        writer.write(0)
    with counted(monkeypatch) as refilled:
        writer.write(4)
    assert max(refilled) == 4
    assert needed <= sum(refilled) < 0.8 * sum(at_once)


def test_drawings_are_drawn_at_once(make_policy: Callable[..., Janus], monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [Context(("a red circle",))] * 2
    with counted(monkeypatch) as rows:
        make_policy(rows_writing=1).draw(contexts, Sampling(guidance=2.0), range(2))
    assert set(rows) == {4}  # both branches of guidance


def test_prefixes_are_computed_once_however_many_rounds_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    plain = causal.run_prefixes

    def count(network: nn.Module, prefixes: list[Tensor], *rest: Any, **others: Any) -> causal.Prefixed:
        calls.append(len(prefixes))
        return plain(network, prefixes, *rest, **others)

    monkeypatch.setattr(causal, "run_prefixes", count)
    Writer().write(2)
    assert calls == [len(LENGTHS)]
