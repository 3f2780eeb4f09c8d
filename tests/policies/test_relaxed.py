"""Straight-through drawings: what is read is the drawing itself, and the answer's gradient reaches what drew it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unison.policies.base import Policy
from unison.policies.decisions.tokens import exponentials, relaxed_rows, straight_through
from unison.policies.decoding.masked import masked_once_more
from unison.policies.janus.policy import Janus
from unison.policies.showo.policy import ShowO, question
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


ADAPTERS = r"showo\..*\.(embed_tokens|q_proj|k_proj|v_proj|dense|fc1|fc2|lm_head)"


@pytest.fixture(scope="module")
def adapted(make_showo: Callable[..., ShowO]) -> ShowO:
    """Show-o with adapters that are not zero, on embedding and output head too."""
    adapted = make_showo(lora_rank=4, lora_targets=ADAPTERS)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return adapted


@pytest.fixture(params=["policy", "showo", "showo_clip", "adapted"])
def family(request: pytest.FixtureRequest) -> Janus | ShowO:
    """Janus, Show-o, Show-o that reads images through CLIP, and Show-o with adapters."""
    return request.getfixturevalue(request.param)


def drawings(policy: Policy, sampling: Sampling) -> list[Tokens]:
    found = policy.draw(PROMPTS, sampling, [1, 2])
    return [action for action in found if isinstance(action, Tokens)]


def relaxed(policy: Policy, sampling: Sampling, temperature: float = 1.0, whole: bool = False) -> list[Context]:
    """The question about each drawing, relaxed; with `whole` through the canvas of its first round, all masked."""
    return [
        Context((Relaxed(prompt, drawing, temperature, first_rounds(drawing)[0] if whole else seed), QUESTION))
        for seed, (prompt, drawing) in enumerate(zip(PROMPTS, drawings(policy, sampling), strict=True))
    ]


def first_rounds(drawing: Tokens) -> list[int]:
    """Seeds whose canvas is that of the drawing's first round."""
    return [seed for seed in range(2000) if masked_once_more(drawing.order, seed).all()]


def hard(policy: Policy, sampling: Sampling) -> list[Context]:
    """The question about each drawing as it is, which cuts the gradient's path."""
    return [Context((drawing, QUESTION)) for drawing in drawings(policy, sampling)]


def gradients(policy: Policy, contexts: list[Context]) -> tuple[Tensor, dict[str, Tensor]]:
    """The answers' NLL, and its gradient, zeros where nothing depends on a weight."""
    trained = {name: p for name, p in policy.network.named_parameters() if p.requires_grad}
    loss = policy.nll(contexts, ["red"] * len(contexts))
    weights = torch.linspace(1, 2, len(loss))
    found = torch.autograd.grad((weights * loss).sum(), list(trained.values()), allow_unused=True)
    return loss, {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(trained.items(), found, strict=True)}


