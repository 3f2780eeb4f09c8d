"""The Show-o policy, on the real classes at toy size: what is sampled is what is scored, whatever the batch."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unison.config import PolicyConfig, ScoringConfig
from unison.policies import load_policy
from unison.policies.decisions import selection
from unison.policies.decoding import masked
from unison.policies.showo.policy import ShowO, question
from unison.types import Action, Context, Latents, Sampling, Tokens
from unison.world.render import render
from unison.world.scene import sample

PICTURE, OTHER = (render(sample(random.Random(i), "position", "train")[1]) for i in range(2))
SHORT, LONG = "a red circle", "two blue squares and a black diamond left of it"
TEXT = Sampling(max_tokens=12)
DRAWING = Sampling(guidance=3.0, rounds=6)
CLOSE = 1e-4
N, CODES = 36, 64

SAMPLINGS = {
    "text": ("text", TEXT),
    "cool text": ("text", Sampling(temperature=0.7, max_tokens=12)),
    "drawing": ("image", Sampling(rounds=6)),
    "guided drawing": ("image", DRAWING),
    "cool guided drawing": ("image", Sampling(temperature=0.7, guidance=3.0, rounds=6)),
    "guided drawing, conditional score": ("image", replace(DRAWING, score_conditional=True)),
    "one round": ("image", Sampling(guidance=3.0, rounds=1)),
    "more rounds than positions": ("image", Sampling(rounds=50)),
    "the most confident first": ("image", Sampling(guidance=3.0, rounds=6, choice_temperature=0.0)),
    "positions nearly at random": ("image", Sampling(rounds=6, choice_temperature=20.0)),
}


def act(
    policy: ShowO, modality: str, contexts: Sequence[Context], sampling: Sampling, first_seed: int = 0
) -> list[Any]:
    seeds = range(first_seed, first_seed + len(contexts))
    return list((policy.write if modality == "text" else policy.draw)(contexts, sampling, seeds))


def own_drawing(policy: ShowO) -> Tokens:
    return cast(Tokens, policy.draw([Context((SHORT,))], DRAWING, [77])[0])


def own_reply(policy: ShowO) -> Tokens:
    return policy.write([Context((SHORT,))], Sampling(max_tokens=6), [78])[0]


BATCHES: dict[str, Callable[[ShowO], list[Context]]] = {
    "one row": lambda _: [Context((SHORT,))],
    "prompts of one length": lambda _: [Context(("a red circle",)), Context(("a red square",))],
    "prompts of two lengths": lambda _: [Context((SHORT,)), Context((LONG,))],
    "an own reply": lambda policy: [Context((SHORT, own_reply(policy), LONG)), Context((LONG,))],
    "pictures": lambda _: [Context((PICTURE, SHORT)), Context((SHORT, PICTURE, LONG, OTHER)), Context((LONG,))],
    "an own drawing": lambda policy: [Context((SHORT, own_drawing(policy), LONG)), Context((SHORT,))],
}


def mixed(policy: ShowO, modality: str) -> list[Context]:
    """Groups of every kind of context at once that the modality allows."""
    made = [context for make in BATCHES.values() for context in make(policy)]
    if modality == "image":
        made = [c for c in made if all(isinstance(p, str) or getattr(p, "modality", "") == "text" for p in c.parts)]
    return [context for context in made for _ in range(2)]


def gap(logps: Sequence[Tensor], actions: Sequence[Action]) -> float:
    """Largest difference between replayed and sampled log-probabilities."""
    return max((logp - action.logp).abs().max().item() for logp, action in zip(logps, actions, strict=True))


def perturb(policy: ShowO, scale: float = 0.1) -> None:
    """Moves every trained weight, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


