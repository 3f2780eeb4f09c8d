"""Straight-through drawings: what is read is the drawing itself, and the answer's gradient reaches what drew it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unison.policies.janus import Janus
from unison.policies.tokens import exponentials, relaxed_rows, straight_through
from unison.recipes.corl import LANGUAGE_MODEL_ONLY
from unison.types import Context, Relaxed, Sampling, Tokens

SAMPLINGS = {
    "plain": Sampling(),
    "guided": Sampling(guidance=2.0, temperature=0.8),
    "guided, conditional logits": Sampling(guidance=2.0, score_conditional=True),
}
PROMPTS = (Context(("a red circle",)), Context(("two blue squares",)))
QUESTION = "What color is the circle?"


# -- the estimator -------------------------------------------------------------------------------------------------


@pytest.fixture
def toy() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, ids and noise in float64. [5, 7], [5], [5, 7]"""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 7, generator=generator, dtype=torch.float64).float()
    return logits, torch.tensor([0, 6, 3, 3, 1]), exponentials(range(5), (7,))


def by_hand(logits: Tensor, ids: Tensor, temperature: float, noise: Tensor) -> Tensor:
    """The relaxed rows, one entry at a time: the winner's Gumbel is -log E_i, another's -log(E_j / p_j + E_i)."""
    soft = torch.empty_like(logits)
    for n, winner in enumerate(ids.tolist()):
        p = logits[n].exp() / logits[n].exp().sum()
        least = noise[n, winner].item()
        gumbels = [-math.log(least + (0 if j == winner else noise[n, j].item() / p[j].item())) for j in range(len(p))]
        weights = [math.exp(g / temperature) for g in gumbels]
        soft[n] = torch.tensor([w / sum(weights) for w in weights])
    return soft


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_gradient_is_that_of_the_softmax_at_noise_under_which_the_draw_wins(
    toy: tuple[Tensor, Tensor, Tensor], temperature: float
):
    logits, ids, noise = toy
    logits.requires_grad_()
    rows = straight_through(logits, ids, temperature, noise)
    torch.testing.assert_close(rows.detach(), torch.nn.functional.one_hot(ids, 7).float())
    w = torch.linspace(-1, 2, 35).view(5, 7)
    (found,) = torch.autograd.grad((w * rows).sum(), logits)
    soft = by_hand(logits.detach(), ids, temperature, noise)
    expected = soft * (w - (soft * w).sum(-1, keepdim=True)) / temperature  # the softmax's Jacobian, written out
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (soft.argmax(-1) == ids).all()


def test_draw_and_noise_are_distributed_as_in_a_gumbel_softmax_that_draws():
    p, count, temperature = torch.tensor([0.6, 0.3, 0.1]), 40_000, 1.0
    generator = torch.Generator().manual_seed(1)
    ids = torch.multinomial(p, count, replacement=True, generator=generator)
    noise = torch.empty(count, 3).exponential_(generator=generator)
    logits = p.log().expand(count, 3).clone().requires_grad_()
    w = torch.tensor([1.0, -2.0, 0.5])
    (given,) = torch.autograd.grad((straight_through(logits, ids, temperature, noise) * w).sum(), logits)
    free = p.log().expand(count, 3).clone().requires_grad_()
    gumbels = -torch.empty(count, 3).exponential_(generator=generator).log()
    (drawn,) = torch.autograd.grad((torch.softmax((free + gumbels) / temperature, -1) * w).sum(), free)
    errors = (given.std(0) ** 2 + drawn.std(0) ** 2).sqrt() / count**0.5
    assert ((given.mean(0) - drawn.mean(0)).abs() < 4 * errors).all()
    assert ((given.std(0) / drawn.std(0) - 1).abs() < 0.03).all()


def test_rows_of_a_table_are_the_one_hots_times_the_table(toy: tuple[Tensor, Tensor, Tensor]):
    hidden, ids, noise = toy
    head, table = torch.nn.Linear(7, 7), torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    sampling, w = Sampling(temperature=0.7), torch.linspace(-1, 1, 15).view(5, 3)
    rows = relaxed_rows(head, hidden, ids, sampling, 0.9, noise, table)
    direct = straight_through(head(hidden) / 0.7, ids, 0.9, noise) @ table
    torch.testing.assert_close(rows, table[ids])
    (one,) = torch.autograd.grad((w * rows).sum(), head.weight)
    (two,) = torch.autograd.grad((w * direct).sum(), head.weight)
    assert two.abs().max() > 0.01
    torch.testing.assert_close(one, two)


