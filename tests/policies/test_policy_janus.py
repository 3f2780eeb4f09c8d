"""The Janus policy, on the real class at toy size: what is sampled is what is scored, whatever the batch."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor

from unison.config import PolicyConfig
from unison.policies import load_policy
from unison.policies.janus.policy import Janus
from unison.types import Action, Context, Latents, Sampling, Tokens
from unison.world.render import render
from unison.world.scene import sample

PICTURE, OTHER = (render(sample(random.Random(i), "position", "train")[1]) for i in range(2))
SHORT, LONG = "a red circle", "two blue squares and a black diamond left of it"
TEXT = Sampling(max_tokens=12)
DRAWING = Sampling(guidance=5.0)
CLOSE = 1e-4

SAMPLINGS = {
    "text": ("text", TEXT),
    "cool text": ("text", Sampling(temperature=0.7, max_tokens=12)),
    "drawing": ("image", Sampling()),
    "guided drawing": ("image", Sampling(guidance=2.0)),
    "strongly guided drawing": ("image", DRAWING),
    "cool guided drawing": ("image", Sampling(temperature=0.7, guidance=5.0)),
    "guided drawing, conditional score": ("image", Sampling(guidance=5.0, score_conditional=True)),
}


def act(
    policy: Janus, modality: str, contexts: Sequence[Context], sampling: Sampling, first_seed: int = 0
) -> list[Any]:
    seeds = range(first_seed, first_seed + len(contexts))
    return list((policy.write if modality == "text" else policy.draw)(contexts, sampling, seeds))


def own_drawing(policy: Janus) -> Action:
    return policy.draw([Context((SHORT,))], DRAWING, [77])[0]


def own_reply(policy: Janus) -> Tokens:
    return policy.write([Context((SHORT,))], Sampling(max_tokens=6), [78])[0]


BATCHES: dict[str, Callable[[Janus], list[Context]]] = {
    "one row": lambda _: [Context((SHORT,))],
    "prompts of one length": lambda _: [Context(("a red circle",)), Context(("a red square",))],
    "prompts of two lengths": lambda _: [Context((SHORT,)), Context((LONG,))],
    "pictures": lambda _: [Context((PICTURE, SHORT)), Context((SHORT, PICTURE, LONG, OTHER)), Context((LONG,))],
    "an own drawing": lambda policy: [Context((SHORT, own_drawing(policy), LONG)), Context((SHORT,))],
    "an own reply": lambda policy: [Context((SHORT, own_reply(policy), LONG)), Context((LONG,))],
}


def groups(contexts: Sequence[Context], size: int = 2) -> list[Context]:
    return [context for context in contexts for _ in range(size)]


def mixed(policy: Janus) -> list[Context]:
    """Groups of every kind of context at once."""
    return groups([context for make in BATCHES.values() for context in make(policy)])


def apart(contexts: Sequence[Context]) -> list[Context]:
    """The same contexts, but siblings no longer share an object."""
    return [Context(context.parts) for context in contexts]


def gap(logps: Sequence[Tensor], actions: Sequence[Action]) -> float:
    """Largest difference between replayed and sampled log-probabilities."""
    return max((logp - action.logp).abs().max().item() for logp, action in zip(logps, actions, strict=True))


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two passes gave the same numbers, up to the rounding of sums taken in another order."""
    return torch.allclose(a, b, rtol=0, atol=1e-5)


