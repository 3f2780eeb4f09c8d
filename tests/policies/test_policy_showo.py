"""What is Show-o's own beside the contract: rounds, canvases, its sequences, and checkpoints as they are published."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.speed import showo_published as published
from tests.policies.contract import (
    CLOSE,
    LONG,
    OTHER,
    PICTURE,
    SHORT,
    TEXT,
    assert_same_gradients,
    assert_same_scores,
    gap,
    gradients,
    groups,
    same_action,
)
from tests.policies.damage import change_json, change_weights
from unison.config import PolicyConfig, ScoringConfig
from unison.policies import load_policy
from unison.policies.decisions import selection
from unison.policies.decoding import masked
from unison.policies.showo.policy import ShowO
from unison.types import Context, Sampling, Tokens

DRAWING = Sampling(guidance=3.0, rounds=6)
CONTEXTS = [Context((SHORT,)), Context((LONG,))]
N, CODES = 36, 64


@pytest.fixture(scope="module")
def drawing(showo: ShowO) -> Tokens:
    return cast(Tokens, showo.draw(CONTEXTS[:1], DRAWING, [77])[0])


# -- rounds --------------------------------------------------------------------------------------------------------


def test_the_round_of_a_decision_matters(showo: ShowO, drawing: Tokens) -> None:
    """Replay reads the canvas of each round, not one canvas for all."""
    shuffled = replace(drawing, order=drawing.order.flip(0))
    assert gap(showo(CONTEXTS[:1], [shuffled]), [drawing]) > 0.01


@pytest.mark.parametrize("rounds", [1, 6, 50])
def test_a_drawing_is_decided_by_the_schedule(showo: ShowO, rounds: int) -> None:
    drawing = cast(Tokens, showo.draw(CONTEXTS[:1], Sampling(rounds=rounds), [0])[0])
    after = [int((drawing.order > t).sum()) for t in range(rounds)]
    planned, left = [], N
    for count in masked.still_masked(N, rounds)[:-1]:
        left = max(1, min(left - 1, count))
        planned.append(left)
    assert after == [*planned, 0]
    assert drawing.mask.all()
    assert ((drawing.ids >= 0) & (drawing.ids < CODES)).all()


def test_only_the_decisions_of_the_mask_are_scored(
    showo: ShowO, drawing: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A round that is not wanted is not computed, so a subset of rounds costs its share."""
    full = showo(CONTEXTS[:1], [drawing])[0]
    wanted = (drawing.order == 2) | (drawing.order == 5)
    seen: list[int] = []
    states = masked.Reader.states
    monkeypatch.setattr(
        masked.Reader, "states", lambda self, canvas, rows: seen.append(len(canvas)) or states(self, canvas, rows)
    )
    part = showo(CONTEXTS[:1], [replace(drawing, mask=wanted)])[0]
    assert seen == [2]
    assert (part[~wanted] == 0).all()
    assert (part[wanted] - full[wanted]).abs().max() < CLOSE


# -- against a plain forward pass ----------------------------------------------------------------------------------


def plain_drawing_logp(policy: ShowO, text: str, drawing: Tokens) -> Tensor:
    """Whole padded sequences, every round, both branches, guidance in Show-o's own form."""
    words, g, logp = policy._ids(text), drawing.sampling.guidance - 1, torch.zeros(N)
    for t in drawing.order.unique():
        c, u = published.canvas_logits(policy, [words, []], drawing.ids.masked_fill(drawing.order >= t, CODES))
        scores = torch.log_softmax(((1 + g) * c - g * u) / drawing.sampling.temperature, -1)
        logp = torch.where(drawing.order == t, scores.gather(1, drawing.ids[:, None])[:, 0], logp)
    return logp


@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 1.0), (4.0, 1.0), (2.0, 0.7)])
def test_drawing_scoring_equals_a_plain_forward_pass(showo: ShowO, guidance: float, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, guidance=guidance, rounds=5)
    drawings = cast("list[Tokens]", showo.draw(CONTEXTS, sampling, [0, 1]))
    ours = showo(CONTEXTS, drawings)
    plain = [plain_drawing_logp(showo, text, d) for text, d in zip((SHORT, LONG), drawings, strict=True)]
    assert_same_scores(showo, ours, plain)


def plain_reply_logp(policy: ShowO, codes: Tensor, text: str, reply: Tokens) -> Tensor:
    """The whole answering sequence at once."""
    layout = policy.layout
    prefix = published.answering(layout, (codes + layout.first_image).tolist(), policy._ids(policy.question(text)))
    ids = torch.tensor([prefix + reply.ids.tolist()])
    logits = published.logits(policy.network, ids, published.answering_mask(layout, ids))[0, len(prefix) - 1 : -1]
    return torch.log_softmax(logits / reply.sampling.temperature, -1).gather(1, reply.ids[:, None])[:, 0]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_reply_scoring_equals_a_plain_forward_pass(showo: ShowO, drawing: Tokens, temperature: float) -> None:
    """On a picture, which becomes codes, and on a drawing, which is codes."""
    contexts = [Context((PICTURE, SHORT)), Context((drawing, LONG))]
    replies = showo.write(contexts, Sampling(temperature=temperature, max_tokens=12), [0, 1])
    ours = showo(contexts, replies)
    codes = showo._codes([PICTURE])[0], drawing.ids
    plain = [plain_reply_logp(showo, *x) for x in zip(codes, (SHORT, LONG), replies, strict=True)]
    assert_same_scores(showo, ours, plain)


