"""The MetaQuery policy, on the real classes at toy size: what is sampled is what is scored, whatever the batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from unison.config import ScoringConfig
from unison.policies.decisions import sde
from unison.policies.metaquery.layout import CHAT_TEMPLATE, see_picture, see_pixels
from unison.policies.metaquery.policy import MetaQuery, branch_shares
from unison.types import Action, Context, Latents, Sampling, Tokens
from unison.world.render import render
from unison.world.scene import sample

PICTURE, OTHER = (render(sample(random.Random(i), "position", "train")[1]) for i in range(2))
SHORT, LONG = "a red circle", "two blue squares and a black diamond left of it"
TEXT = Sampling(max_tokens=12)
DRAWING = Sampling(guidance=3.0, source_guidance=1.5, steps=4)
CLOSE = 1e-4

SAMPLINGS = {
    "text": ("text", TEXT),
    "cool text": ("text", Sampling(temperature=0.7, max_tokens=12)),
    "drawing": ("image", Sampling(steps=4)),
    "guided drawing": ("image", DRAWING),
    "guided by the text alone": ("image", Sampling(guidance=3.0, steps=4)),
    "guided by the source alone": ("image", Sampling(source_guidance=2.0, steps=4)),
    "guided drawing, conditional score": ("image", replace(DRAWING, score_conditional=True)),
    "some steps": ("image", replace(DRAWING, noisy_steps=(1, 3))),
    "another sampler": ("image", replace(DRAWING, sde="cps", noise_level=0.5)),
}


def act(
    policy: MetaQuery, modality: str, contexts: Sequence[Context], sampling: Sampling, first_seed: int = 0
) -> list[Any]:
    seeds = range(first_seed, first_seed + len(contexts))
    return list((policy.write if modality == "text" else policy.draw)(contexts, sampling, seeds))


def own_drawing(policy: MetaQuery) -> Latents:
    return cast(Latents, policy.draw([Context((SHORT,))], DRAWING, [77])[0])


def own_reply(policy: MetaQuery) -> Tokens:
    return policy.write([Context((SHORT,))], Sampling(max_tokens=6), [78])[0]


def contexts_of(policy: MetaQuery) -> list[Context]:
    """Every kind of context: prompts of two lengths, with a thought, edits of pictures, reflections on a drawing."""
    reply, drawing = own_reply(policy), own_drawing(policy)
    return [
        Context((SHORT,)),
        Context((LONG,)),
        Context((SHORT, reply)),
        Context((PICTURE, SHORT)),
        Context((LONG, OTHER.resize((64, 40)), SHORT)),
        Context((OTHER, PICTURE, LONG)),
        Context((SHORT, drawing, LONG)),
        Context((SHORT, drawing, reply)),
    ]


def groups(policy: MetaQuery) -> list[Context]:
    return [context for context in contexts_of(policy) for _ in range(2)]


def gap(logps: Sequence[Tensor], actions: Sequence[Action]) -> float:
    """Largest difference between replayed and sampled log-probabilities."""
    return max((logp - action.logp).abs().max().item() for logp, action in zip(logps, actions, strict=True))


def perturb(policy: MetaQuery, scale: float = 0.1) -> None:
    """Moves every trained weight, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def gradients(policy: MetaQuery, scores: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradient of a weighted sum of log-probabilities, different weights at every position."""
    total = torch.stack([(score * torch.linspace(-1, 1, len(score))).sum() for score in scores]).sum()
    trained = {name: p for name, p in policy.network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(trained.values()), allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(trained, found, strict=True) if g is not None}


def assert_same_gradients(one: dict[str, Tensor], two: dict[str, Tensor], share: float = CLOSE) -> None:
    assert one.keys() == two.keys()
    largest = max(g.abs().max() for g in two.values())
    assert largest > 0
    for name in two:
        difference = (one[name] - two[name]).abs().max()
        assert difference <= share * largest, f"{name}: {difference} of {largest}"


@contextmanager
def counted(module: nn.Module) -> Iterator[list[int]]:
    """Rows of every call of the module."""
    rows: list[int] = []

    def count(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = kwargs.get("inputs_embeds", kwargs.get("hidden_states", args[0] if args else None))
        rows.append(len(cast(Tensor, first)))

    handle = module.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield rows
    finally:
        handle.remove()


@pytest.fixture(scope="module")
def adapted(make_metaquery: Callable[..., MetaQuery]) -> MetaQuery:
    """A policy with adapters on all parts that are not zero."""
    policy = make_metaquery(lora_rank=4, lora_targets=r".*\.(q_proj|v_proj|down_proj|lm_head|to_q|to_k|project)")
    perturb(policy)
    return policy


# -- 1. replayed log-probability equals the sampled one ------------------------------------------------------------


@pytest.mark.parametrize("case", SAMPLINGS)
def test_replayed_log_probability_equals_the_sampled_one(metaquery: MetaQuery, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    contexts = groups(metaquery)
    actions = act(metaquery, modality, contexts, sampling)
    with torch.no_grad():
        assert gap(metaquery(contexts, actions), actions) < CLOSE


@pytest.mark.parametrize("case", ["text", "guided drawing"])
def test_replay_with_adapters(adapted: MetaQuery, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    contexts = groups(adapted)
    actions = act(adapted, modality, contexts, sampling)
    with torch.no_grad():
        assert gap(adapted(contexts, actions), actions) < CLOSE


def test_replay_in_passes_of_few_states_is_the_same(make_metaquery: Callable[..., MetaQuery]) -> None:
    """Gradients too: states of several passes are computed once more in the backward pass."""
    whole, parts = make_metaquery(), make_metaquery(states_per_pass=3)
    contexts = groups(whole)[:6]
    drawings = whole.draw(contexts, DRAWING, range(6))
    one, two = whole(contexts, drawings), parts(contexts, drawings)
    assert gap(two, drawings) < CLOSE
    assert_same_gradients(gradients(parts, two), gradients(whole, one))


def test_samples_are_neither_constant_nor_uniform(metaquery: MetaQuery) -> None:
    """Else the tests above would hold for trivial reasons."""
    contexts = [Context((SHORT,))] * 6
    replies = metaquery.write(contexts, TEXT, range(6))
    surprise = -torch.cat([reply.logp for reply in replies]).mean()
    assert 0.05 < surprise < 0.9 * torch.log(torch.tensor(512.0))
    assert len({tuple(reply.ids.tolist()) for reply in replies}) == 6
    drawings = [cast(Latents, d) for d in metaquery.draw(contexts, DRAWING, range(6))]
    ends = torch.stack([drawing.path[-1] for drawing in drawings])
    assert (ends[1:] - ends[:1]).abs().mean() > 0.3


def test_every_part_of_a_context_matters(metaquery: MetaQuery) -> None:
    reply = metaquery.write([Context((PICTURE, SHORT))], TEXT, [0])
    for context in (Context((OTHER, SHORT)), Context((PICTURE, LONG)), Context((SHORT,)), Context((SHORT, PICTURE))):
        assert gap(metaquery([context], reply), reply) > 0.01
    drawing = metaquery.draw([Context((SHORT,))], DRAWING, [0])
    thought = Context((SHORT, own_reply(metaquery)))
    for context in (Context((LONG,)), Context((SHORT,), unconditional=True), thought, Context((PICTURE, SHORT))):
        assert gap(metaquery([context], drawing), drawing) > 0.01
    edit = metaquery.draw([Context((PICTURE, SHORT))], DRAWING, [0])
    for context in (Context((OTHER, SHORT)), Context((PICTURE, LONG)), Context((own_drawing(metaquery), SHORT))):
        assert gap(metaquery([context], edit), edit) > 0.01


def test_guidance_matters_in_sampling_and_in_scoring(metaquery: MetaQuery) -> None:
    context = [Context((PICTURE, SHORT))]
    guided = cast(Latents, metaquery.draw(context, DRAWING, [0])[0])
    for other in (replace(DRAWING, guidance=1.0), replace(DRAWING, source_guidance=1.0)):
        path = cast(Latents, metaquery.draw(context, other, [0])[0]).path
        assert (path - guided.path).abs().max() > 0.01
        assert gap(metaquery(context, [replace(guided, sampling=other)]), [guided]) > 1e-3
    conditional = cast(Latents, metaquery.draw(context, replace(DRAWING, score_conditional=True), [0])[0])
    assert torch.equal(guided.path, conditional.path)  # the sample is guided all the same
    assert (guided.logp - conditional.logp).abs().max() > 1e-3


def test_actions_of_all_kinds_are_scored_in_the_given_order(metaquery: MetaQuery) -> None:
    one, two, edit = Context((SHORT,)), Context((PICTURE, LONG)), Context((OTHER, SHORT))
    contexts = [one, two, edit, one, two, one]
    actions = [
        *metaquery.draw([one], DRAWING, [1]),
        *metaquery.write([two], TEXT, [2]),
        *metaquery.draw([edit], DRAWING, [3]),
        *metaquery.write([one], TEXT, [4]),
        *metaquery.draw([two], Sampling(steps=3), [5]),
        *metaquery.draw([one], DRAWING, [6]),
    ]
    assert gap(metaquery(contexts, actions), actions) < CLOSE


def test_only_the_steps_of_the_mask_are_computed(metaquery: MetaQuery) -> None:
    contexts = [Context((SHORT,)), Context((LONG,))]
    sampling = Sampling(steps=4, noisy_steps=(1, 3))
    drawings = metaquery.draw(contexts, sampling, [0, 1])
    with counted(metaquery.network.transformer) as rows:
        scores = metaquery(contexts, drawings)
    assert rows == [2 * 2]
    assert torch.stack(scores)[:, [0, 2]].eq(0).all()
    one = [replace(drawing, mask=torch.tensor([False, True, False, False])) for drawing in drawings]
    with counted(metaquery.network.transformer) as rows:
        fewer = metaquery(contexts, one)
    assert rows == [2]
    assert (torch.stack(fewer)[:, 1] - torch.stack(scores)[:, 1]).abs().max() < CLOSE


def test_a_branch_of_guidance_without_a_share_is_not_computed(metaquery: MetaQuery) -> None:
    costs = {
        (1.0, 1.0): (1, 1),
        (3.0, 1.0): (2, 2),  # an edit guided by its text alone needs no unconditional branch
        (3.0, 3.0): (2, 2),
        (3.0, 1.5): (2, 3),
    }
    for (text, source), expected in costs.items():
        for edit in (False, True):
            shares = branch_shares(Sampling(guidance=text, source_guidance=source), edit)
            assert len(shares) == expected[edit]
            assert sum(share for _, share in shares) == pytest.approx(1)


def test_guidance_of_an_edit_is_that_of_its_formula(metaquery: MetaQuery) -> None:
    """Against the three branches computed one by one, by contexts that lack what each hides."""
    context, w, s = Context((PICTURE, SHORT)), 3.0, 1.5
    x, sigma, rows = torch.randn(1, *metaquery.network.latent_shape), torch.tensor([0.6]), torch.tensor([0])

    def velocity(given: Context, sampling: Sampling) -> Tensor:
        return metaquery._guided([given], sampling, edit=True)(x, sigma, rows)

    with torch.no_grad():
        full = velocity(context, Sampling())
        source = velocity(Context((PICTURE,)), Sampling())
        nothing = velocity(replace(context, unconditional=True), Sampling())
        guided = velocity(context, Sampling(guidance=w, source_guidance=s))
    assert (full - source).abs().max() > 0.01
    assert (source - nothing).abs().max() > 0.01
    assert (guided - (nothing + s * (source - nothing) + w * (full - source))).abs().max() < CLOSE


# -- 4, 6, 7. batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["text", "guided drawing"])
def test_siblings_that_share_a_context_equal_separate_rows(metaquery: MetaQuery, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    shared = groups(metaquery)
    separate = [Context(context.parts) for context in shared]
    actions = act(metaquery, modality, shared, sampling)
    one, two = metaquery(shared, actions), metaquery(separate, actions)
    assert max((a - b).abs().max() for a, b in zip(one, two, strict=True)) < CLOSE
    assert_same_gradients(gradients(metaquery, one), gradients(metaquery, two))


def test_a_shared_context_is_computed_once(metaquery: MetaQuery) -> None:
    one, two = Context((SHORT,)), Context((LONG,))
    contexts = [one] * 3 + [two] * 3
    drawings = metaquery.draw(contexts, DRAWING, range(6))
    with counted(metaquery.decoder) as rows:
        metaquery(contexts, drawings)
    assert rows == [3]  # two prompts, and one unconditional prompt for the whole batch
    edits = [Context((PICTURE, SHORT))] * 4
    with counted(metaquery.decoder) as rows, counted(metaquery.network.qwen.model.visual) as images:
        metaquery.draw(edits, DRAWING, range(4))
    assert rows == [3]
    assert images == [36]  # patches of one picture, though two prompts hold it


@pytest.mark.parametrize("case", ["text", "guided drawing"])
def test_swapping_two_items_swaps_their_actions(metaquery: MetaQuery, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    contexts = contexts_of(metaquery)
    order = list(range(len(contexts)))[::-1]
    act_with = metaquery.write if modality == "text" else metaquery.draw
    forward = act_with(contexts, sampling, order)
    backward = act_with(contexts[::-1], sampling, order[::-1])
    for one, two in zip(forward, backward[::-1], strict=True):
        if isinstance(one, Latents):
            assert (one.path - cast(Latents, two).path).abs().max() < CLOSE
        else:
            assert torch.equal(one.ids, cast(Tokens, two).ids)
        assert (one.logp - two.logp).abs().max() < CLOSE


@pytest.mark.parametrize("case", ["text", "guided drawing"])
def test_a_sample_does_not_depend_on_its_batch(metaquery: MetaQuery, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    contexts = contexts_of(metaquery)
    together = act(metaquery, modality, contexts, sampling)
    for row, context in enumerate(contexts):
        alone = act(metaquery, modality, [context], sampling, first_seed=row)[0]
        assert (alone.logp - together[row].logp).abs().max() < CLOSE


@pytest.mark.parametrize("case", ["text", "guided drawing"])
def test_splitting_a_batch_leaves_the_gradient_unchanged(make_metaquery: Callable[..., MetaQuery], case: str) -> None:
    """In double precision, for weights so large lose four digits in a gradient that has come through both models."""
    policy = make_metaquery()
    policy.network.double()
    modality, sampling = SAMPLINGS[case]
    contexts = groups(policy)
    actions = act(policy, modality, contexts, sampling)
    whole = gradients(policy, policy(contexts, actions))
    parts = [gradients(policy, policy(contexts[i : i + 4], actions[i : i + 4])) for i in range(0, 16, 4)]
    summed = {name: sum(part[name] for part in parts if name in part) for name in whole}
    assert_same_gradients(cast("dict[str, Tensor]", summed), whole, share=1e-5)


# -- 8. the reference ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"lora_rank": 4, "lora_targets": r".*\.(q_proj|to_q|project)"}])
def test_the_divergence_from_the_reference_is_zero_at_first_and_positive_after(
    make_metaquery: Callable[..., MetaQuery], fields: dict[str, Any]
) -> None:
    policy = make_metaquery(**fields)
    policy.keep_reference()
    contexts = [Context((SHORT,)), Context((PICTURE, LONG)), Context((LONG,))]
    actions = [*policy.draw(contexts[:2], DRAWING, [0, 1]), *policy.write(contexts[2:], TEXT, [2])]

    def divergence() -> list[Tensor]:
        with policy.reference():
            anchors = policy.anchors(contexts, actions)
        scores = policy(contexts, actions, anchors)
        return [kl for _, kl in scores]

    assert max(kl.abs().max() for kl in divergence()) < 1e-8
    perturb(policy, 0.05)
    assert all((kl >= 0).all() and kl.max() > 1e-6 for kl in divergence())


def test_the_divergence_of_a_drawing_is_that_of_its_transitions(make_metaquery: Callable[..., MetaQuery]) -> None:
    policy = make_metaquery()
    contexts, sampling = [Context((SHORT,))], Sampling(steps=4)
    drawing = cast(Latents, policy.draw(contexts, sampling, [0])[0])
    anchors = policy.anchors(contexts, [drawing])
    assert anchors[0].shape == drawing.path[1:].shape
    perturb(policy, 0.05)
    kl = policy(contexts, [drawing], anchors)[0][1]
    sigmas, level = drawing.sigmas, torch.tensor(0.7)
    std = sde.spread(sigmas[:-1], sigmas[1:], float(sigmas[1]), "flow_grpo", level.expand(4))
    means = torch.cat(policy.anchors(contexts, [drawing]))
    expected = (means - anchors[0]).square().flatten(1).mean(1) / (2 * std**2)
    assert (kl - expected).abs().max() < 1e-5 * expected.max()


# -- parts that are trained ----------------------------------------------------------------------------------------


def test_a_frozen_language_model_gets_no_gradient_and_passes_it_on(make_metaquery: Callable[..., MetaQuery]) -> None:
    policy = make_metaquery(frozen=("^qwen",))
    contexts = [Context((SHORT,)), Context((PICTURE, SHORT))]
    drawings = policy.draw(contexts, DRAWING, [0, 1])
    torch.stack(policy(contexts, drawings)).sum().backward()
    gradient = {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None}
    assert {name.partition(".")[0] for name in gradient} == {"bridge", "transformer"}
    for name in ("bridge.queries.draw", "bridge.queries.edit", "bridge.source_out.weight", "bridge.project.weight"):
        assert gradient[name].abs().max() > 0


def test_a_language_model_that_is_trained_gets_a_gradient_from_drawings(metaquery: MetaQuery) -> None:
    contexts = [Context((PICTURE, SHORT))]
    found = gradients(metaquery, metaquery(contexts, metaquery.draw(contexts, DRAWING, [0])))
    assert found["qwen.model.language_model.layers.0.self_attn.q_proj.weight"].abs().max() > 0
    assert found["qwen.model.visual.patch_embed.proj.weight"].abs().max() > 0
    assert not any(name.startswith("vae") for name in found)


def test_an_editing_path_of_zeros_leaves_the_velocity_unchanged(make_metaquery: Callable[..., MetaQuery]) -> None:
    policy = make_metaquery()
    sampling, contexts = Sampling(steps=4), [Context((PICTURE, SHORT))]
    edit = cast(Latents, policy.draw(contexts, sampling, [0])[0])
    with torch.no_grad():
        policy.network.bridge.source_out.weight.zero_()
        policy.network.bridge.source_out.bias.zero_()
    zeroed = cast(Latents, policy.draw(contexts, sampling, [0])[0])
    guided = policy._guided(contexts, sampling, edit=True)
    without = replace(guided, source=None)
    x, sigma, row = torch.randn(1, *policy.network.latent_shape), torch.tensor([0.5]), torch.tensor([0])
    assert torch.equal(guided(x, sigma, row), without(x, sigma, row))
    assert (edit.path - zeroed.path).abs().max() > 0.01


def test_fewer_steps_scored_leave_sums_unbiased(metaquery: MetaQuery) -> None:
    drawing = cast(Latents, metaquery.draw([Context((SHORT,))], Sampling(steps=6), [0])[0])
    total = torch.zeros(6)
    for seed in range(300):
        (thinned,) = metaquery.select([drawing], ScoringConfig(rounds=2), seed)
        assert thinned.action.mask.sum() == 2
        assert torch.equal(thinned.share > 0, thinned.action.mask)
        total += thinned.share
    assert (total / 300 - 1).abs().max() < 0.25
    (whole,) = metaquery.select([drawing], ScoringConfig(), 0)
    assert torch.equal(whole.action.mask, drawing.mask)
    assert whole.share.sum() == 6


# -- supervised ----------------------------------------------------------------------------------------------------


def test_the_loss_of_a_picture_is_the_flow_matching_loss(metaquery: MetaQuery) -> None:
    context = Context((PICTURE, SHORT))
    torch.manual_seed(3)
    given = cast(Latents, metaquery.encode([OTHER])[0])
    given = replace(given, sampling=Sampling(steps=0))  # nothing hidden
    noise, clean = given.path
    sigma = given.sigmas[:1]
    with torch.no_grad():
        velocity = metaquery._guided([context], Sampling(), edit=True)
        v = velocity(((1 - sigma) * clean + sigma * noise)[None], sigma, torch.tensor([0]))[0]
        loss = metaquery.nll([context], cast(Any, [given]))
    assert loss.item() == pytest.approx((v - (noise - clean)).square().mean().item(), rel=1e-5)
    picture = metaquery.decode([replace(given, path=given.path[1:])])[0]
    assert picture.size == OTHER.size


def test_a_given_picture_is_another_noisy_state_each_time_and_now_and_then_hides_the_context(
    metaquery: MetaQuery,
) -> None:
    torch.manual_seed(0)
    given = [cast(Latents, a) for a in metaquery.encode([PICTURE] * 64)]
    assert len({float(a.sigmas[0]) for a in given}) == 64
    levels, shift = torch.stack([a.sigmas[0] for a in given]), metaquery.network.scheduler.config.shift
    times = levels / (shift - (shift - 1) * levels)  # the shift taken back
    assert shift > 1
    assert 0.35 < times.mean() < 0.65
    assert 0 < times.min() < 0.25
    kinds = {(a.sampling.guidance, a.sampling.source_guidance) for a in given}
    assert kinds == {(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)}
    seen = sum(a.sampling.guidance == 1 and a.sampling.source_guidance == 1 for a in given)
    assert 45 < seen < 62


@pytest.mark.parametrize("hidden", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)], ids=["text", "source", "both"])
def test_what_a_given_picture_hides_does_not_matter(metaquery: MetaQuery, hidden: tuple[float, float]) -> None:
    given = cast(Latents, metaquery.encode([PICTURE])[0])
    given = replace(given, sampling=Sampling(steps=0, guidance=hidden[0], source_guidance=hidden[1]))
    other_text, other_source = Context((PICTURE, LONG)), Context((OTHER, SHORT))
    loss, text, source = (
        metaquery([context], [given])[0].item() for context in (Context((PICTURE, SHORT)), other_text, other_source)
    )
    assert (abs(loss - text) < 1e-5) == (hidden[0] == 0)
    assert (abs(loss - source) < 1e-5) == (hidden[1] == 0)


def test_own_drawings_are_scored_noised_anew_without_guidance(metaquery: MetaQuery) -> None:
    """Drawings and edits, at every level of their schedule, with the distance from the reference's velocities."""
    contexts = [Context((SHORT,)), Context((SHORT,)), Context((PICTURE, LONG))]
    drawings = metaquery.draw(contexts, replace(DRAWING, sde="ode"), range(3))
    scored = metaquery.select(drawings, ScoringConfig(drawings="noised"), 5)
    given = [cast(Latents, s.action) for s in scored]
    assert all(s.share.sum() == len(s.counted) == 4 for s in scored)
    assert torch.equal(given[0].path[:-1], given[2].path[:-1])
    anchors = metaquery.anchors(contexts, given)
    shifted = [anchor + 0.5 for anchor in anchors]
    scores = metaquery(contexts, given, shifted)
    for context, drawing, anchor, (logp, distance) in zip(contexts, given, anchors, scores, strict=True):
        noise, clean, sigma = drawing.path[:-1], drawing.path[-1], drawing.sigmas[:-1].view(-1, 1, 1, 1)
        with torch.no_grad():
            velocity = metaquery._guided([context], Sampling(), edit=len(context.parts) > 1)
            v = velocity((1 - sigma) * clean + sigma * noise, sigma.flatten(), torch.zeros(4, dtype=torch.long))
        assert torch.allclose(logp, -(v - (noise - clean)).square().mean((1, 2, 3)), rtol=1e-4)
        assert torch.allclose(anchor, v, atol=1e-4)
        assert torch.allclose(distance, torch.full((4,), 0.25), atol=1e-4)
    assert gradients(metaquery, [logp for logp, _ in scores])


def test_the_loss_of_a_text_is_its_negative_log_likelihood(metaquery: MetaQuery) -> None:
    contexts = [Context((SHORT,)), Context((PICTURE, LONG))]
    targets = ["yes", "a longer reply than the other"]
    encoded = metaquery.encode(targets)
    losses = metaquery.nll(contexts, targets)
    for row, action in enumerate(encoded):
        assert losses[row].item() == pytest.approx(-metaquery([contexts[row]], [action])[0].mean().item(), rel=1e-4)
        assert cast(Tokens, action).ids[-1] == metaquery.tokenizer.eos_token_id
    assert metaquery.decode(encoded) == targets


# -- reading -------------------------------------------------------------------------------------------------------


def test_a_context_is_read_as_the_language_model_itself_would(metaquery: MetaQuery) -> None:
    """States of our prefix pass against `transformers`' own forward of ids, pixels and its own rotary index."""
    from unison.policies.decoding import causal
    from unison.policies.metaquery.layout import Seen, positions

    tokenizer, qwen = metaquery.tokenizer, metaquery.network.qwen
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    wide = PICTURE.resize((64, 40))
    runs = metaquery._see([metaquery.chat.pieces((SHORT, wide, LONG, OTHER, "?"))])[0]
    ids = torch.tensor([[i for run in runs for i in (run if isinstance(run, list) else [pad] * len(run))]])
    seen = [run for run in runs if isinstance(run, Seen)]
    grids = torch.tensor([[1, 2 * s.height, 2 * s.width] for s in seen])
    with torch.no_grad():
        theirs: Any = qwen.model(
            input_ids=ids,
            pixel_values=torch.cat([s.patches for s in seen]),
            image_grid_thw=grids,
            mm_token_type_ids=(ids == pad).int(),
        )
        embeds, places = metaquery._embed([runs]), [positions(runs)]
        ours = causal.run_prefixes(metaquery.decoder, embeds, keep=False, positions=places).hidden
        find: Any = qwen.model.get_rope_index
        index, _ = find(ids, (ids == pad).int(), grids)
    assert torch.equal(index[:, 0], places[0])
    assert (theirs.last_hidden_state - ours).abs().max() < 1e-4


def test_the_chat_is_that_of_the_tokenizer_s_template(metaquery: MetaQuery) -> None:
    reply = metaquery.encode(["a thought"])[0]
    pieces = metaquery.chat.pieces((SHORT, PICTURE, LONG, reply, "and then?"))
    ours = "".join(metaquery.tokenizer.decode(p) if isinstance(p, list) else "<|image_pad|>" for p in pieces)
    image = {"type": "image"}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": SHORT}, image, {"type": "text", "text": LONG}]},
        {"role": "assistant", "content": "a thought"},
        {"role": "user", "content": "and then?"},
    ]
    assert metaquery.tokenizer.chat_template == CHAT_TEMPLATE
    assert ours == metaquery.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_an_image_that_never_left_the_model_is_processed_like_a_picture(metaquery: MetaQuery) -> None:
    import numpy as np

    processor = metaquery.image_processor
    for picture, close in ((PICTURE, 1e-5), (PICTURE.resize((72, 40)), 0.15)):  # resized, pictures are rounded
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        one, two = see_picture(picture, processor), see_pixels(pixels, processor)
        assert (one.height, one.width) == (two.height, two.width)
        assert (one.patches - two.patches).abs().max() < close


