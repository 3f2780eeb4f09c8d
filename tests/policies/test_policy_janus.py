"""What is Janus' own beside the contract: it is the model of `transformers`, and reads checkpoints of it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor

from tests.policies.contract import CLOSE, LONG, OTHER, PICTURE, READ, SHORT, assert_same_scores, nll
from tests.policies.damage import Damage, change_json, change_weights, remove
from unison.config import PolicyConfig
from unison.policies import load_policy
from unison.policies.janus.pictures import Pictures
from unison.policies.janus.policy import Janus
from unison.types import Context, Sampling, Tokens
from unison.world import scene as scenes
from unison.world.render import render

DRAWING = Sampling(guidance=5.0)


@pytest.fixture(scope="module")
def drawing(policy: Janus) -> Tokens:
    return policy.draw([Context((SHORT,))], DRAWING, [77])[0]  # type: ignore[return-value]


# -- against a plain forward pass ---------------------------------------------------------------------------------


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
    assert_same_scores(policy, ours, plain)


@pytest.mark.parametrize(("guidance", "temperature"), [(1.0, 1.0), (5.0, 1.0), (2.0, 0.7)])
def test_drawing_scoring_equals_a_plain_forward_pass(policy: Janus, guidance: float, temperature: float) -> None:
    contexts = [Context((SHORT,)), Context((LONG,))]
    drawings = policy.draw(contexts, Sampling(temperature=temperature, guidance=guidance), [0, 1])
    ours = policy(contexts, drawings)
    plain = []
    for text, drawing in zip((SHORT, LONG), drawings, strict=True):
        assert isinstance(drawing, Tokens)
        plain.append(plain_drawing_logp(policy, processed(policy, [text], mode="image")["input_ids"], drawing))
    assert_same_scores(policy, ours, plain)


def test_the_pads_row_has_the_gradient_that_finite_differences_have(make_policy: Callable[..., Janus]) -> None:
    """Of a guided drawing's log-probability by a plain forward pass, along a random direction."""
    policy = make_policy()
    drawing = cast("list[Tokens]", policy.draw([Context((SHORT,))], DRAWING, [77]))
    prompt = processed(policy, [SHORT], mode="image")["input_ids"]
    policy.network.double()
    table, pad = cast(Tensor, policy.network.get_input_embeddings().weight), policy.tokenizer.pad_token_id
    direction = torch.randn(table.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def along(step: float) -> float:
        with torch.no_grad():
            table[pad] += step * direction
            value = plain_drawing_logp(policy, prompt, drawing[0]).sum().item()
            table[pad] -= step * direction
        return value

    policy([Context((SHORT,))], drawing)[0].sum().backward()
    ours = (cast(Tensor, table.grad)[pad] @ direction).item()
    assert abs(ours) > 0.1
    assert ours == pytest.approx((along(5e-3) - along(-5e-3)) / 1e-2, rel=1e-2)  # norms are float32


def test_a_pads_row_of_zeros_is_left_untrained() -> None:
    """As in the bundled model."""
    policy = cast(Janus, load_policy(PolicyConfig("assets/tiny-janus")))
    table, pad = cast(Tensor, policy.network.get_input_embeddings().weight), policy.tokenizer.pad_token_id
    assert not table[pad].any()
    policy([Context((SHORT,))], policy.draw([Context((SHORT,))], DRAWING, [77]))[0].sum().backward()
    assert not cast(Tensor, table.grad)[pad].any()
    assert cast(Tensor, table.grad).any()


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
    (reply,) = policy.write([Context((SHORT,))], Sampling(max_tokens=6), [78])
    before = prefix(policy, Context((SHORT,)), "text")
    after = prefix(policy, Context((SHORT, reply, LONG)), "text")
    seen = [*before, *(i for i in reply.ids.tolist() if i != policy.tokenizer.eos_token_id)]
    assert after[: len(seen)] == seen
    assert after[len(seen)] == policy.tokenizer.eos_token_id


def test_an_own_drawing_is_read_without_rounding(policy: Janus, drawing: Tokens) -> None:
    pixels = policy._pixels(drawing)
    rounded = policy._pixels(policy.decode([drawing])[0])
    assert pixels.shape == rounded.shape
    assert (pixels.clamp(-1, 1) - rounded).abs().max() < 2.1 / 255


SIZES = [(333, 500), (500, 333), (480, 640), (641, 427), (1000, 999), (37, 48), (1, 900), (49, 98), (384, 384)]


def padded_square(picture: Image.Image, side: int, least: int) -> np.ndarray:
    """The published program's arithmetic: sizes cut to whole pixels, a grey border, -1 to 1. [3, side, side]"""
    scaled = [max(int(length / max(picture.size) * side), least) for length in picture.size]
    square = np.full((side, side, 3), 127, np.uint8)
    left, top = ((side - length) // 2 for length in scaled)
    resized = np.asarray(picture.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC))
    square[top : top + scaled[1], left : left + scaled[0]] = resized
    return np.moveaxis(square, -1, 0) / 127.5 - 1


@pytest.mark.parametrize("side", [48, 384])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pictures_are_resized_as_in_the_published_program(size: tuple[int, int], side: int) -> None:
    processor = Pictures(size={"height": side, "width": side}, image_mean=[0.5] * 3, image_std=[0.5] * 3, min_size=14)
    picture = Image.effect_noise(size, 80).convert("RGB")
    pixels = processor(picture, return_tensors="pt")["pixel_values"][0]
    assert np.abs(pixels.numpy() - padded_square(picture, side, 14)).max() < 1e-6


def test_a_checkpoints_pictures_are_resized_so(checkpoint: Path) -> None:
    policy = cast(Janus, load_policy(PolicyConfig(str(checkpoint))))
    picture = Image.effect_noise((333, 500), 80).convert("RGB")
    assert np.abs(policy._pixels(picture)[0].numpy() - padded_square(picture, 48, 16)).max() < 1e-6


# -- text and pictures --------------------------------------------------------------------------------------------


def test_a_drawing_decodes_to_the_image_tokenizers_picture(policy: Janus, drawing: Tokens) -> None:
    pixels = policy.network.model.vqmodel.decode(cast(Any, drawing.ids[None]))[0]
    expected = ((pixels + 1) / 2 * 255).clamp(0, 255).permute(1, 2, 0)
    shown = torch.tensor(np.asarray(policy.decode([drawing])[0]))
    assert (shown - expected).abs().max() <= 1.01


def nearest_by_angle(policy: Janus, pixels: Tensor) -> Tensor:
    """The row of the codebook at the smallest distance on the unit sphere, latent by latent. [N, L]"""
    with torch.no_grad():
        latents = policy.vq.quant_conv(policy.vq.encoder(pixels)).flatten(2).mT.double()  # [N, L, E]
        rows = policy.vq.quantize.embedding.weight.double()
    latents, rows = latents / latents.norm(dim=-1, keepdim=True), rows / rows.norm(dim=-1, keepdim=True)
    return torch.cdist(latents, rows.expand(len(latents), -1, -1)).argmin(-1)


def test_codes_of_pictures_do_not_depend_on_the_norms_of_the_codebooks_rows(make_policy: Callable[..., Janus]) -> None:
    policy = make_policy()
    table = policy.vq.quantize.embedding.weight
    with torch.no_grad():
        table.normal_(generator=torch.Generator().manual_seed(3))
    pictures = [Image.effect_noise((48, 48), 20 + 20 * i).convert("RGB") for i in range(4)]
    pixels = torch.cat([policy._pixels(picture) for picture in pictures])
    ours = torch.stack([cast(Tokens, action).ids for action in policy.encode(pictures)])
    assert torch.equal(ours, nearest_by_angle(policy, pixels))
    raw = policy.vq.encode(pixels).image_tokens.view_as(ours)  # of transformers
    assert (ours == raw).float().mean() < 0.9


def test_the_bundled_codebook_gives_pictures_the_codes_it_was_trained_on() -> None:
    policy = cast(Janus, load_policy(PolicyConfig("assets/tiny-janus")))
    rng = random.Random(5)
    pictures = [render(scenes.sample(rng, scenes.TASKS[i % len(scenes.TASKS)], "eval")[1]) for i in range(24)]
    pixels = torch.cat([policy._pixels(picture) for picture in pictures])
    ours = torch.stack([cast(Tokens, action).ids for action in policy.encode(pictures)])
    assert torch.equal(ours, policy.vq.encode(pixels).image_tokens.view_as(ours))


def test_the_loss_of_texts_and_pictures_is_the_cross_entropy_of_a_plain_forward_pass(policy: Janus) -> None:
    inputs, prompt = (
        processed(policy, [f"<image_placeholder>\n{SHORT}"], [PICTURE]),
        processed(policy, [SHORT], mode="image"),
    )
    pixels = policy.processor.image_processor(OTHER, return_tensors="pt")["pixel_values"]
    text, picture = cast("list[Tokens]", policy.encode(["four circles", OTHER]))
    assert torch.equal(picture.ids, nearest_by_angle(policy, pixels).flatten())
    ids = torch.cat([inputs["input_ids"], text.ids[None]], 1)
    labels = torch.cat([torch.full_like(inputs["input_ids"], -100), text.ids[None]], 1)
    theirs = policy.network(input_ids=ids, pixel_values=inputs["pixel_values"], labels=labels).loss
    painted = -plain_drawing_logp(policy, prompt["input_ids"], picture).mean()
    ours = nll(policy, [Context((PICTURE, SHORT)), Context((LONG,)), Context((SHORT,))], [text, "two", picture])
    assert ours.shape == (3,)
    assert torch.allclose(ours[[0, 2]], torch.stack([theirs, painted]), atol=CLOSE)


# -- checkpoints --------------------------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


DAMAGES: dict[str, tuple[Damage, str]] = {
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
    config = PolicyConfig(str(shutil.copytree(checkpoint, tmp_path / "damaged")))
    damage(tmp_path / "damaged")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (both parts of the message are matched below)
        load_policy(config)
    assert f"policy.path = {config.path!r}" in str(caught.value)
    assert message in str(caught.value)


def test_a_saved_policy_is_a_plain_transformers_checkpoint(policy: Janus, checkpoint: Path) -> None:
    network, info = cast(Any, JanusForConditionalGeneration).from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = processed(policy, [f"<image_placeholder>\n{SHORT}"], [PICTURE])
    chat = f"<|User|>: <image_placeholder>\n{SHORT}\n\n<|Assistant|>:"
    processor: Any = JanusProcessor.from_pretrained(checkpoint)
    assert type(processor.image_processor).__name__.startswith("JanusImageProcessor")
    again = processor(text=chat, images=PICTURE, return_tensors="pt")
    assert torch.equal(again["input_ids"], inputs["input_ids"])
    with torch.no_grad():
        assert torch.allclose(network.eval()(**again).logits, policy.network(**inputs).logits, atol=CLOSE)


def test_saving_restores_the_begin_of_image_id_that_loading_drops(checkpoint: Path, tmp_path: Path) -> None:
    policy = load_policy(PolicyConfig(str(checkpoint)))
    policy.save(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    boi = cast(Janus, policy).tokenizer.convert_tokens_to_ids("<begin_of_image>")
    assert saved["generation_kwargs"] == {"boi_token_id": boi}


# -- hidden states ------------------------------------------------------------------------------------------------


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