def gradients(policy: ShowO, logps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradient of a weighted sum of log-probabilities, different weights at every position."""
    total = torch.stack([(logp * torch.linspace(-1, 1, len(logp))).sum() for logp in logps]).sum()
    trained = {name: p for name, p in policy.network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(total, list(trained.values()), allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(trained, found, strict=True) if g is not None}


def assert_same_gradients(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    largest = max(g.abs().max() for g in two.values())
    assert largest > 0
    for name in two:
        difference = (one[name] - two[name]).abs().max()
        assert difference <= CLOSE * largest, f"{name}: {difference} of {largest}"


@pytest.fixture(scope="module")
def adapted(make_showo: Callable[..., ShowO]) -> ShowO:
    """A policy with adapters that are not zero, on the output head too."""
    policy = make_showo(lora_rank=4, lora_targets=r"showo\..*\.(q_proj|k_proj|v_proj|dense|fc1|fc2|lm_head)")
    perturb(policy)
    return policy


# -- 1. replayed log-probability equals the sampled one ------------------------------------------------------------


@pytest.mark.parametrize("with_adapters", [False, True], ids=["weights", "adapters"])
@pytest.mark.parametrize("case", SAMPLINGS)
def test_replayed_log_probability_equals_the_sampled_one(
    showo: ShowO, adapted: ShowO, case: str, with_adapters: bool
) -> None:
    chosen = adapted if with_adapters else showo
    modality, sampling = SAMPLINGS[case]
    contexts = mixed(chosen, modality)
    actions = act(chosen, modality, contexts, sampling)
    with torch.no_grad():
        assert gap(chosen(contexts, actions), actions) < CLOSE


def test_samples_are_neither_constant_nor_uniform(showo: ShowO) -> None:
    """Else the tests above would hold for trivial reasons."""
    contexts = [Context((SHORT,))] * 6
    for actions, size in (
        (showo.write(contexts, TEXT, range(6)), 512),
        (showo.draw(contexts, DRAWING, range(6)), CODES),
    ):
        surprise = -torch.cat([action.logp for action in actions]).mean()
        assert 0.05 < surprise < 0.9 * torch.log(torch.tensor(size))
        assert len({tuple(action.ids.tolist()) for action in actions if isinstance(action, Tokens)}) == 6


def test_every_part_of_a_context_matters(showo: ShowO) -> None:
    reply = showo.write([Context((PICTURE, SHORT))], TEXT, [0])
    for context in (Context((OTHER, SHORT)), Context((PICTURE, LONG)), Context((SHORT,))):
        assert gap(showo([context], reply), reply) > 0.01
    drawing = showo.draw([Context((SHORT,))], DRAWING, [0])
    for context in (Context((LONG,)), Context((SHORT,), unconditional=True)):
        assert gap(showo([context], drawing), drawing) > 0.01


def test_the_round_of_a_decision_matters(showo: ShowO) -> None:
    """Replay reads the canvas of each round, not one canvas for all."""
    drawing = own_drawing(showo)
    shuffled = replace(drawing, order=drawing.order.flip(0))
    assert gap(showo([Context((SHORT,))], [shuffled]), [drawing]) > 0.01


@pytest.mark.parametrize("rounds", [1, 6, 50])
def test_a_drawing_is_decided_by_the_schedule(showo: ShowO, rounds: int) -> None:
    drawing = cast(Tokens, showo.draw([Context((SHORT,))], Sampling(rounds=rounds), [0])[0])
    after = [int((drawing.order > t).sum()) for t in range(rounds)]
    planned, left = [], N
    for count in masked.still_masked(N, rounds)[:-1]:
        left = max(1, min(left - 1, count))
        planned.append(left)
    assert after == [*planned, 0]
    assert drawing.mask.all()
    assert ((drawing.ids >= 0) & (drawing.ids < CODES)).all()


def test_scoring_the_conditional_branch_differs_from_scoring_the_guided_one(showo: ShowO) -> None:
    contexts = [Context((SHORT,))]
    guided = cast(Tokens, showo.draw(contexts, DRAWING, [0])[0])
    conditional = cast(Tokens, showo.draw(contexts, replace(DRAWING, score_conditional=True), [0])[0])
    assert torch.equal(guided.ids, conditional.ids)  # the sample is guided all the same
    assert torch.equal(guided.order, conditional.order)
    assert (guided.logp - conditional.logp).abs().max() > 0.1


def test_actions_of_both_modalities_are_scored_in_the_given_order(showo: ShowO) -> None:
    one, two = Context((SHORT,)), Context((PICTURE, LONG))
    contexts = [one, two, one, two, one]
    actions = [
        *showo.draw([one], DRAWING, [1]),
        *showo.write([two], TEXT, [2]),
        *showo.write([one], TEXT, [3]),
        *showo.write([two], TEXT, [4]),
        *showo.draw([one], Sampling(rounds=3), [5]),
    ]
    assert gap(showo(contexts, actions), actions) < CLOSE


def test_only_the_decisions_of_the_mask_are_scored(showo: ShowO, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that is not wanted is not computed, so a subset of rounds costs its share."""
    drawing, context = own_drawing(showo), Context((SHORT,))
    full = showo([context], [drawing])[0]
    wanted = (drawing.order == 2) | (drawing.order == 5)
    seen: list[int] = []
    states = masked.Reader.states
    monkeypatch.setattr(
        masked.Reader, "states", lambda self, canvas, rows: seen.append(len(canvas)) or states(self, canvas, rows)
    )
    part = showo([context], [replace(drawing, mask=wanted)])[0]
    assert seen == [2]
    assert (part[~wanted] == 0).all()
    assert (part[wanted] - full[wanted]).abs().max() < CLOSE


# -- against a plain forward pass ----------------------------------------------------------------------------------


def plain_drawing_logp(policy: ShowO, text: str, drawing: Tokens) -> Tensor:
    """Whole padded sequences, every round, both branches, guidance in Show-o's own form."""
    layout, rows, g = policy.layout, [], drawing.sampling.guidance - 1
    logp = torch.zeros(N)
    for t in drawing.order.unique():
        canvas = drawing.ids.masked_fill(drawing.order >= t, CODES) + layout.first_image
        rows = [
            layout.drawing(policy.tokenizer.encode(s, add_special_tokens=False), canvas.tolist()) for s in (text, "")
        ]
        ids = torch.tensor(rows)
        c, u = policy.network.logits(ids, layout.drawing_mask(ids))[:, -N - 1 : -1, layout.first_image : layout.mask]
        scores = torch.log_softmax(((1 + g) * c - g * u) / drawing.sampling.temperature, -1)
        own = scores.gather(1, drawing.ids[:, None])[:, 0]
        logp = torch.where(drawing.order == t, own, logp)
    return logp


@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 1.0), (4.0, 1.0), (2.0, 0.7)])
def test_drawing_scoring_equals_a_plain_forward_pass(showo: ShowO, guidance: float, temperature: float) -> None:
    contexts = [Context((SHORT,)), Context((LONG,))]
    sampling = Sampling(temperature=temperature, guidance=guidance, rounds=5)
    drawings = cast(list[Tokens], showo.draw(contexts, sampling, [0, 1]))
    ours = showo(contexts, drawings)
    plain = [plain_drawing_logp(showo, text, d) for text, d in zip((SHORT, LONG), drawings, strict=True)]
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).abs().max() < CLOSE
    assert_same_gradients(gradients(showo, ours), gradients(showo, plain))