def drawing_side(policy: Policy, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The gradients at weights that only drawing uses: Janus' head and aligner, the rows of Show-o's embedding that
    stand for a masked position and that open a prompt."""
    if not isinstance(policy, ShowO):
        return {n: g for n, g in found.items() if "generation_head" in n or "generation_aligner" in n}
    layout = policy.layout
    rows = {name: g if len(g) == layout.vocabulary else g.T for name, g in found.items() if "embed_tokens" in name}
    ids = {"mask": layout.mask, "prompt": layout.special("<|t2i|>")}
    return {f"{name} {use}": g[row] for name, g in rows.items() for use, row in ids.items() if g.shape[0] > row}


@pytest.mark.parametrize("case", SAMPLINGS)
def test_a_relaxed_drawing_reads_as_the_drawing_itself(family: Policy, case: str):
    with torch.no_grad():
        expected = family.nll(hard(family, SAMPLINGS[case]), ["red"] * 2)
        for whole in (False, True):
            found = family.nll(relaxed(family, SAMPLINGS[case], whole=whole), ["red"] * 2)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", SAMPLINGS)
def test_the_answers_gradient_reaches_the_drawing_side_and_vanishes_where_the_path_is_cut(family: Policy, case: str):
    _, through = gradients(family, relaxed(family, SAMPLINGS[case], whole=True))
    largest = max(g.abs().max() for g in through.values())
    side = drawing_side(family, through)
    assert side
    for name, gradient in side.items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 1e-6 * largest, name
    _, cut = gradients(family, hard(family, SAMPLINGS[case]))
    assert not any(gradient.any() for gradient in drawing_side(family, cut).values())


def test_frozen_parts_let_the_gradient_through(make_policy: Callable[..., Janus]):
    """The language model drew, so its own weights get more than the answer's gradient."""
    policy = make_policy(frozen=LANGUAGE_MODEL_ONLY)
    _, through = gradients(policy, relaxed(policy, Sampling()))
    _, cut = gradients(policy, hard(policy, Sampling()))
    assert max((through[name] - cut[name]).abs().max().item() for name in cut) > 1e-4


def test_each_drawing_is_relaxed_by_itself(family: Policy):
    """Batches of one and of both, of two samplings and temperatures, give the same gradients."""
    one, two = (
        relaxed(family, SAMPLINGS["plain"])[0],
        relaxed(family, SAMPLINGS["guided"], temperature=0.5)[1],
    )
    loss, together = gradients(family, [one, two])
    losses, apart = zip(*(gradients(family, [context]) for context in (one, two)), strict=True)
    torch.testing.assert_close(loss, torch.cat(losses))
    sides = [drawing_side(family, side) for side in apart]
    for name, gradient in drawing_side(family, together).items():
        expected = sides[0][name] + 2 * sides[1][name]
        assert (expected - gradient).abs().max() <= 1e-3 * gradient.abs().max(), name
    backwards, _ = gradients(family, [two, one])
    torch.testing.assert_close(backwards, loss.flip(0))


def test_the_seed_is_the_noise(family: Policy):
    prompt, drawing = PROMPTS[0], drawings(family, Sampling())[0]
    one, other_seed = first_rounds(drawing)[:2]  # of one canvas
    found = [
        drawing_side(family, gradients(family, [Context((Relaxed(prompt, drawing, 1.0, s), QUESTION))])[1])
        for s in (one, one, other_seed)
    ]
    name = next(iter(found[0]))
    same, again, other = (side[name] for side in found)
    torch.testing.assert_close(again, same)
    assert (other - same).abs().max() > 1e-3 * same.abs().max()


# -- Show-o, written out in the published sequences --------------------------------------------------------------------


def published_logits(policy: ShowO, prompt: Context, canvas: Tensor) -> Tensor:
    """Logits of the image codes over a canvas, the whole padded sequence at once. [N, K]"""
    layout = policy.layout
    ids = torch.tensor([layout.drawing(policy._prompt_ids(prompt), (canvas + layout.first_image).tolist())])
    logits = policy.network.logits(ids, layout.drawing_mask(ids))[0]
    return logits[-layout.image_tokens - 1 : -1, layout.first_image : layout.mask]


@pytest.mark.parametrize("whole", [False, True])
def test_the_gradient_is_that_of_the_published_passes_written_out(showo: ShowO, whole: bool):
    """dL/d(one-hot) of the question about the drawing, times the one-hots' softmax over the drawing's logits."""
    sampling, temperature = SAMPLINGS["guided"], 0.7
    layout, codes = showo.layout, drawings(showo, sampling)[0]
    seed = first_rounds(codes)[0] if whole else 5
    hidden = masked_once_more(codes.order, seed)
    assert hidden.all() == whole
    answer = showo.encode(["red"])[0].ids.tolist()
    ids = layout.answering((codes.ids + layout.first_image).tolist(), showo._ids(question(QUESTION)))
    start = len(ids)
    ids = torch.tensor([[*ids, *answer]])
    table = showo.embed_ids.weight[layout.first_image : layout.mask].detach()
    embeds = showo.embed_ids(ids).detach()
    read = embeds[0, 2 : 2 + layout.image_tokens].clone().requires_grad_()
    embeds = torch.cat([embeds[:, :2], read[None], embeds[:, 2 + layout.image_tokens :]], 1)
    logits = showo.network.showo(
        inputs_embeds=embeds, attention_mask=layout.answering_mask(ids)[:, None], use_cache=False
    ).logits[0]
    loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], torch.tensor(answer))
    (to_read,) = torch.autograd.grad(loss, read)

    masked_codes = codes.ids.masked_fill(hidden, layout.codes)
    c, u = (published_logits(showo, prompt, masked_codes) for prompt in (PROMPTS[0], Context(())))
    z = (u + sampling.guidance * (c - u)) / sampling.temperature
    noise = exponentials([seed], (layout.image_tokens, layout.codes))[0]
    soft = by_hand(z[hidden].detach(), codes.ids[hidden], temperature, noise[hidden])
    w = (to_read @ table.T)[hidden]
    to_logits = soft * (w - (soft * w).sum(-1, keepdim=True)) / temperature
    trained = {name: p for name, p in showo.network.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad((z[hidden] * to_logits).sum(), list(trained.values()), allow_unused=True)

    _, through = gradients(showo, [Context((Relaxed(PROMPTS[0], codes, temperature, seed), QUESTION))])
    _, cut = gradients(showo, hard(showo, sampling)[:1])
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
