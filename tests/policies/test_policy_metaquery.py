"""What is MetaQuery's own beside the contract: guidance of edits, given pictures, what is computed, Qwen's chats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.policies.contract import (
    CLOSE,
    LONG,
    OTHER,
    PICTURE,
    SHORT,
    TEXT,
    assert_same_gradients,
    assert_same_scores,
    counted,
    far,
    gap,
    gradients,
    groups,
    nll,
    perturb,
)
from unison.config import ScoringConfig
from unison.policies.decisions import sde
from unison.policies.decoding import causal
from unison.policies.metaquery.guidance import branch_shares
from unison.policies.metaquery.layout import CHAT_TEMPLATE, Seen, positions, see_picture, see_pixels
from unison.policies.metaquery.policy import MetaQuery
from unison.types import Context, Hides, Latents, Noised, Sampling

DRAWING = Sampling(guidance=3.0, source_guidance=1.5, steps=4)


@pytest.fixture(scope="module")
def drawing(metaquery: MetaQuery) -> Latents:
    return cast(Latents, metaquery.draw([Context((SHORT,))], DRAWING, [77])[0])


def kinds(drawing: Latents) -> list[Context]:
    """Prompts of two lengths, an edit, and one of an own drawing."""
    return [Context((SHORT,)), Context((LONG,)), Context((PICTURE, SHORT)), Context((SHORT, drawing, LONG))]


# -- what is computed ----------------------------------------------------------------------------------------------


def test_replay_in_passes_of_few_states_is_the_same(make_metaquery: Callable[..., MetaQuery], drawing: Latents) -> None:
    """Gradients too: states of several passes are computed once more in the backward pass."""
    whole, parts = make_metaquery(), make_metaquery(states_per_pass=3)
    contexts = groups(kinds(drawing))[:6]
    drawings = whole.draw(contexts, DRAWING, range(6))
    one, two = whole(contexts, drawings), parts(contexts, drawings)
    assert gap(two, drawings) < CLOSE
    assert_same_gradients(gradients(parts, two), gradients(whole, one))


def test_guidance_matters_in_sampling_and_in_scoring(metaquery: MetaQuery) -> None:
    context = [Context((PICTURE, SHORT))]
    guided = cast(Latents, metaquery.draw(context, DRAWING, [0])[0])
    for other in (replace(DRAWING, guidance=1.0), replace(DRAWING, source_guidance=1.0)):
        path = cast(Latents, metaquery.draw(context, other, [0])[0]).path
        assert (path - guided.path).abs().max() > 0.01
        assert gap(metaquery(context, [replace(guided, sampling=other)]), [guided]) > 1e-3


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


def test_a_source_is_seen_once_though_two_prompts_hold_it(metaquery: MetaQuery) -> None:
    edits = [Context((PICTURE, SHORT))] * 4
    with counted(metaquery.decoder) as rows, counted(metaquery.network.qwen.model.visual) as images:
        metaquery.draw(edits, DRAWING, range(4))
    assert rows == [3]
    assert images == [36]  # patches of one picture


def test_splitting_a_batch_of_edits_and_drawings_leaves_the_gradient_unchanged(
    make_metaquery: Callable[..., MetaQuery], drawing: Latents
) -> None:
    """In double precision, for weights so large lose four digits in a gradient that has come through both models."""
    policy = make_metaquery()
    policy.network.double()
    contexts = groups(kinds(drawing))
    actions = policy.draw(contexts, DRAWING, range(8))
    parts = [logp for i in range(0, 8, 2) for logp in policy(contexts[i : i + 2], actions[i : i + 2])]
    assert_same_scores(policy, parts, policy(contexts, actions), share=1e-5)


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
    given = replace(cast(Noised, metaquery.encode([OTHER])[0]), hides="nothing")
    noise, clean = given.path
    sigma = given.sigmas[:1]
    with torch.no_grad():
        velocity = metaquery._guided([context], Sampling(), edit=True)
        v = velocity(((1 - sigma) * clean + sigma * noise)[None], sigma, torch.tensor([0]))[0]
        loss = nll(metaquery, [context], [given])
    assert loss.item() == pytest.approx((v - (noise - clean)).square().mean().item(), rel=1e-5)


def test_a_given_picture_is_another_noisy_state_each_time_and_now_and_then_hides_the_context(
    metaquery: MetaQuery,
) -> None:
    torch.manual_seed(0)
    given = [cast(Noised, a) for a in metaquery.encode([PICTURE] * 64)]
    assert len({float(a.sigmas[0]) for a in given}) == 64
    levels, shift = torch.stack([a.sigmas[0] for a in given]), metaquery.network.scheduler.config.shift
    times = levels / (shift - (shift - 1) * levels)  # the shift taken back
    assert shift > 1
    assert 0.35 < times.mean() < 0.65
    assert 0 < times.min() < 0.25
    assert {a.hides for a in given} == {"nothing", "text", "source", "everything"}
    assert 45 < sum(a.hides == "nothing" for a in given) < 62


@pytest.mark.parametrize("hides", ["text", "source", "everything"])
def test_what_a_given_picture_hides_does_not_matter(metaquery: MetaQuery, hides: Hides) -> None:
    given = replace(cast(Noised, metaquery.encode([PICTURE])[0]), hides=hides)
    other_text, other_source = Context((PICTURE, LONG)), Context((OTHER, SHORT))
    loss, text, source = (
        metaquery([context], [given])[0].item() for context in (Context((PICTURE, SHORT)), other_text, other_source)
    )
    assert (abs(loss - text) < 1e-5) == (hides != "source")
    assert (abs(loss - source) < 1e-5) == (hides != "text")


def test_own_drawings_are_scored_noised_anew_without_guidance(metaquery: MetaQuery) -> None:
    """Drawings and edits, at every level of their schedule, with the distance from the reference's velocities."""
    contexts = [Context((SHORT,)), Context((SHORT,)), Context((PICTURE, LONG))]
    drawings = metaquery.draw(contexts, replace(DRAWING, sde="ode"), range(3))
    scored = metaquery.select(drawings, ScoringConfig(drawings="noised"), 5)
    given = [cast(Noised, s.action) for s in scored]
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