def same_weights(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def perturb(policy: Janus, scale: float = 0.1) -> None:
    """Moves every trained weight, as training would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)


@pytest.fixture(scope="module")
def adapted(make_policy: Callable[..., Janus]) -> Janus:
    """A policy with adapters that are not zero."""
    policy = make_policy(lora_rank=4)
    perturb(policy)
    return policy


def gradients(policy: Janus, logps: Sequence[Tensor]) -> dict[str, Tensor]:
    """Gradient of a weighted sum of log-probabilities, different weights at every position."""
    total = torch.stack([(logp * torch.linspace(-1, 1, len(logp))).sum() for logp in logps]).sum()
    return gradients_of(policy, total)


def gradients_of(policy: Janus, loss: Tensor) -> dict[str, Tensor]:
    trained = {name: p for name, p in policy.network.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(trained, found, strict=True) if g is not None}


def assert_same_gradients(one: dict[str, Tensor], two: dict[str, Tensor]) -> None:
    assert one.keys() == two.keys()
    largest = max(g.abs().max() for g in two.values())
    assert largest > 0
    for name in two:
        difference = (one[name] - two[name]).abs().max()
        assert difference <= CLOSE * largest, f"{name}: {difference} of {largest}"


# -- 1. replayed log-probability equals the sampled one ------------------------------------------------------------


@pytest.mark.parametrize("with_adapters", [False, True], ids=["weights", "adapters"])
@pytest.mark.parametrize("case", SAMPLINGS)
def test_replayed_log_probability_equals_the_sampled_one(
    policy: Janus, adapted: Janus, case: str, with_adapters: bool
) -> None:
    chosen = adapted if with_adapters else policy
    modality, sampling = SAMPLINGS[case]
    contexts = mixed(chosen)
    actions = act(chosen, modality, contexts, sampling)
    with torch.no_grad():
        assert gap(chosen(contexts, actions), actions) < CLOSE


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("batch", BATCHES)
def test_replay_holds_for_each_kind_of_context(policy: Janus, batch: str, modality: str) -> None:
    contexts = groups(BATCHES[batch](policy))
    actions = act(policy, modality, contexts, TEXT if modality == "text" else DRAWING)
    with torch.no_grad():
        assert gap(policy(contexts, actions), actions) < CLOSE


def test_samples_are_neither_constant_nor_uniform(policy: Janus) -> None:
    """Else the tests above would hold for trivial reasons."""
    contexts = [Context((SHORT,))] * 6
    for actions, size in (
        (policy.write(contexts, TEXT, range(6)), 512),
        (policy.draw(contexts, DRAWING, range(6)), 512),
    ):
        surprise = -torch.cat([action.logp for action in actions]).mean()
        assert 0.05 < surprise < 0.8 * torch.log(torch.tensor(size))
        assert len({tuple(action.ids.tolist()) for action in actions if isinstance(action, Tokens)}) == 6


def test_adapters_change_the_policy(policy: Janus, adapted: Janus) -> None:
    contexts = [Context((SHORT,))]
    actions = policy.draw(contexts, DRAWING, [0])
    assert gap(adapted(contexts, actions), actions) > 0.1


def test_every_part_of_a_context_matters(policy: Janus) -> None:
    reply = policy.write([Context((PICTURE, SHORT))], TEXT, [0])
    other = Context((OTHER, SHORT)), Context((PICTURE, LONG)), Context((PICTURE,)), Context((SHORT, PICTURE))
    for context in other:
        assert gap(policy([context], reply), reply) > 0.01


def test_scoring_the_conditional_branch_differs_from_scoring_the_guided_one(policy: Janus) -> None:
    contexts = [Context((SHORT,))]
    guided = policy.draw(contexts, DRAWING, [0])[0]
    conditional = policy.draw(contexts, Sampling(guidance=5.0, score_conditional=True), [0])[0]
    assert isinstance(guided, Tokens)
    assert isinstance(conditional, Tokens)
    assert torch.equal(guided.ids, conditional.ids)  # the sample is guided all the same
    assert (guided.logp - conditional.logp).abs().max() > 0.1


def test_actions_of_both_modalities_are_scored_in_the_given_order(policy: Janus) -> None:
    one, two = Context((SHORT,)), Context((PICTURE, LONG))
    contexts = [one, two, one, two, one]
    actions = [
        *policy.draw([one], DRAWING, [1]),
        *policy.write([two], TEXT, [2]),
        *policy.write([one], TEXT, [3]),
        *policy.draw([two], Sampling(), [4]),
        *policy.draw([one], DRAWING, [5]),
    ]
    assert gap(policy(contexts, actions), actions) < CLOSE


def test_an_action_carries_what_replay_needs(policy: Janus) -> None:
    drawing, reply = own_drawing(policy), own_reply(policy)
    for action, length in ((drawing, 36), (reply, 6)):
        assert isinstance(action, Tokens)
        assert len(action) == len(action.logp) == len(action.mask) <= length
        assert action.order.tolist() == list(range(len(action)))
        assert action.ids.dtype == torch.int64
        assert action.logp.dtype == torch.float32
        assert not action.logp.requires_grad
        assert action.mask.all()
    assert len(drawing) == 36
    assert drawing.sampling == DRAWING


def test_a_reply_ends_with_its_first_end_of_sentence(make_policy: Callable[..., Janus]) -> None:
    policy = make_policy()
    stop = policy.tokenizer.eos_token_id
    with torch.no_grad():
        policy.network.lm_head.weight[stop] *= 3  # it comes up often, at different places
    contexts = [Context((SHORT,))] * 12
    replies = policy.write(contexts, Sampling(max_tokens=20), range(12))
    lengths = {len(reply) for reply in replies}
    assert len(lengths) > 2, lengths
    for reply in replies:
        assert stop not in reply.ids[:-1]
        assert len(reply) == 20 or reply.ids[-1] == stop
    assert gap(policy(contexts, replies), replies) < CLOSE


# -- 6. shared prefixes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["text", "drawing", "cool guided drawing"])
def test_a_shared_prefix_scores_as_one_row_per_sample(policy: Janus, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    contexts = groups([Context((PICTURE, SHORT)), Context((LONG,))], 3)
    actions = act(policy, modality, contexts, sampling)
    shared = policy(contexts, actions)
    one_by_one = [policy([Context(c.parts)], [a])[0] for c, a in zip(contexts, actions, strict=True)]
    not_shared = policy(apart(contexts), actions)
    for rows in (one_by_one, not_shared):
        for a, b in zip(shared, rows, strict=True):
            assert (a - b).abs().max() < CLOSE
        assert_same_gradients(gradients(policy, shared), gradients(policy, rows))


def test_shared_contexts_are_computed_once(policy: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    features = policy._image_features
    monkeypatch.setattr(policy, "_image_features", lambda images: seen.append(len(images)) or features(images))
    contexts = groups([Context((PICTURE, SHORT)), Context((OTHER, SHORT))], 4)
    policy(contexts, policy.write(contexts, TEXT, range(8)))
    assert seen == [2, 2]


def plain_text_logp(policy: Janus, inputs: dict[str, Tensor], reply: Tokens) -> Tensor:
    """`transformers`' own forward over prompt and reply, full logits."""
    ids = torch.cat([inputs["input_ids"], reply.ids[None]], 1)
    logits = policy.network(input_ids=ids, pixel_values=inputs.get("pixel_values")).logits[0, -len(reply) - 1 : -1]
    logp = torch.log_softmax(logits / reply.sampling.temperature, -1)
    return logp[torch.arange(len(reply)), reply.ids]


def plain_drawing_logp(policy: Janus, prompt: Tensor, drawing: Tokens) -> Tensor:
    """A full-sequence forward of both branches, guidance by hand."""
    network, tokenizer = policy.network, policy.tokenizer
    kept = (prompt == tokenizer.bos_token_id) | (prompt == tokenizer.boi_token_id)
    logits = []
    for ids in (prompt, prompt.where(kept, tokenizer.pad_token_id)):
        words = network.get_input_embeddings()(ids)
        marks = network.prepare_embeddings_for_image_generation(drawing.ids[None])
        states = network.model.language_model(inputs_embeds=torch.cat([words, marks], 1)).last_hidden_state
        logits.append(network.model.generation_head(states[0, -len(drawing) - 1 : -1]))
    c, u = logits
    guided = u + drawing.sampling.guidance * (c - u)
    logp = torch.log_softmax(guided / drawing.sampling.temperature, -1)
    return logp[torch.arange(len(drawing)), drawing.ids]


def processed(policy: Janus, texts: Sequence[str], images: Sequence[Image.Image] = (), mode: str = "text") -> Any:
    chats = [f"<|User|>: {text}\n\n<|Assistant|>:" for text in texts]
    pictures = {"images": list(images)} if images else {}
    processor: Any = policy.processor
    return processor(text=chats, generation_mode=mode, padding=True, return_tensors="pt", **pictures)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_text_scoring_equals_a_plain_forward_pass(policy: Janus, temperature: float) -> None:
    contexts = [Context((PICTURE, SHORT)), Context((LONG,))]
    inputs = [
        processed(policy, [f"<image_placeholder>\n{SHORT}"], [PICTURE]),
        processed(policy, [LONG]),
    ]
    replies = policy.write(contexts, Sampling(temperature=temperature, max_tokens=12), [0, 1])
    ours = policy(contexts, replies)
    plain = [plain_text_logp(policy, x, reply) for x, reply in zip(inputs, replies, strict=True)]
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).abs().max() < CLOSE
    assert_same_gradients(gradients(policy, ours), gradients(policy, plain))