# -- the policy ----------------------------------------------------------------------------------------------------


def drawings(policy: Janus, sampling: Sampling) -> list[Tokens]:
    found = policy.draw(PROMPTS, sampling, [1, 2])
    return [action for action in found if isinstance(action, Tokens)]


def relaxed(policy: Janus, sampling: Sampling, temperature: float = 1.0) -> list[Context]:
    """The question about each drawing, relaxed."""
    return [
        Context((Relaxed(prompt, drawing, temperature, seed), QUESTION))
        for seed, (prompt, drawing) in enumerate(zip(PROMPTS, drawings(policy, sampling), strict=True))
    ]


def head_gradients(policy: Janus, contexts: list[Context]) -> tuple[Tensor, dict[str, Tensor | None]]:
    """The answers' NLL, and its gradient at weights that only drawing uses."""
    drawn = {n: p for n, p in policy.network.named_parameters() if "generation_head" in n or "generation_aligner" in n}
    loss = policy.nll(contexts, ["red"] * len(contexts))
    found = torch.autograd.grad(loss.sum(), list(drawn.values()), allow_unused=True, retain_graph=True)
    return loss, dict(zip(drawn, found, strict=True))


@pytest.mark.parametrize("case", SAMPLINGS)
def test_a_relaxed_drawing_reads_as_the_drawing_itself(policy: Janus, case: str):
    hard = [Context((drawing, QUESTION)) for drawing in drawings(policy, SAMPLINGS[case])]
    with torch.no_grad():
        torch.testing.assert_close(
            policy.nll(relaxed(policy, SAMPLINGS[case]), ["red"] * 2), policy.nll(hard, ["red"] * 2)
        )


@pytest.mark.parametrize("case", SAMPLINGS)
def test_the_answers_gradient_reaches_the_drawing_side_and_vanishes_where_the_path_is_cut(policy: Janus, case: str):
    _, through = head_gradients(policy, relaxed(policy, SAMPLINGS[case]))
    assert through
    for name, gradient in through.items():
        assert gradient is not None, name
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 1e-6, name
    _, cut = head_gradients(policy, [Context((drawing, QUESTION)) for drawing in drawings(policy, SAMPLINGS[case])])
    assert all(gradient is None for gradient in cut.values())


def test_frozen_parts_let_the_gradient_through(make_policy: Callable[..., Janus]):
    """The language model drew, so its own weights get more than the answer's gradient."""
    policy = make_policy(frozen=LANGUAGE_MODEL_ONLY)
    trained = [p for p in policy.parameters() if p.requires_grad]
    soft = policy.nll(relaxed(policy, Sampling()), ["red"] * 2)
    hard = policy.nll([Context((drawing, QUESTION)) for drawing in drawings(policy, Sampling())], ["red"] * 2)
    through = torch.autograd.grad(soft.sum(), trained, allow_unused=True)
    cut = torch.autograd.grad(hard.sum(), trained, allow_unused=True)
    gaps = [(a - b).abs().max().item() for a, b in zip(through, cut, strict=True) if a is not None and b is not None]
    assert max(gaps) > 1e-4


def test_each_drawing_is_relaxed_by_itself(policy: Janus):
    """Batches of one and of both, of two samplings and temperatures, give the same gradients."""
    contexts = [relaxed(policy, SAMPLINGS["plain"])[0], relaxed(policy, SAMPLINGS["guided"], temperature=0.5)[1]]
    _, together = head_gradients(policy, contexts)
    apart = [head_gradients(policy, [context])[1] for context in contexts]
    for name, gradient in together.items():
        first, second = (side[name] for side in apart)
        assert gradient is not None
        assert first is not None
        assert second is not None
        largest = gradient.abs().max()
        assert (first + second - gradient).abs().max() < 1e-3 * largest, name


def test_the_seed_is_the_noise(policy: Janus):
    prompt, drawing = PROMPTS[0], drawings(policy, Sampling())[0]
    found = [
        head_gradients(policy, [Context((Relaxed(prompt, drawing, 1.0, seed), QUESTION))])[1] for seed in (3, 3, 4)
    ]
    name = next(iter(found[0]))
    same, again, other = (gradients[name] for gradients in found)
    assert same is not None
    assert other is not None
    torch.testing.assert_close(again, same)
    assert (other - same).abs().max() > 1e-3 * same.abs().max()
