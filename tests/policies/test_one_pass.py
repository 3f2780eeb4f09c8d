"""One-pass estimates of a drawing by masked decoding: what is scored, from which canvas, with which weight."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from benchmarks.speed.showo_published import canvas_logits
from unison.config import ScoringConfig
from unison.policies.decisions import selection
from unison.policies.showo.policy import ShowO
from unison.types import Context, Sampling, Tokens

N, CODES = 36, 64
CLOSE = 1e-4
CONTEXT = Context(("a red circle",))
WHOLE, RANDOM = ScoringConfig(drawings="whole_canvas"), ScoringConfig(drawings="random_masks")


def drawings(policy: ShowO, guidance: float = 3.0, count: int = 1) -> list[Tokens]:
    return cast("list[Tokens]", policy.draw([CONTEXT] * count, Sampling(guidance=guidance, rounds=6), range(count)))


def plain_logp(policy: ShowO, drawing: Tokens, canvas: Tensor) -> Tensor:
    """Of every code given one canvas, by the whole padded sequence and both branches of guidance. [N]"""
    words = policy.tokenizer.encode(CONTEXT.parts[0], add_special_tokens=False)
    c, u = canvas_logits(policy, [words, []], canvas)
    return torch.log_softmax(u + drawing.sampling.guidance * (c - u), -1).gather(1, drawing.ids[:, None])[:, 0]


def gradient(policy: ShowO, total: Tensor) -> Tensor:
    trained = [p for p in policy.network.showo.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, trained)])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_whole_canvas_is_scored_from_an_empty_one(showo: ShowO, guidance: float) -> None:
    (drawing,) = drawings(showo, guidance)
    (scored,) = showo.select([drawing], WHOLE, seed=0)
    ours = showo([CONTEXT], [scored.action])[0]
    plain = plain_logp(showo, drawing, torch.full((N,), CODES))
    assert (ours - plain).abs().max() < CLOSE
    assert (ours - drawing.logp).abs().max() > 0.1  # a surrogate, not the log-probability of sampling
    assert scored.old_logp is None
    assert torch.equal(scored.share, torch.ones(N))
    shares = torch.linspace(-1, 1, N)
    one, two = gradient(showo, (ours * shares).sum()), gradient(showo, (plain * shares).sum())
    assert (one - two).abs().max() <= CLOSE * two.abs().max()


def test_a_random_part_is_scored_from_the_rest_in_view(showo: ShowO) -> None:
    for seed in range(4):
        (drawing,) = drawings(showo)
        (scored,) = showo.select([drawing], RANDOM, seed)
        wanted = scored.action.mask
        plain = plain_logp(showo, drawing, drawing.ids.masked_fill(wanted, CODES))
        ours = showo([CONTEXT], [scored.action])[0]
        assert (ours - plain)[wanted].abs().max() < CLOSE
        assert (ours[~wanted] == 0).all()


def test_a_drawing_counts_as_much_whatever_part_of_it_is_scored(showo: ShowO) -> None:
    for seed in range(20):
        (scored,) = showo.select(drawings(showo), RANDOM, seed)
        assert float(scored.share.sum()) == pytest.approx(N)
        assert torch.equal(scored.share > 0, scored.action.mask)
        assert len(scored.share.unique()) <= 2


@pytest.mark.parametrize("least", [0.0, 0.6, 1.0])
def test_the_share_is_uniform_above_its_least(least: float) -> None:
    masks = torch.stack([selection.one_pass(torch.ones(100, dtype=torch.bool), least, seed)[1] for seed in range(2000)])
    shares = masks.float().mean(1)
    assert shares.min() >= least
    assert (shares.min() - least) <= 0.02
    assert shares.max() >= 0.99
    assert float(shares.mean()) == pytest.approx((1 + least) / 2, abs=0.02)
    assert masks.float().mean(0).std() < 0.02  # no position is preferred


def test_what_is_not_trained_stays_in_view() -> None:
    trained = torch.arange(N) % 3 == 0
    for least in (0.0, 1.0):
        order, wanted, weight = selection.one_pass(trained, least, seed=1)
        assert not (wanted & ~trained).any()
        assert torch.equal(order, torch.where(wanted, 0, selection.GIVEN))
        assert float(weight.sum()) == pytest.approx(int(trained.sum()))
    nothing = selection.one_pass(torch.zeros(N, dtype=torch.bool), 1.0, seed=1)
    assert not nothing[1].any()
    assert not nothing[2].any()


def test_the_part_depends_on_the_drawing_and_the_seed_alone(showo: ShowO) -> None:
    made = drawings(showo, count=6)
    together = showo.select(made, RANDOM, seed=3)
    alone = [showo.select([replace(d, logp=d.logp - 1)], RANDOM, seed=3)[0] for d in made]
    other = showo.select(made, RANDOM, seed=4)
    masks = [[s.action.mask.tolist() for s in scored] for scored in (together, alone, other)]
    assert masks[0] == masks[1] != masks[2]
    assert len({str(mask) for mask in masks[0]}) == len(made)


def test_replies_are_scored_as_they_are(showo: ShowO) -> None:
    (reply,) = showo.write([CONTEXT], Sampling(max_tokens=6), [0])
    for optim in (WHOLE, RANDOM):
        (scored,) = showo.select([reply], optim, seed=0)
        assert scored.action is reply
        assert scored.old_logp is reply.logp