@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 1.0), (5.0, 1.0), (2.0, 0.7)])
def test_drawing_scoring_equals_a_plain_forward_pass(policy: Janus, guidance: float, temperature: float) -> None:
    contexts = [Context((SHORT,)), Context((LONG,))]
    drawings = policy.draw(contexts, Sampling(temperature=temperature, guidance=guidance), [0, 1])
    ours = policy(contexts, drawings)
    plain = []
    for text, drawing in zip((SHORT, LONG), drawings, strict=True):
        assert isinstance(drawing, Tokens)
        plain.append(plain_drawing_logp(policy, processed(policy, [text], mode="image")["input_ids"], drawing))
    for a, b in zip(ours, plain, strict=True):
        assert (a - b).abs().max() < CLOSE
    assert_same_gradients(gradients(policy, ours), gradients(policy, plain))


# -- 7. no cross-talk ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["text", "strongly guided drawing"])
def test_swapping_two_items_swaps_their_samples(policy: Janus, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    one, two = Context((PICTURE, SHORT)), Context((LONG,))
    sample_all = policy.write if modality == "text" else policy.draw
    there = sample_all([one, one, two, two], sampling, [1, 2, 3, 4])
    back = sample_all([two, two, one, one], sampling, [3, 4, 1, 2])
    for a, b in zip([*there[2:], *there[:2]], back, strict=True):
        assert isinstance(a, Tokens)
        assert isinstance(b, Tokens)
        assert torch.equal(a.ids, b.ids)
        assert torch.allclose(a.logp, b.logp, atol=CLOSE)


@pytest.mark.parametrize("case", ["text", "strongly guided drawing", "drawing"])
def test_a_sample_does_not_depend_on_the_rest_of_the_batch(policy: Janus, case: str) -> None:
    modality, sampling = SAMPLINGS[case]
    contexts = mixed(policy)
    together = act(policy, modality, contexts, sampling)
    for row in range(0, len(contexts), 3):
        alone = act(policy, modality, [contexts[row]], sampling, first_seed=row)[0]
        assert torch.equal(alone.ids, together[row].ids)
        assert torch.allclose(alone.logp, together[row].logp, atol=CLOSE)


def test_sampling_leaves_the_global_generator_alone(policy: Janus) -> None:
    before = torch.random.get_rng_state()
    policy.draw([Context((SHORT,))], DRAWING, [0])
    policy.write([Context((SHORT,))], TEXT, [0])
    assert torch.equal(before, torch.random.get_rng_state())


# -- as transformers does it --------------------------------------------------------------------------------------


def prefix(policy: Janus, context: Context, modality: str) -> list[Any]:
    """Ids and images of a prefix, ids one by one."""
    pieces = policy._pieces(context, modality)  # type: ignore[arg-type]
    return [x for piece in pieces for x in (piece if isinstance(piece, list) else [piece])]


def test_a_prompt_becomes_the_processors_ids(policy: Janus) -> None:
    image_id = policy.tokenizer.image_token_id
    with_image = processed(policy, [f"<image_placeholder>\n{SHORT}"], [PICTURE])["input_ids"][0].tolist()
    ours = prefix(policy, Context((PICTURE, SHORT)), "text")
    expanded = [i for x in ours for i in ([x] if isinstance(x, int) else [image_id] * 36)]
    assert expanded == with_image
    assert prefix(policy, Context((SHORT,)), "text") == processed(policy, [SHORT])["input_ids"][0].tolist()
    drawing = processed(policy, [LONG], mode="image")["input_ids"][0].tolist()
    assert prefix(policy, Context((LONG,)), "image") == drawing
    assert drawing[0] == policy.tokenizer.bos_token_id
    assert drawing[-1] == policy.tokenizer.boi_token_id


def test_the_system_prompt_that_converted_checkpoints_turn_on_is_off(tiny_janus: Any) -> None:
    network, processor = tiny_janus
    processor.use_default_system_prompt = True
    policy = Janus(network, processor, PolicyConfig("tiny"))
    assert policy.processor.use_default_system_prompt is False
    assert "helpful" not in policy.chat(Context((SHORT,)))


def test_a_prefix_is_embedded_as_transformers_embeds_it(policy: Janus) -> None:
    inputs = processed(policy, [f"<image_placeholder>\n{SHORT}"], [PICTURE])
    ours = policy._embed([policy._pieces(Context((PICTURE, SHORT)), "text")])[0]
    seen: list[Tensor] = []
    hook = policy.network.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    policy.network(**inputs)
    hook.remove()
    assert torch.allclose(ours, seen[0][0], atol=1e-5)


def test_the_unconditional_row_keeps_only_the_first_token_and_begin_of_image(policy: Janus) -> None:
    length = len(prefix(policy, Context((LONG,)), "image"))
    hidden = prefix(policy, Context((LONG,), unconditional=True), "image")
    tokenizer = policy.tokenizer
    assert hidden == [tokenizer.bos_token_id, *[tokenizer.pad_token_id] * (length - 2), tokenizer.boi_token_id]


COLD = 1e-4  # so cold that sampling is greedy


@pytest.mark.parametrize("guidance", [2.0, 5.0])
def test_cold_drawings_equal_those_of_transformers(policy: Janus, guidance: float) -> None:
    """In one left-padded batch of two prompts, which is where padding and guidance meet."""
    inputs = processed(policy, [SHORT, LONG], mode="image")
    theirs = policy.network.generate(
        **inputs, generation_mode="image", do_sample=False, guidance_scale=guidance, max_length=128
    )
    ours = policy.draw([Context((SHORT,)), Context((LONG,))], Sampling(temperature=COLD, guidance=guidance), [0, 1])
    for a, b in zip(ours, theirs, strict=True):
        assert isinstance(a, Tokens)
        assert torch.equal(a.ids, b)


def test_cold_replies_equal_those_of_transformers(policy: Janus) -> None:
    inputs = processed(policy, [f"<image_placeholder>\n{SHORT}"], [PICTURE])
    theirs = policy.network.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
    ours = policy.write([Context((PICTURE, SHORT))], Sampling(temperature=COLD, max_tokens=12), [0])[0]
    assert torch.equal(ours.ids, theirs)


def test_an_earlier_reply_goes_on_where_it_was_written(policy: Janus) -> None:
    """The ids under which it was sampled, then its own ids, never decoded and encoded again."""
    reply = own_reply(policy)
    before = prefix(policy, Context((SHORT,)), "text")
    after = prefix(policy, Context((SHORT, reply, LONG)), "text")
    seen = [*before, *(i for i in reply.ids.tolist() if i != policy.tokenizer.eos_token_id)]
    assert after[: len(seen)] == seen
    assert after[len(seen)] == policy.tokenizer.eos_token_id


def test_an_own_drawing_is_read_without_rounding(policy: Janus) -> None:
    drawing = own_drawing(policy)
    assert isinstance(drawing, Tokens)
    pixels = policy._pixels(drawing)
    rounded = policy._pixels(policy.decode([drawing])[0])
    assert pixels.shape == rounded.shape
    assert (pixels.clamp(-1, 1) - rounded).abs().max() < 2.1 / 255


# -- text and pictures --------------------------------------------------------------------------------------------


def test_text_survives_encoding_and_decoding(policy: Janus) -> None:
    texts = ["<think> red circle top left </think><answer> B </answer>", "four", "Ünïcode, too!"]
    assert policy.decode(policy.encode(texts)) == texts


def test_an_encoded_text_ends_the_turn(policy: Janus) -> None:
    ids = policy.encode(["four"])[0].ids
    assert ids[-1] == policy.tokenizer.eos_token_id


def test_decoding_keeps_the_order_of_texts_and_pictures(policy: Janus) -> None:
    drawing, reply = own_drawing(policy), policy.encode(["four"])[0]
    first, text, second = policy.decode([drawing, reply, drawing])
    assert text == "four"
    assert first.size == second.size == (48, 48)
    assert first.mode == "RGB"
    assert first.tobytes() == second.tobytes()


def test_a_drawing_decodes_to_the_image_tokenizers_picture(policy: Janus) -> None:
    drawing = own_drawing(policy)
    assert isinstance(drawing, Tokens)
    pixels = policy.network.model.vqmodel.decode(cast(Any, drawing.ids[None]))[0]
    expected = ((pixels + 1) / 2 * 255).clamp(0, 255).permute(1, 2, 0)
    shown = torch.tensor(np.asarray(policy.decode([drawing])[0]))
    assert (shown - expected).abs().max() <= 1.01


def test_text_nll_equals_the_cross_entropy_of_transformers(policy: Janus) -> None:
    inputs = processed(policy, [f"<image_placeholder>\n{SHORT}"], [PICTURE])
    target = policy.encode(["four circles"])[0].ids[None]
    ids = torch.cat([inputs["input_ids"], target], 1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), target], 1)
    theirs = policy.network(input_ids=ids, pixel_values=inputs["pixel_values"], labels=labels).loss
    ours = policy.nll([Context((PICTURE, SHORT)), Context((LONG,))], ["four circles", "two"])
    assert ours.shape == (2,)
    assert torch.allclose(ours[0], theirs, atol=CLOSE)