# -- reading -------------------------------------------------------------------------------------------------------


def test_a_context_is_read_as_the_language_model_itself_would(metaquery: MetaQuery) -> None:
    """States of our prefix pass against `transformers`' own forward of ids, pixels and its own rotary index."""
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
    processor = metaquery.image_processor
    for picture, close in ((PICTURE, 1e-5), (PICTURE.resize((72, 40)), 0.15)):  # resized, pictures are rounded
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        one, two = see_picture(picture, processor), see_pixels(pixels, processor)
        assert (one.height, one.width) == (two.height, two.width)
        assert (one.patches - two.patches).abs().max() < close


def test_an_earlier_drawing_stays_latents(metaquery: MetaQuery, drawing: Latents) -> None:
    with counted(metaquery.network.vae.encoder) as rows:
        metaquery.draw([Context((drawing, SHORT))], DRAWING, [0])
    assert rows == []
    latents, _ = metaquery._source_latents([drawing])
    assert torch.equal(latents[0], drawing.path[-1])


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_a_mark_of_the_format_in_a_text_is_refused(metaquery: MetaQuery) -> None:
    with pytest.raises(ValueError, match=r"<\|image_pad\|>.*parts of the context"):
        metaquery.write([Context(("what is <|image_pad|>?",))], TEXT, [0])


# -- adapters on one expert, the other trained in full ------------------------------------------------------------


def test_weights_beside_adapters_are_trained_and_kept_as_reference(make_metaquery: Callable[..., MetaQuery]) -> None:
    beside = ("^bridge", "^transformer")
    policy = make_metaquery(lora_rank=4, lora_beside=beside, frozen=("source_",))
    trained = [name for name, p in policy.network.named_parameters() if p.requires_grad]
    assert all(".lora_" in name or name.startswith(("bridge", "transformer")) for name in trained)
    assert any(".lora_" in name for name in trained)
    assert any(name.startswith("transformer") for name in trained)
    assert not any("source_" in name for name in trained)
    contexts = [Context((SHORT,)), Context((PICTURE, LONG))]
    actions = policy.draw(contexts, DRAWING, [0, 1])
    policy.keep_reference()
    with torch.no_grad():
        before = policy(contexts, actions)
        perturb(policy)
        assert not all(torch.allclose(a, b) for a, b in zip(policy(contexts, actions), before, strict=True))
        with policy.reference():
            assert far(policy(contexts, actions), before) < 1e-5