def test_an_earlier_drawing_stays_latents(metaquery: MetaQuery) -> None:
    drawing = own_drawing(metaquery)
    with counted(metaquery.network.vae.encoder) as rows:
        metaquery.draw([Context((drawing, SHORT))], DRAWING, [0])
    assert rows == []
    latents, _ = metaquery._source_latents([drawing])
    assert torch.equal(latents[0], drawing.path[-1])


def test_hidden_states_are_those_of_the_image_and_of_the_text_s_own_tokens(metaquery: MetaQuery) -> None:
    (image, text), (_, other) = metaquery.hidden_states([PICTURE, PICTURE], [SHORT, LONG])
    assert image.shape == (9, 64)
    assert text.shape == (len(metaquery.chat.ids(SHORT)), 64)
    assert other.shape == (len(metaquery.chat.ids(LONG)), 64)
    alone = metaquery.hidden_states([PICTURE], [LONG])[0][1]
    assert (alone - other).abs().max() < CLOSE


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_an_unconditional_context_cannot_be_answered(metaquery: MetaQuery) -> None:
    with pytest.raises(ValueError, match="unconditional context is for drawing"):
        metaquery.write([Context((SHORT,), unconditional=True)], TEXT, [0])


def test_a_mark_of_the_format_in_a_text_is_refused(metaquery: MetaQuery) -> None:
    with pytest.raises(ValueError, match=r"<\|image_pad\|>.*parts of the context"):
        metaquery.write([Context(("what is <|image_pad|>?",))], TEXT, [0])