def test_drawing_nll_equals_the_cross_entropy_by_hand(policy: Janus) -> None:
    network = policy.network
    pixels = policy.processor.image_processor(OTHER, return_tensors="pt")["pixel_values"]
    target = cast(Tensor, network.model.vqmodel.encode(pixels).image_tokens).flatten()
    prompt = processed(policy, [SHORT], mode="image")["input_ids"]
    words = network.get_input_embeddings()(prompt)
    marks = network.prepare_embeddings_for_image_generation(target[None])
    states = network.model.language_model(inputs_embeds=torch.cat([words, marks], 1)).last_hidden_state
    logits = network.model.generation_head(states[0, prompt.shape[1] - 1 : -1])
    expected = torch.nn.functional.cross_entropy(logits, target)
    assert torch.allclose(policy.nll([Context((SHORT,))], [OTHER])[0], expected, atol=CLOSE)


def test_a_hidden_prompt_has_no_influence(policy: Janus) -> None:
    texts = "a red circle", "a red square"  # of one length
    seen = policy.nll([Context((text,)) for text in texts], [PICTURE] * 2)
    hidden = policy.nll([Context((text,), unconditional=True) for text in texts], [PICTURE] * 2)
    assert (seen[0] - seen[1]).abs() > 0.01
    assert alike(hidden[0], hidden[1])