def plain_reply_logp(policy: ShowO, codes: Tensor, text: str, reply: Tokens) -> Tensor:
    """The whole answering sequence at once."""
    layout = policy.layout
    words = policy.tokenizer.encode(question(text), add_special_tokens=False)
    prefix = layout.answering((codes + layout.first_image).tolist(), words)
    ids = torch.tensor([prefix + reply.ids.tolist()])
    logits = policy.network.logits(ids, layout.answering_mask(ids))[0, len(prefix) - 1 : -1]
    return torch.log_softmax(logits / reply.sampling.temperature, -1).gather(1, reply.ids[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reply_scoring_equals_a_plain_forward_pass(showo: ShowO, temperature: float) -> None:
    """On a picture, which becomes codes, and on a drawing, which is codes."""
    drawing = own_drawing(showo)
    contexts = [Context((PICTURE, SHORT)), Context((drawing, LONG))]
    replies = showo.write(contexts, Sampling(temperature=temperature, max_tokens=12), [0, 1])
    ours = showo(contexts, replies)
    codes = showo._codes([PICTURE])[0], drawing.ids
    plain = [plain_reply_logp(showo, *x) for x in zip(codes, (SHORT, LONG), replies, strict=True)]
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).abs().max() < CLOSE
    assert_same_gradients(gradients(showo, ours), gradients(showo, plain))


def test_a_question_without_an_image_is_plain_text(showo: ShowO) -> None:
    pieces = showo._pieces(Context((SHORT,)))
    assert [piece.open for piece in pieces] == [False]
    assert pieces[0].content == [showo.layout.eot, *showo._ids(f"USER: \n{SHORT} ASSISTANT:")]


# -- 6. shared prefixes, 4. chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["text", "drawing", "cool guided drawing"])
def test_a_shared_prefix_scores_as_one_row_per_sample(showo: ShowO, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    contexts = [c for c in (Context((SHORT,)), Context((LONG,))) for _ in range(3)]
    actions = act(showo, modality, contexts, sampling)
    shared = showo(contexts, actions)
    one_by_one = [showo([Context(c.parts)], [a])[0] for c, a in zip(contexts, actions, strict=True)]
    for a, b in zip(shared, one_by_one, strict=True):
        assert (a - b).abs().max() < CLOSE
    assert_same_gradients(gradients(showo, shared), gradients(showo, one_by_one))


@pytest.mark.parametrize("positions", [1, 3 * N])
def test_scoring_in_chunks_changes_neither_values_nor_gradients(
    showo: ShowO, monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    contexts = [c for c in (Context((SHORT,)), Context((LONG,))) for _ in range(2)]
    drawings = showo.draw(contexts, DRAWING, range(4))
    whole = showo(contexts, drawings)
    expected = gradients(showo, whole)
    monkeypatch.setattr(masked, "POSITIONS_PER_CHUNK", positions)
    chunked = showo(contexts, drawings)
    assert max((a - b).abs().max() for a, b in zip(whole, chunked, strict=True)) < CLOSE
    assert_same_gradients(gradients(showo, chunked), expected)


@pytest.mark.parametrize("positions", [1, 5 * N])
def test_drawing_in_passes_of_a_few_canvases_changes_no_drawing(
    showo: ShowO, monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    contexts = [c for c in (Context((SHORT,)), Context((LONG,))) for _ in range(3)]
    whole = cast(list[Tokens], showo.draw(contexts, DRAWING, range(6)))
    monkeypatch.setattr(masked, "POSITIONS_PER_CPU_PASS", positions)
    parts = cast(list[Tokens], showo.draw(contexts, DRAWING, range(6)))
    for a, b in zip(whole, parts, strict=True):
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.order, b.order)
        assert (a.logp - b.logp).abs().max() < CLOSE


def test_prompts_are_computed_once_for_siblings_and_rounds(showo: ShowO, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    run = masked.causal.run_prefixes
    monkeypatch.setattr(
        masked.causal, "run_prefixes", lambda net, rows, *a, **k: seen.append(len(rows)) or run(net, rows, *a, **k)
    )
    contexts = [c for c in (Context((SHORT,)), Context((LONG,))) for _ in range(4)]
    showo(contexts, showo.draw(contexts, DRAWING, range(8)))
    assert seen == [3, 3]  # two prompts and the unconditional one, at sampling and at scoring


# -- 7. no cross-talk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["text", "guided drawing"])
def test_swapping_two_items_swaps_their_samples(showo: ShowO, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    one, two = Context((SHORT,)), Context((LONG,))
    sample_all = showo.write if modality == "text" else showo.draw
    there = sample_all([one, one, two, two], sampling, [1, 2, 3, 4])
    back = sample_all([two, two, one, one], sampling, [3, 4, 1, 2])
    for a, b in zip([*there[2:], *there[:2]], back, strict=True):
        assert isinstance(a, Tokens)
        assert isinstance(b, Tokens)
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.order, b.order)
        assert torch.allclose(a.logp, b.logp, atol=CLOSE)


@pytest.mark.parametrize("case", ["text", "guided drawing", "drawing"])
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(showo: ShowO, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    contexts = mixed(showo, modality)
    together = act(showo, modality, contexts, sampling)
    for row in range(0, len(contexts), 3):
        alone = act(showo, modality, [contexts[row]], sampling, first_seed=row)[0]
        assert torch.equal(alone.ids, together[row].ids)
        assert torch.equal(alone.order, together[row].order)


def test_sampling_leaves_the_global_generator_alone(showo: ShowO) -> None:
    before = torch.random.get_rng_state()
    showo.draw([Context((SHORT,))], DRAWING, [0])
    showo.write([Context((SHORT,))], TEXT, [0])
    assert torch.equal(before, torch.random.get_rng_state())


# -- 8. the reference, adapters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4])
def test_the_reference_is_the_policy_at_step_0_and_stays(make_showo: Callable[..., ShowO], rank: int) -> None:
    policy = make_showo(lora_rank=rank, lora_targets=r"showo\..*\.(q_proj|fc1)")
    contexts = [Context((SHORT,)), Context((LONG,))]
    actions = [*policy.draw(contexts[:1], DRAWING, [0]), *policy.write(contexts[1:], TEXT, [1])]
    policy.keep_reference()
    with torch.no_grad(), policy.reference():
        assert gap(policy(contexts, actions), actions) < CLOSE
    perturb(policy)
    with torch.no_grad():
        assert gap(policy(contexts, actions), actions) > 0.1
        with policy.reference():
            assert gap(policy(contexts, actions), actions) < CLOSE


def test_the_image_tokenizer_is_never_trained(showo: ShowO) -> None:
    trained = [name for name, p in showo.network.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("showo.") for name in trained)


# -- pictures, text, supervision -----------------------------------------------------------------------------------


def test_a_picture_becomes_codes_and_back(showo: ShowO) -> None:
    action = showo.encode([PICTURE])[0]
    pixels = showo.network.image_tokenizer.decode(action.ids[None])[0]
    picture = showo.decode([action])[0]
    assert picture.size == PICTURE.size
    levels = torch.tensor(list(picture.get_flattened_data()), dtype=torch.float32)
    exact = ((pixels + 1) / 2).clamp(0, 1).permute(1, 2, 0).reshape(-1, 3) * 255
    assert ((exact - levels) > -1e-3).all()  # cut off, not rounded
    assert ((exact - levels) < 1 + 1e-3).all()


def test_a_wide_picture_is_cut_to_its_middle(showo: ShowO) -> None:
    from PIL import Image

    wide = Image.new("RGB", (96, 48), "white")
    wide.paste(PICTURE, (24, 0))
    assert torch.equal(showo._codes([wide]), showo._codes([PICTURE]))


def test_an_encoded_picture_is_one_masking_whose_masked_positions_are_scored(showo: ShowO) -> None:
    torch.manual_seed(0)
    actions = showo.encode([PICTURE] * 20)
    shares = [action.mask.float().mean().item() for action in actions]
    assert all(torch.equal(action.ids, actions[0].ids) for action in actions)
    assert len(set(shares)) > 10
    assert min(shares) > 0
    logps = showo([Context((SHORT,))] * 20, actions)
    for logp, action in zip(logps, actions, strict=True):
        assert ((logp < 0) == action.mask).all()
        canvas = action.ids.where(~action.mask, torch.tensor(CODES)) + showo.layout.first_image
        ids = torch.tensor([showo.layout.drawing(showo._ids(SHORT), canvas.tolist())])
        logits = showo.network.logits(ids, showo.layout.drawing_mask(ids))[0, -N - 1 : -1]
        plain = torch.log_softmax(logits[:, showo.layout.first_image : showo.layout.mask], -1)
        plain = plain.gather(1, action.ids[:, None])[:, 0]
        assert (logp - plain)[action.mask].abs().max() < CLOSE


def test_text_becomes_ids_and_back(showo: ShowO) -> None:
    action = showo.encode([SHORT])[0]
    assert action.ids[-1] == showo.layout.eot
    assert showo.decode([action]) == [SHORT]


def test_ids_that_are_no_words_are_not_decoded(showo: ShowO) -> None:
    action = showo.encode([SHORT])[0]
    ids = torch.cat([action.ids[:1], torch.tensor([showo.layout.first_image, showo.layout.soi]), action.ids[1:]])
    assert showo.decode([replace(action, ids=ids)]) == [SHORT]


def test_hidden_states_are_those_of_the_image_and_of_the_text_alone(showo: ShowO) -> None:
    pairs = showo.hidden_states([PICTURE, OTHER], [SHORT, LONG])
    layout = showo.layout
    for (image, words), picture, text in zip(pairs, (PICTURE, OTHER), (SHORT, LONG), strict=True):
        codes = (showo._codes([picture])[0] + layout.first_image).tolist()
        ids = torch.tensor([layout.answering(codes, showo._ids(question(text)))])
        states = showo.network.showo.model(
            input_ids=ids, attention_mask=layout.answering_mask(ids)[:, None], use_cache=False
        ).last_hidden_state[0]
        assert (image - states[2 : 2 + N]).abs().max() < CLOSE
        tail = len(showo._ids(" ASSISTANT:"))
        assert (words - states[-tail - len(words) : -tail]).abs().max() < CLOSE
        decoded = showo.tokenizer.decode(ids[0, -tail - len(words) : -tail])
        assert decoded.strip() == text


# -- refusals ------------------------------------------------------------------------------------------------------


def test_what_the_family_cannot_do_is_refused(showo: ShowO) -> None:
    latents = Latents(torch.zeros(2, 1, 1, 1), torch.zeros(2), torch.zeros(1), torch.ones(1, dtype=torch.bool), TEXT)
    with pytest.raises(ValueError, match="cannot draw from an image"):
        showo.draw([Context((PICTURE, SHORT))], DRAWING, [0])
    with pytest.raises(ValueError, match="not in Latents"):
        showo([Context((SHORT,))], [latents])
    with pytest.raises(ValueError, match="not in Latents"):
        showo.write([Context((latents, SHORT))], TEXT, [0])
    with pytest.raises(ValueError, match="no unconditional prompt"):
        showo.write([Context((SHORT,), unconditional=True)], TEXT, [0])
    with pytest.raises(ValueError, match="can edit"):
        showo.require("edit", "this")


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(showo: ShowO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-showo"
    showo.save(folder)
    return folder


def copied(saved: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "copy"))


def same(policy: ShowO, other: ShowO) -> None:
    context = Context((SHORT,))
    actions = [*policy.draw([context], DRAWING, [0]), *policy.write([Context((PICTURE, LONG))], TEXT, [1])]
    again = [*other.draw([context], DRAWING, [0]), *other.write([Context((PICTURE, LONG))], TEXT, [1])]
    for a, b in zip(actions, again, strict=True):
        assert isinstance(a, Tokens)
        assert isinstance(b, Tokens)
        assert torch.equal(a.ids, b.ids)
        assert torch.allclose(a.logp, b.logp, atol=CLOSE)


def test_a_saved_policy_loads_by_its_model_type(showo: ShowO, saved: Path) -> None:
    loaded = load_policy(PolicyConfig(str(saved)))
    assert isinstance(loaded, ShowO)
    assert loaded.layout == showo.layout
    same(showo, loaded)
    assert all(name.startswith("showo.") for name in load_file(saved / "model.safetensors"))


def test_a_published_folder_loads_by_its_class_name(showo: ShowO, saved: Path, tmp_path: Path) -> None:
    """The published configuration holds no sizes of the decoder, so the toy's are added."""
    folder = copied(saved, tmp_path)
    raw = json.loads((folder / "config.json").read_text())
    del raw["model_type"]
    raw |= {
        "_class_name": "Showo",
        "_diffusers_version": "0.30.1",
        "load_from_showo": True,
        "pretrained_model_path": "",
    }
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "model.safetensors").rename(folder / "pytorch_model.safetensors")
    same(showo, cast(ShowO, load_policy(PolicyConfig(str(folder)))))


def test_adapters_are_merged_on_saving(adapted: ShowO, tmp_path: Path) -> None:
    adapted.save(tmp_path / "merged")
    same(adapted, cast(ShowO, load_policy(PolicyConfig(str(tmp_path / "merged")))))


def test_rotary_frequencies_stay_in_float32_when_weights_do_not(saved: Path) -> None:
    policy = cast(ShowO, load_policy(PolicyConfig(str(saved), dtype="bfloat16")))
    network = policy.network
    assert network.showo.lm_head.weight.dtype == torch.bfloat16
    assert network.showo.model.rotary_emb.inv_freq.dtype == torch.float32
    assert network.image_tokenizer.encoder.conv_in.weight.dtype == torch.float32
    exact = 1 / 10000 ** (torch.arange(0, 8, 2) / 8)
    assert torch.allclose(network.showo.model.rotary_emb.inv_freq, exact, rtol=1e-6)
    policy.draw([Context((SHORT,))], DRAWING, [0])


def test_attention_is_the_one_that_understands_bool_masks(showo: ShowO, saved: Path) -> None:
    loaded = cast(ShowO, load_policy(PolicyConfig(str(saved))))
    for policy in (showo, loaded):
        assert policy.network.showo.config._attn_implementation == "sdpa"
        assert any(name.endswith("layers.0.self_attn.q_layernorm.weight") for name, _ in policy.named_parameters())


def test_every_weight_that_does_not_fit_is_named(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    state = load_file(folder / "model.safetensors")
    del state["showo.model.final_layernorm.bias"]
    state["showo.extra"] = torch.zeros(1)
    state["showo.lm_head.bias"] = torch.zeros(3)
    state["showo.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)  # of older versions, dropped
    save_file(state, folder / "model.safetensors")
    with pytest.raises(ValueError, match="do not make a Show-o") as caught:
        load_policy(PolicyConfig(str(folder)))
    lines = str(caught.value).splitlines()[1:]
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert lines == [
        "  missing: showo.model.final_layernorm.bias",
        "  unexpected: showo.extra",
        f"  misshapen: showo.lm_head.bias is [3], the configuration wants [{rows}]",
    ]


@pytest.mark.parametrize("part", [".", "image_tokenizer"])
def test_pickled_weights_are_refused_with_the_remedy(saved: Path, tmp_path: Path, part: str) -> None:
    folder = copied(saved, tmp_path)
    (folder / part / "model.safetensors").rename(folder / part / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"Pickled weights .* are not read.*\n.*python -c"):
        load_policy(PolicyConfig(str(folder)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("vocab_size", 99, "vocab_size = 99"),
        ("codebook_size", 32, "vocab_size"),
        ("num_vq_tokens", None, "num_vq_tokens"),
        ("w_clip_vit", "maybe", "w_clip_vit"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    saved: Path, tmp_path: Path, field: str, value: Any, message: str
) -> None:
    folder = copied(saved, tmp_path)
    raw = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=message):
        load_policy(PolicyConfig(str(folder)))


def test_a_missing_tokenizer_is_one_error(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json .*microsoft/phi-1_5"):
        load_policy(PolicyConfig(str(folder)))


# -- reading through CLIP --------------------------------------------------------------------------------------------


def test_through_clip_replay_holds_and_the_picture_matters(showo_clip: ShowO) -> None:
    drawing = own_drawing(showo_clip)
    contexts = [Context((PICTURE, SHORT))] * 2 + [Context((drawing, LONG)), Context((LONG,))]
    replies = showo_clip.write(contexts, TEXT, range(4))
    assert gap(showo_clip(contexts, replies), replies) < CLOSE
    assert gap(showo_clip([Context((OTHER, SHORT))], replies[:1]), replies[:1]) > 1e-3


def test_through_clip_everyone_sees_the_image_and_only_it(showo_clip: ShowO) -> None:
    pieces = showo_clip._pieces(Context((PICTURE, SHORT)))
    seen = showo_clip._seen(pieces)
    before = len(cast(list, pieces[0].content))
    assert pieces[0].content[0] == showo_clip.layout.special("<|mmu|>")  # type: ignore[index]
    assert seen.nonzero().flatten().tolist() == list(range(before, before + 9))


def test_a_policy_that_reads_through_clip_is_saved_whole(showo_clip: ShowO, tmp_path: Path) -> None:
    showo_clip.save(tmp_path / "clip")
    same(showo_clip, cast(ShowO, load_policy(PolicyConfig(str(tmp_path / "clip")))))


# -- scoring a part of the rounds ------------------------------------------------------------------------------------


def test_a_part_of_the_rounds_has_the_gradient_of_all_on_average(showo: ShowO) -> None:
    """Exactly: the mean over every choice of one round from each run."""
    context, drawing = Context((SHORT,)), own_drawing(showo)
    expected = gradients(showo, showo([context], [drawing]))
    choices: dict[tuple[bool, ...], Tensor] = {}
    for seed in range(200):
        wanted, weight = selection.some_rounds(drawing.order, drawing.mask, 2, seed)
        assert len(drawing.order[wanted].unique()) == 2
        choices[tuple(wanted.tolist())] = weight
    assert len(choices) == 9  # 6 rounds in 2 runs of 3
    mean: dict[str, Tensor] = {}
    for wanted, weight in choices.items():
        logp = showo([context], [replace(drawing, mask=torch.tensor(wanted))])[0]
        for name, gradient in gradients(showo, [logp * weight]).items():
            mean[name] = mean.get(name, torch.zeros_like(gradient)) + gradient / len(choices)
    assert_same_gradients(mean, expected)


def test_a_part_of_the_rounds_depends_on_the_drawing_and_the_seed_alone(showo: ShowO) -> None:
    drawings = showo.draw([Context((SHORT,))] * 8, DRAWING, range(8))
    two = ScoringConfig(rounds=2)
    together = showo.select(drawings, two, seed=3)
    alone = [showo.select([d], two, seed=3)[0] for d in drawings]
    other = showo.select(drawings, two, seed=4)
    masks = [[s.action.mask.tolist() for s in scored] for scored in (together, alone, other)]
    assert masks[0] == masks[1] != masks[2]


def test_all_rounds_and_replies_are_left_as_they_are(showo: ShowO) -> None:
    actions = [own_drawing(showo), own_reply(showo)]
    for rounds in (0, 6, 100):
        for scored, before in zip(showo.select(actions, ScoringConfig(rounds=rounds), seed=0), actions, strict=True):
            assert torch.equal(scored.action.mask, before.mask)
            assert torch.equal(scored.share, before.mask.float())
            assert scored.old_logp is before.logp
    assert showo.select(actions, ScoringConfig(rounds=1), seed=0)[1].action.mask.all()
