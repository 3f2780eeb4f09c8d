"""Categorical decisions: drawing, scoring, guidance, chunks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unison.policies.decisions import tokens
from unison.policies.decisions.tokens import guide, score, step, uniforms
from unison.types import Sampling


def logits(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_tokens_come_up_as_often_as_their_probability(temperature: float) -> None:
    row, n = logits(12), 40_000
    u = torch.rand(n, generator=torch.Generator().manual_seed(1))
    ids, _ = step(row.expand(n, -1), temperature, u=u)
    expected = n * torch.softmax(row / temperature, -1)
    counts = torch.bincount(ids, minlength=12)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 31.3  # 99.9% quantile at 11 degrees of freedom


def test_a_larger_uniform_number_never_gives_a_smaller_id() -> None:
    u = torch.linspace(0, 1, 5001)[:-1]
    ids, _ = step(logits(50).expand(len(u), -1), 1.0, u=u)
    assert (ids.diff() >= 0).all()
    assert ids[0] == 0
    assert ids[-1] == 49


def test_the_extreme_uniform_numbers_give_possible_tokens() -> None:
    """Rounding of the cumulative sum must not draw a token of probability 0, nor one outside the vocabulary."""
    row = torch.full((3, 1000), -torch.inf)
    row[:, 400:410] = logits(3, 10)
    for value in (0.0, 1 - 2**-24):
        ids, logp = step(row, 1.0, u=torch.full((3,), value))
        assert ((ids >= 400) & (ids < 410)).all()
        assert logp.isfinite().all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_drawn_token_scores_as_it_was_drawn(temperature: float) -> None:
    rows = logits(5, 7, 30)
    ids, drawn = step(rows, temperature, u=torch.rand(5, 7, generator=torch.Generator().manual_seed(2)))
    again, scored = step(rows, temperature, ids=ids)
    assert ids.shape == drawn.shape == (5, 7)
    assert torch.equal(ids, again)
    assert torch.allclose(drawn, scored, rtol=0, atol=1e-6)
    assert torch.allclose(drawn, torch.distributions.Categorical(logits=rows / temperature).log_prob(ids), atol=1e-6)


def test_scores_are_float32_whatever_the_logits() -> None:
    assert step(logits(4, 9).bfloat16(), 1.0, u=torch.rand(4))[1].dtype == torch.float32


@pytest.mark.parametrize("given", [{}, {"u": torch.rand(2), "ids": torch.zeros(2, dtype=torch.long)}])
def test_a_step_needs_uniform_numbers_or_ids_and_not_both(given: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        step(logits(2, 5), 1.0, **given)


# -- uniforms -----------------------------------------------------------------------------------------------------


def test_uniform_numbers_depend_on_the_rows_own_seed_alone() -> None:
    all_rows = uniforms([3, 1, 2], 8)
    assert torch.equal(uniforms([2], 8)[0], all_rows[2])
    assert torch.equal(uniforms([1, 3], 8), all_rows[[1, 0]])
    assert torch.equal(uniforms([3], 5)[0], all_rows[0, :5])
    assert len(all_rows.unique()) == 24
    assert ((all_rows >= 0) & (all_rows < 1)).all()


def test_uniform_numbers_leave_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    uniforms([0, 1], 4)
    assert torch.equal(before, torch.random.get_rng_state())


# -- guidance -----------------------------------------------------------------------------------------------------


def test_guidance_goes_from_the_unconditional_through_the_conditional() -> None:
    c, u = logits(6), logits(6, seed=1)
    assert torch.equal(guide(c, u, 0.0), u)
    assert torch.allclose(guide(c, u, 1.0), c)
    assert torch.allclose(guide(c, u, 5.0), 5 * c - 4 * u, atol=1e-5)


# -- score --------------------------------------------------------------------------------------------------------


def plain(head: nn.Module, hidden: Tensor, ids: Tensor, sampling: Sampling, hidden_u: Tensor | None) -> Tensor:
    rows = head(hidden)
    if hidden_u is not None:
        u = head(hidden_u)
        rows = u + sampling.guidance * (rows - u)
    return torch.distributions.Categorical(logits=rows / sampling.temperature).log_prob(ids)


@pytest.mark.parametrize("per_chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kept", [0, 1000])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_scoring_in_chunks_changes_neither_values_nor_gradients(
    monkeypatch: pytest.MonkeyPatch, per_chunk: int, guided: bool, kept: int, temperature: float
) -> None:
    torch.manual_seed(0)
    head, hidden, hidden_u = nn.Linear(8, 20), torch.randn(7, 8), torch.randn(7, 8) if guided else None
    inputs = [x.requires_grad_() for x in (hidden, hidden_u) if x is not None] + list(head.parameters())
    ids, sampling = torch.arange(7), Sampling(temperature=temperature, guidance=3.0)
    monkeypatch.setattr(tokens, "LOGITS_PER_CHUNK", 20 * per_chunk)
    monkeypatch.setattr(tokens, "LOGITS_KEPT", kept)
    logps = score(head, hidden, ids, sampling, hidden_u), plain(head, hidden, ids, sampling, hidden_u)
    assert torch.allclose(*logps, atol=1e-5)
    weights = torch.linspace(-1, 1, 7)
    gradients = [torch.autograd.grad((weights * logp).sum(), inputs) for logp in logps]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_no_chunk_of_logits_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LOGITS_PER_CHUNK", 45)
    head = nn.Linear(8, 20)
    sizes: list[int] = []

    def watched(inner: nn.Module) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            sizes.append(len(x))
            return inner(x)

        return call

    score(watched(head), torch.randn(7, 8), torch.arange(7), Sampling())
    assert max(sizes) == 2


def test_logits_are_recomputed_only_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    head, hidden = nn.Linear(8, 20), torch.randn(7, 8)
    saved: list[int] = []

    def keep(x: Tensor) -> Tensor:
        saved.append(x.numel() * (x.shape[-1:] == (20,)))
        return x

    for kept in (7 * 20, 7 * 20 - 1):
        saved.clear()
        monkeypatch.setattr(tokens, "LOGITS_KEPT", kept)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            score(head, hidden, torch.arange(7), Sampling())
        assert (max(saved, default=0) >= 7 * 20) == (kept == 7 * 20)


def test_a_vocabulary_larger_than_a_chunk_still_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "LOGITS_PER_CHUNK", 4)
    assert score(nn.Linear(8, 20), torch.randn(3, 8), torch.arange(3), Sampling()).shape == (3,)