# -- 8. the reference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 4], ids=["copy", "adapters"])
def test_the_reference_stays_where_training_started(make_policy: Callable[..., Janus], rank: int) -> None:
    policy = make_policy(lora_rank=rank)
    policy.keep_reference()
    contexts = [Context((SHORT,)), Context((PICTURE, LONG))]
    actions = [*policy.draw(contexts[:1], DRAWING, [0]), *policy.write(contexts[1:], TEXT, [1])]
    with torch.no_grad():
        start = policy(contexts, actions)
        with policy.reference():
            reference = policy(contexts, actions)
        assert all(alike(a, b) for a, b in zip(start, reference, strict=True))  # so KL is 0
        perturb(policy)
        trained = policy(contexts, actions)
        assert all((a - b).abs().max() > 0.1 for a, b in zip(start, trained, strict=True))
        with policy.reference():
            inside = policy(contexts, actions)
        assert all(alike(a, b) for a, b in zip(start, inside, strict=True))
        assert all(alike(a, b) for a, b in zip(trained, policy(contexts, actions), strict=True))


@pytest.mark.parametrize("rank", [0, 4], ids=["copy", "adapters"])
def test_an_error_inside_the_reference_still_brings_the_policy_back(
    make_policy: Callable[..., Janus], rank: int
) -> None:
    policy = make_policy(lora_rank=rank)
    policy.keep_reference()
    perturb(policy)
    before = policy.nll([Context((SHORT,))], ["four"])

    def fail() -> None:
        with policy.reference():
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert alike(policy.nll([Context((SHORT,))], ["four"]), before)