def test_a_drawing_of_another_family_is_refused(metaquery: MetaQuery) -> None:
    tokens = Tokens("image", torch.zeros(4, dtype=torch.long), torch.arange(4), torch.zeros(4), torch.ones(4) > 0, TEXT)
    with pytest.raises(ValueError, match="another family"):
        metaquery.write([Context((tokens, SHORT))], TEXT, [0])
    with pytest.raises(ValueError, match="draws in latents"):
        metaquery([Context((SHORT,))], [tokens])


# -- adapters on one expert, the other trained in full ------------------------------------------------------------


def test_weights_beside_adapters_are_trained_and_kept_as_reference(make_metaquery: Callable[..., MetaQuery]) -> None:
    beside = ("^bridge", "^transformer")
    policy = make_metaquery(lora_rank=4, lora_beside=beside, frozen=("source_",))
    trained = [name for name, p in policy.network.named_parameters() if p.requires_grad]
    assert all(".lora_" in name or name.startswith(("bridge", "transformer")) for name in trained)
    assert any(".lora_" in name for name in trained)
    assert any(name.startswith("transformer") for name in trained)
    assert not any("source_" in name for name in trained)
    contexts = groups(policy)
    sampling = SAMPLINGS["guided drawing"][1]
    actions = act(policy, "image", contexts, sampling)
    policy.keep_reference()
    with torch.no_grad():
        before = policy(contexts, actions)
        perturb(policy)
        assert not all(torch.allclose(a, b) for a, b in zip(policy(contexts, actions), before, strict=True))
        with policy.reference():
            for now, then in zip(policy(contexts, actions), before, strict=True):
                torch.testing.assert_close(now, then)