def test_a_question_without_an_image_is_plain_text(showo: ShowO) -> None:
    pieces = showo._pieces(Context((SHORT,)))
    assert [piece.open for piece in pieces] == [False]
    assert pieces[0].content == [showo.layout.eot, *showo._ids(f"USER: \n{SHORT} ASSISTANT:")]


@pytest.mark.parametrize("picture", [(), (PICTURE,)])
def test_through_clip_a_question_has_no_line_break_after_the_users_name(
    showo_clip: ShowO, picture: tuple[Image.Image, ...]
) -> None:
    asked = showo_clip._pieces(Context((*picture, SHORT)))[-1].content
    ids = showo_clip.tokenizer.encode(f"USER: {SHORT} ASSISTANT:", add_special_tokens=False)
    assert asked == [showo_clip.layout.eoi if picture else showo_clip.layout.eot, *ids]


def test_through_clip_the_texts_own_states_are_found(showo_clip: ShowO) -> None:
    ((_, words),) = showo_clip.hidden_states([PICTURE], [SHORT])
    assert len(words) == len(showo_clip.tokenizer.encode(f" {SHORT}", add_special_tokens=False))


# -- chunks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [1, 3 * N])
def test_scoring_in_chunks_changes_neither_values_nor_gradients(
    showo: ShowO, monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    contexts = groups(CONTEXTS)
    drawings = showo.draw(contexts, DRAWING, range(4))
    whole = showo(contexts, drawings)
    monkeypatch.setattr(masked, "POSITIONS_PER_CHUNK", positions)
    assert_same_scores(showo, showo(contexts, drawings), whole)


@pytest.mark.parametrize("positions", [1, 5 * N])
def test_drawing_in_passes_of_a_few_canvases_changes_no_drawing(
    showo: ShowO, monkeypatch: pytest.MonkeyPatch, positions: int
) -> None:
    contexts = groups(CONTEXTS, 3)
    whole = showo.draw(contexts, DRAWING, range(6))
    monkeypatch.setattr(masked, "POSITIONS_PER_CPU_PASS", positions)
    assert all(map(same_action, whole, showo.draw(contexts, DRAWING, range(6))))


def test_the_image_tokenizer_is_never_trained(showo: ShowO) -> None:
    trained = [name for name, p in showo.network.named_parameters() if p.requires_grad]
    assert trained
    assert all(name.startswith("showo.") for name in trained)


# -- pictures, text, supervision -----------------------------------------------------------------------------------


def test_a_picture_becomes_codes_and_back(showo: ShowO) -> None:
    action = cast(Tokens, showo.encode([PICTURE])[0])
    pixels = showo.network.image_tokenizer.decode(action.ids[None])[0]
    picture = showo.decode([action])[0]
    assert picture.size == PICTURE.size
    levels = torch.tensor(list(picture.get_flattened_data()), dtype=torch.float32)
    exact = ((pixels + 1) / 2).clamp(0, 1).permute(1, 2, 0).reshape(-1, 3) * 255
    assert ((exact - levels) > -1e-3).all()  # cut off, not rounded
    assert ((exact - levels) < 1 + 1e-3).all()


def test_a_wide_picture_is_cut_to_its_middle(showo: ShowO) -> None:
    wide = Image.new("RGB", (96, 48), "white")
    wide.paste(PICTURE, (24, 0))
    assert torch.equal(showo._codes([wide]), showo._codes([PICTURE]))


def test_an_encoded_picture_is_one_masking_whose_masked_positions_are_scored(showo: ShowO) -> None:
    torch.manual_seed(0)
    actions = cast("list[Tokens]", showo.encode([PICTURE] * 20))
    shares = [action.mask.float().mean().item() for action in actions]
    assert all(torch.equal(action.ids, actions[0].ids) for action in actions)
    assert len(set(shares)) > 10
    assert min(shares) > 0
    logps = showo([Context((SHORT,))] * 20, actions)
    for logp, action in zip(logps, actions, strict=True):
        assert ((logp < 0) == action.mask).all()
        canvas = action.ids.where(~action.mask, torch.tensor(CODES))
        logits = published.canvas_logits(showo, [showo._ids(SHORT)], canvas)[0]
        plain = torch.log_softmax(logits, -1).gather(1, action.ids[:, None])[:, 0]
        assert (logp - plain)[action.mask].abs().max() < CLOSE


def test_ids_that_are_no_words_are_not_decoded(showo: ShowO) -> None:
    action = cast(Tokens, showo.encode([SHORT])[0])
    ids = torch.cat([action.ids[:1], torch.tensor([showo.layout.first_image, showo.layout.soi]), action.ids[1:]])
    assert showo.decode([replace(action, ids=ids)]) == [SHORT]


def test_hidden_states_are_those_of_the_image_and_of_the_text_alone(showo: ShowO) -> None:
    pairs = showo.hidden_states([PICTURE, OTHER], [SHORT, LONG])
    layout = showo.layout
    for (image, words), picture, text in zip(pairs, (PICTURE, OTHER), (SHORT, LONG), strict=True):
        codes = (showo._codes([picture])[0] + layout.first_image).tolist()
        ids = torch.tensor([published.answering(layout, codes, showo._ids(showo.question(text)))])
        mask = published.answering_mask(layout, ids)[:, None]
        states = showo.decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[0]
        assert (image - states[2 : 2 + N]).abs().max() < CLOSE
        tail = len(showo._ids(" ASSISTANT:"))
        assert (words - states[-tail - len(words) : -tail]).abs().max() < CLOSE
        decoded = showo.tokenizer.decode(ids[0, -tail - len(words) : -tail])
        assert decoded.strip() == text


# -- checkpoints ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(showo: ShowO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-showo"
    showo.save(folder)
    return folder


def copied(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_a_saved_policy_loads_by_its_model_type(showo: ShowO, saved: Path) -> None:
    loaded = load_policy(PolicyConfig(str(saved)))
    assert isinstance(loaded, ShowO)
    assert loaded.layout == showo.layout
    assert all(name.startswith("showo.") for name in load_file(saved / "model.safetensors"))


def test_a_published_folder_loads_by_its_class_name(showo: ShowO, saved: Path, tmp_path: Path) -> None:
    """The published configuration holds no sizes of the decoder, so the toy's are added."""
    folder = copied(saved, tmp_path)
    published = {"_class_name": "Showo", "_diffusers_version": "0.30.1", "load_from_showo": True}
    published["pretrained_model_path"] = ""
    change_json("config.json", lambda raw: (raw.update(published), raw.pop("model_type")))(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.safetensors")
    loaded = load_policy(PolicyConfig(str(folder)))
    drawings, replies = (
        [made for policy in (showo, loaded) for made in sample(policy)]
        for sample in (
            lambda policy: policy.draw(CONTEXTS[:1], DRAWING, [0]),
            lambda policy: policy.write([Context((PICTURE, LONG))], TEXT, [1]),
        )
    )
    assert same_action(*drawings)
    assert same_action(*replies)


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
    dropped = {"showo.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}  # of older versions
    more = {"showo.extra": torch.zeros(1), "showo.lm_head.bias": torch.zeros(3)} | dropped
    change_weights(lambda state: (state.update(more), state.pop("showo.model.final_layernorm.bias")))(folder)
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
    change_json("config.json", lambda raw: raw.update({field: value}))(folder)
    with pytest.raises(ValueError, match=message):
        load_policy(PolicyConfig(str(folder)))


def test_a_missing_tokenizer_is_one_error(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json .*microsoft/phi-1_5"):
        load_policy(PolicyConfig(str(folder)))


# -- reading through CLIP --------------------------------------------------------------------------------------------


def test_through_clip_everyone_sees_the_image_and_only_it(showo_clip: ShowO) -> None:
    pieces = showo_clip._pieces(Context((PICTURE, SHORT)))
    seen = showo_clip._seen(pieces)
    before = len(cast(list, pieces[0].content))
    assert pieces[0].content[0] == showo_clip.layout.special("<|mmu|>")  # type: ignore[index]
    assert seen.nonzero().flatten().tolist() == list(range(before, before + 9))


# -- scoring a part of the rounds ------------------------------------------------------------------------------------


def test_a_part_of_the_rounds_has_the_gradient_of_all_on_average(showo: ShowO, drawing: Tokens) -> None:
    """Exactly: the mean over every choice of one round from each run."""
    expected = gradients(showo, showo(CONTEXTS[:1], [drawing]))
    choices: dict[tuple[bool, ...], Tensor] = {}
    for seed in range(200):
        wanted, weight = selection.some_rounds(drawing.order, drawing.mask, 2, seed)
        assert len(drawing.order[wanted].unique()) == 2
        choices[tuple(wanted.tolist())] = weight
    assert len(choices) == 9  # 6 rounds in 2 runs of 3
    mean: dict[str, Tensor] = {}
    for wanted, weight in choices.items():
        logp = showo(CONTEXTS[:1], [replace(drawing, mask=torch.tensor(wanted))])[0]
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


def test_all_rounds_and_replies_are_left_as_they_are(showo: ShowO, drawing: Tokens) -> None:
    actions = [drawing, *showo.write(CONTEXTS[:1], Sampling(max_tokens=6), [78])]
    for rounds in (0, 6, 100):
        selected = showo.select(actions, ScoringConfig(rounds=rounds), seed=0)
        for scored, before in zip(selected, actions, strict=True):
            assert torch.equal(scored.action.mask, before.mask)
            assert torch.equal(scored.share, before.mask.float())
            assert scored.old_logp is before.logp
    assert showo.select(actions, ScoringConfig(rounds=1), seed=0)[1].action.mask.all()