def test_the_trained_weights_still_train_after_the_reference_was_used(make_policy: Callable[..., Janus]) -> None:
    policy = make_policy(frozen=("vision_model", "vqmodel"))
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.01)
    policy.keep_reference()
    anchor = torch.tensor(0.0)
    for _ in range(2):
        with torch.no_grad(), policy.reference():
            anchor = policy.nll([Context((SHORT,))], ["four"])
        loss = policy.nll([Context((SHORT,))], ["four"])
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
    assert policy.nll([Context((SHORT,))], ["four"]) < anchor


def test_a_policy_without_a_reference_says_so(policy: Janus) -> None:
    with pytest.raises(RuntimeError, match=r"keep_reference\(\)"):
        policy.reference()


# -- what is trained ----------------------------------------------------------------------------------------------


def test_frozen_patterns_freeze_what_they_name_and_nothing_else(make_policy: Callable[..., Janus]) -> None:
    policy = make_policy(frozen=("vision_model", r"^model\.vqmodel"))
    for name, parameter in policy.network.named_parameters():
        assert parameter.requires_grad == ("vision_model" not in name and not name.startswith("model.vqmodel"))


def test_adapters_alone_are_trained(make_policy: Callable[..., Janus]) -> None:
    policy = make_policy(lora_rank=4)
    trained = [name for name, p in policy.network.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name and "language_model" in name for name in trained)
    loss = policy.nll([Context((SHORT,)), Context((PICTURE, LONG))], ["four", PICTURE]).sum()
    assert set(gradients_of(policy, loss)) == set(trained)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"frozen": ("visoin",)},
            r"policy.frozen pattern 'visoin' matches no parameter; modules are .*model.vision_model",
        ),
        ({"frozen": (".",)}, "policy.frozen .* freezes every parameter"),
        ({"lora_rank": 4, "lora_targets": "nothing"}, "policy.lora_targets = 'nothing'"),
    ],
)
def test_a_pattern_that_selects_nothing_is_refused(
    make_policy: Callable[..., Janus], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_policy(**fields)


def test_what_janus_cannot_do_is_refused(policy: Janus) -> None:
    with pytest.raises(ValueError, match="can edit, but the janus family can only draw, relax drawings, write"):
        policy.require("edit", "cycle_edit")
    latents = Latents(
        torch.zeros(2, 1, 1, 1), torch.zeros(2), torch.zeros(1), torch.ones(1, dtype=torch.bool), Sampling()
    )
    with pytest.raises(ValueError, match="acts in tokens, not in Latents"):
        policy([Context((SHORT,))], [latents])


def test_bfloat16_matrix_products_run_and_train(make_policy: Callable[..., Janus]) -> None:
    policy = make_policy(compute_dtype="bfloat16")
    contexts = groups([Context((PICTURE, SHORT)), Context((LONG,))])
    actions = [*policy.draw(contexts[:2], DRAWING, [0, 1]), *policy.write(contexts[2:], TEXT, [2, 3])]
    logps = policy(contexts, actions)
    assert all(logp.dtype == torch.float32 for logp in logps)
    assert gap(logps, actions) < 0.5
    found = gradients(policy, logps)
    assert found
    assert all(g.isfinite().all() and g.dtype == torch.float32 for g in found.values())


# -- checkpoints --------------------------------------------------------------------------------------------------


def damaged(checkpoint: Path, tmp_path: Path, damage: Callable[[Path], object]) -> PolicyConfig:
    folder = tmp_path / "damaged"
    shutil.copytree(checkpoint, folder)
    damage(folder)
    return PolicyConfig(str(folder))


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def change_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return damage


def change_weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (shutil.rmtree, "no such folder"),
    "no config.json": (remove("config.json"), "no config.json"),
    "broken config.json": (lambda f: (f / "config.json").write_text("{"), "cannot read its config.json"),
    "config.json not an object": (
        lambda f: (f / "config.json").write_text("[]"),
        "cannot read its config.json",
    ),
    "other family": (
        change_json("config.json", lambda c: c.update(model_type="llama")),
        "model_type 'llama' is not one of",
    ),
    "no weights": (remove("model.safetensors"), "cannot read its weights"),
    "truncated weights": (truncate, "cannot read its weights"),
    "missing key": (change_weights(lambda w: w.pop("lm_head.weight")), "1 missing keys, first 'lm_head.weight'"),
    "foreign key": (change_weights(lambda w: w.update(foo=torch.zeros(2))), "1 unexpected keys, first 'foo'"),
    "wrong shape": (
        change_weights(lambda w: w.update({"lm_head.weight": torch.zeros(2, 2)})),
        "cannot read its weights",
    ),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "cannot read its tokenizer and processor"),
    "no processor": (remove("processor_config.json"), "cannot read its tokenizer and processor"),
    "no pad token": (
        change_json("tokenizer_config.json", lambda c: c.pop("pad_token")),
        "the tokenizer has no pad token",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused_by_name(checkpoint: Path, tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    config = damaged(checkpoint, tmp_path, damage)
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (both parts of the message are matched below)
        load_policy(config)
    assert f"policy.path = {config.path!r}" in str(caught.value)
    assert message in str(caught.value)


def test_a_saved_policy_loads_as_it_was(policy: Janus, checkpoint: Path) -> None:
    loaded = cast(Janus, load_policy(PolicyConfig(str(checkpoint))))
    assert same_weights(loaded.network.state_dict(), policy.network.state_dict())
    contexts = [Context((PICTURE, SHORT)), Context((LONG,))]
    for modality, sampling in SAMPLINGS.values():
        ours = act(policy, modality, contexts, sampling)
        theirs = act(loaded, modality, contexts, sampling)
        assert all(torch.equal(a.ids, b.ids) and alike(a.logp, b.logp) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("rank", [0, 4], ids=["weights", "adapters"])
def test_a_saved_policy_is_a_plain_transformers_checkpoint(
    make_policy: Callable[..., Janus], tmp_path: Path, rank: int
) -> None:
    policy = make_policy(lora_rank=rank)
    perturb(policy, 0.02)
    inputs = processed(policy, [f"<image_placeholder>\n{SHORT}"], [PICTURE])
    with torch.no_grad():
        expected = policy.network(**inputs).logits
        before = {name: weight.clone() for name, weight in policy.state_dict().items()}
        policy.save(tmp_path)
        assert same_weights(policy.state_dict(), before)  # saving leaves the policy as it is
        assert alike(policy.network(**inputs).logits, expected)
        network, info = cast(Any, JanusForConditionalGeneration).from_pretrained(tmp_path, output_loading_info=True)
        processor: Any = JanusProcessor.from_pretrained(tmp_path)
        again = processor(
            text=f"<|User|>: <image_placeholder>\n{SHORT}\n\n<|Assistant|>:", images=PICTURE, return_tensors="pt"
        )
        assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert torch.equal(again["input_ids"], inputs["input_ids"])
        assert torch.allclose(network.eval()(**again).logits, expected, atol=CLOSE)


def test_saving_restores_the_begin_of_image_id_that_loading_drops(checkpoint: Path, tmp_path: Path) -> None:
    policy = load_policy(PolicyConfig(str(checkpoint)))
    policy.save(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    boi = cast(Janus, policy).tokenizer.convert_tokens_to_ids("<begin_of_image>")
    assert saved["generation_kwargs"] == {"boi_token_id": boi}


def test_a_checkpoint_in_bfloat16_writes_draws_and_trains(checkpoint: Path) -> None:
    policy = load_policy(PolicyConfig(str(checkpoint), dtype="bfloat16", compute_dtype="bfloat16"))
    contexts = [Context((PICTURE, SHORT)), Context((LONG,))]
    actions: list[Action] = [*policy.draw(contexts[:1], DRAWING, [0]), *policy.write(contexts[1:], TEXT, [1])]
    logps = policy(contexts, actions)
    assert all(logp.dtype == torch.float32 and logp.isfinite().all() for logp in logps)
    torch.cat(logps).sum().backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters() if p.grad is not None)


# -- hidden states ------------------------------------------------------------------------------------------------

READ = [(PICTURE, SHORT), (OTHER, LONG), (PICTURE, "circle"), (OTHER, f" {SHORT}\nand {SHORT} ")]


def test_hidden_states_are_those_of_a_plain_forward_pass_at_image_and_text(policy: Janus) -> None:
    tokenizer = policy.tokenizer
    for image, text in READ:
        inputs = processed(policy, [f"<image_placeholder>\n{text}"], [image])
        with torch.no_grad():
            plain = policy.network(**inputs, output_hidden_states=True).hidden_states[-1][0]
        ids = inputs["input_ids"][0]
        seen, read = policy.hidden_states([image], [text])[0]
        assert (seen - plain[ids == tokenizer.image_token_id]).abs().max() < CLOSE
        rows = [int((plain - state).abs().amax(-1).argmin()) for state in read]
        assert (read - plain[rows]).abs().max() < CLOSE
        assert rows == list(range(rows[0], rows[0] + len(rows)))
        assert tokenizer.decode(ids[rows]).strip() == text.strip()
        assert tokenizer.decode(ids[rows[-1] + 1 :]).strip() == "<|Assistant|>:"


def test_hidden_states_do_not_depend_on_padding_or_the_rest_of_the_batch(policy: Janus) -> None:
    images, texts = zip(*READ, strict=True)
    for together, pair in zip(policy.hidden_states(images, texts), READ, strict=True):
        alone = policy.hidden_states([pair[0]], [pair[1]])[0]
        for a, b in zip(together, alone, strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() < CLOSE


def test_a_text_of_nothing_has_no_states(policy: Janus) -> None:
    assert [len(states) for states in policy.hidden_states([PICTURE], [" "])[0]] == [36, 0]
