"""Straight-through drawings: what is read is the drawing itself, and the answer's gradient reaches what drew it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor

from benchmarks.speed import showo_published as published
from tests.policies.test_contract import (
    PROMPTS,
    QUESTION,
    RELAXED,
    answer_gradients,
    drawings,
    first_rounds,
    hard,
    relaxed,
)
from unison.policies.decisions.tokens import exponentials, relaxed_rows
from unison.policies.decoding.masked import masked_once_more
from unison.policies.janus.policy import Janus
from unison.policies.showo.policy import ShowO
from unison.recipes.corl import LANGUAGE_MODEL_ONLY
from unison.types import Context, Relaxed, Sampling, Tokens

# -- the estimator -------------------------------------------------------------------------------------------------


def straight_through(logits: Tensor, ids: Tensor, temperature: float, exponential: Tensor) -> Tensor:
    """One-hot rows of given draws [N, V], with the gradient of the relaxation."""
    identity, table = torch.nn.Identity(), torch.eye(logits.shape[-1])
    return relaxed_rows(identity, logits, ids, Sampling(), temperature, exponential, table)


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


def test_a_table_learns_from_the_rows_that_were_read_alone(toy: tuple[Tensor, Tensor, Tensor]):
    """Else the relaxation would teach the table as well, and not only what drew."""
    logits, ids, noise = toy
    table = torch.randn(7, 3, generator=torch.Generator().manual_seed(2)).requires_grad_()
    w = torch.linspace(-1, 1, 15).view(5, 3)
    found = []
    for rows in (
        relaxed_rows(torch.nn.Identity(), logits, ids, Sampling(), 0.9, noise, table),
        straight_through(logits, ids, 0.9, noise) @ table,
    ):
        found += torch.autograd.grad((w * rows).sum(), table)
    torch.testing.assert_close(found[0], found[1])


# -- the canvas of masked decoding -----------------------------------------------------------------------------------


ORDER = torch.tensor([2, 0, 4, 4, 2, 2, 4, 0])
"""Rounds 1 and 3 decided nothing."""


def test_the_canvas_of_a_round_is_one_that_the_drawing_was_decided_on():
    found = {tuple(masked_once_more(ORDER, seed).tolist()) for seed in range(60)}
    assert found == {tuple((t <= ORDER).tolist()) for t in (0, 2, 4)}


# -- the policies ------------------------------------------------------------------------------------------------------


def test_frozen_parts_let_the_gradient_through(make_policy: Callable[..., Janus]):
    """The language model drew, so its own weights get more than the answer's gradient."""
    policy = make_policy(frozen=LANGUAGE_MODEL_ONLY)
    _, through = answer_gradients(policy, relaxed(policy, Sampling()))
    _, cut = answer_gradients(policy, hard(policy, Sampling()))
    assert max((through[name] - cut[name]).abs().max().item() for name in cut) > 1e-4


# -- Show-o, written out in the published sequences --------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_the_gradient_is_that_of_the_published_passes_written_out(showo: ShowO, whole: bool):
    """dL/d(one-hot) of the question about the drawing, times the one-hots' softmax over the drawing's logits."""
    sampling, temperature = RELAXED["guided"], 0.7
    layout, codes = showo.layout, drawings(showo, sampling)[0]
    seed = first_rounds(codes)[0] if whole else 5
    hidden = masked_once_more(codes.order, seed)
    assert hidden.all() == whole
    answer = cast(Tokens, showo.encode(["red"])[0]).ids.tolist()
    image = (codes.ids + layout.first_image).tolist()
    ids = published.answering(layout, image, showo._ids(showo.question(QUESTION)))
    start = len(ids)
    ids = torch.tensor([[*ids, *answer]])
    table = showo.embed_ids.weight[layout.first_image : layout.mask].detach()
    embeds = showo.embed_ids(ids).detach()
    read = embeds[0, 2 : 2 + layout.image_tokens].clone().requires_grad_()
    embeds = torch.cat([embeds[:, :2], read[None], embeds[:, 2 + layout.image_tokens :]], 1)
    logits = showo.network.showo(
        inputs_embeds=embeds, attention_mask=published.answering_mask(layout, ids)[:, None], use_cache=False
    ).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(answer))
    (to_read,) = torch.autograd.grad(loss, read)

    masked_codes = codes.ids.masked_fill(hidden, layout.codes)
    c, u = published.canvas_logits(showo, [showo._prompt_ids(PROMPTS[0]), []], masked_codes)
    z = (u + sampling.guidance * (c - u)) / sampling.temperature
    noise = exponentials([seed], (layout.image_tokens, layout.codes))[0]
    soft = by_hand(z[hidden].detach(), codes.ids[hidden], temperature, noise[hidden])
    w = (to_read @ table.T)[hidden]
    to_logits = soft * (w - (soft * w).sum(-1, keepdim=True)) / temperature
    trained = {name: p for name, p in showo.network.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad((z[hidden] * to_logits).sum(), list(trained.values()), allow_unused=True)

    _, through = answer_gradients(showo, [Context((Relaxed(PROMPTS[0], codes, temperature, seed), QUESTION))])
    _, cut = answer_gradients(showo, hard(showo, sampling)[:1])
    largest = max(g.abs().max() for g in expected if g is not None)
    assert largest > 1e-4
    for (name, _), wanted in zip(trained.items(), expected, strict=True):
        found = through[name] - cut[name]
        assert (found - (0 if wanted is None else wanted)).abs().max() < 1e-3 * largest, name


def test_the_gradient_through_clip_is_that_of_the_processors_own_pixels(showo_clip: ShowO):
    """The differentiable painting is what the tower reads but for the rounding to bytes."""
    part = relaxed(showo_clip, Sampling(), whole=True)[0].parts[0]
    assert isinstance(part, Relaxed)
    tokenizer = showo_clip.network.image_tokenizer
    pixels = showo_clip._pixels([part])
    again = showo_clip._clip_pixels(tokenizer.paint(tokenizer.quantize.signs(part.action.ids[None])))
    torch.testing.assert_close(pixels.detach(), showo_clip._pixels([part.action]))
    assert pixels.std() > 0.1
    level = 1 / 255 / min(showo_clip._processor.image_std)
    assert (pixels - again).abs().mean() < level
    assert (pixels - again).abs().max() < 5 * level  # it cuts off once and rounds twice
