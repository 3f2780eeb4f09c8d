"""Rewards that look at pixels, on real photos and, where a package ships them, real weights."""

from __future__ import annotations

import io
import math
import os
import pickle
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import skimage.data
import skimage.metrics
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from transformers import CLIPModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import unison.rewards
from benchmarks import judges
from unison.rewards import REWARDS, load_rewards
from unison.rewards.models import CPU, in_chunks, load
from unison.rewards.ocr import normalise, ocr, read
from unison.rewards.quality import brisque, jpeg_compressible, jpeg_incompressible, jpeg_kilobytes, load_head
from unison.rewards.similarity import (
    SIZE,
    STAGES,
    ArrayUnpickler,
    load_lpips,
    lpips_alex,
    lpips_vgg,
    mse,
    pixels,
    psnr,
    squared_error,
    ssim,
    structural_similarity,
)
from unison.types import Item, RewardFn, Trajectory

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")  # those that scikit-image ships
SIMILARITIES: dict[str, RewardFn] = {
    "lpips_vgg": lpips_vgg,
    "lpips_alex": lpips_alex,
    "ssim": ssim,
    "mse": mse,
    "psnr": psnr,
}
QUALITIES: dict[str, RewardFn] = {
    "jpeg_compressible": jpeg_compressible,
    "jpeg_incompressible": jpeg_incompressible,
    "brisque": brisque,
}


def photo(name: str, side: int = 128) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((side, side))


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius))


def noisy(image: Image.Image, std: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, std, (image.height, image.width, 3))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def writing(text: str, side: int = 256, size: int = 28) -> Image.Image:
    image = Image.new("RGB", (side, side), "white")
    ImageDraw.Draw(image).multiline_text((16, 60), text, fill="black", font=ImageFont.load_default(size))
    return image


def drawn(*images: Image.Image, real: Image.Image | None = None, prompt: str | None = None) -> Trajectory:
    return Trajectory(Item("x", prompt=prompt, image=real), (), images=images)


def judged(reward: RewardFn, rows: Sequence[Trajectory]) -> list[float]:
    values = [value for value in reward(rows, None) if value is not None]
    assert len(values) == len(rows)
    assert all(math.isfinite(value) and 0 <= value <= 1 for value in values), values
    return values


# -- similarity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("subject", ["chelsea", "coffee"])
def test_the_photo_itself_is_above_its_blur_and_that_above_another_photo(name: str, subject: str) -> None:
    real = photo(subject)
    others = [photo(other) for other in PHOTOS if other != subject]
    rows = [drawn(image, real=real) for image in (real, blurred(real, 2), *others)]
    same, blur, *rest = judged(SIMILARITIES[name], rows)
    assert same == pytest.approx(1, abs=1e-6)
    assert same > blur > max(rest)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_size_shape_and_mode_need_not_agree(name: str) -> None:
    real = photo("coffee", 300)
    rows = [drawn(image, real=real) for image in (real.resize((200, 150)), real.convert("RGBA"), real.convert("L"))]
    small, alpha, _ = judged(SIMILARITIES[name], rows)
    assert alpha == pytest.approx(1, abs=1e-6)
    assert small > judged(SIMILARITIES[name], [drawn(photo("rocket"), real=real)])[0]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_batch_is_judged_like_its_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unison.rewards.similarity.PAIRS", 2)
    rows = [drawn(photo(a, 96), real=photo(b)) for a, b in pairwise(PHOTOS)]
    rows.insert(2, drawn())
    together = SIMILARITIES[name](rows, None)
    alone = [SIMILARITIES[name]([row], None)[0] for row in rows]
    assert together[2] is None
    assert [x for x in together if x] == pytest.approx([x for x in alone if x], abs=1e-5)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_without_a_drawing_or_a_real_image_nothing_is_compared(name: str) -> None:
    real = photo("coffee")
    values = SIMILARITIES[name]([drawn(real=real), drawn(real), drawn(blurred(real, 3), real, real=real)], None)
    assert values[:2] == [None, None]
    assert values[2] == pytest.approx(1, abs=1e-6), "the last drawing counts"


def test_the_measures_agree_with_scikit_image() -> None:
    from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

    reference = cast(Any, skimage.metrics.structural_similarity)
    drawings = [noisy(photo("chelsea", SIZE), 20), blurred(photo("coffee", SIZE), 3), photo("rocket", SIZE)]
    reals = [photo(name, SIZE) for name in ("chelsea", "coffee", "astronaut")]
    arrays = [tuple(np.asarray(x, np.float64) / 255 for x in pair) for pair in zip(drawings, reals, strict=True)]
    settings = {"data_range": 1.0, "channel_axis": 2, "gaussian_weights": True, "use_sample_covariance": False}
    a, b = pixels(drawings), pixels(reals)
    assert structural_similarity(a, b).tolist() == pytest.approx([reference(*x, **settings) for x in arrays], abs=1e-5)
    assert squared_error(a, b).tolist() == pytest.approx([mean_squared_error(*x) for x in arrays], rel=1e-5)
    rows = [drawn(a, real=b) for a, b in zip(drawings, reals, strict=True)]
    decibels = [peak_signal_noise_ratio(real, drawing, data_range=1) for drawing, real in arrays]
    assert judged(psnr, rows) == pytest.approx([x / 40 for x in decibels], abs=1e-5)
    assert judged(ssim, rows) == pytest.approx([(1 + reference(*x, **settings)) / 2 for x in arrays], abs=1e-5)


def test_black_against_white_is_as_far_as_pixels_go() -> None:
    row = drawn(Image.new("RGB", (8, 8)), real=Image.new("RGB", (8, 8), "white"))
    assert judged(mse, [row]) == pytest.approx([0], abs=1e-6)
    assert judged(psnr, [row]) == pytest.approx([0], abs=1e-6)


# -- LPIPS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", STAGES)
def test_more_blur_and_more_noise_are_more_distance(backbone: str) -> None:
    real = photo("astronaut", SIZE)
    distance = load_lpips(backbone)
    for damaged in (
        [blurred(real, radius) for radius in (0, 1, 3, 9)],
        [noisy(real, std) for std in (0, 10, 30, 90)],
    ):
        distances = distance(pixels(damaged), pixels([real] * 4))
        assert distances[0].abs() < 1e-7
        assert (distances.diff() > 0).all(), distances
        assert distances.max() < 1.2


@pytest.mark.parametrize("backbone", STAGES)
def test_the_distance_is_symmetric_and_its_gradient_descends(backbone: str) -> None:
    distance = load_lpips(backbone)
    real = pixels([photo("coffee")])
    x = pixels([photo("rocket")]).requires_grad_()
    before = distance(x, real)
    assert torch.allclose(before, distance(real, x), atol=1e-6)
    (gradient,) = torch.autograd.grad(before.sum(), x)
    assert gradient.isfinite().all()
    assert distance(x - 0.5 * gradient / gradient.norm(), real) < before
    assert not any(weight.requires_grad for weight in distance.parameters())


@pytest.mark.parametrize("backbone", STAGES)
def test_the_gradient_is_finite_where_all_features_are_zero(backbone: str) -> None:
    x = torch.zeros(1, 3, 64, 64, requires_grad=True)
    load_lpips(backbone)(x, torch.ones(1, 3, 64, 64)).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


# published layer sizes: AlexNet of one tower, and the 13 convolutions of VGG-16
@pytest.mark.parametrize(("backbone", "convolutions", "values"), [("alexnet", 5, 2_469_696), ("vgg16", 13, 14_714_688)])
def test_the_backbones_have_the_published_sizes(backbone: str, convolutions: int, values: int) -> None:
    network = load_lpips(backbone)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in network.modules()) == convolutions
    assert sum(weight.numel() for weight in network.stages.parameters()) == values
    assert all((weight >= 0).all() for weight in network.weights), "a distance has no negative part"


def test_weights_are_read_as_arrays_and_nothing_else() -> None:
    arrays = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}}
    read = ArrayUnpickler(io.BytesIO(pickle.dumps(arrays, protocol=3))).load()
    assert read.keys() == {"a"}
    assert np.array_equal(read["a"]["b"], arrays["a"]["b"])


class Evil:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("false",)


@pytest.mark.parametrize("value", [Evil(), Path("x"), print, random.Random(0), np.float64(1), {"a": [Evil()]}])
def test_anything_else_in_a_weight_file_is_refused(value: object) -> None:
    with pytest.raises(pickle.UnpicklingError, match="is no part of a numpy array"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(value))).load()


# -- quality ------------------------------------------------------------------------------------------------------


def test_texture_costs_bytes() -> None:
    flat, image = Image.new("RGB", (128, 128), "red"), photo("coffee")
    rows = [drawn(x) for x in (flat, blurred(image, 2), image, noisy(image, 40))]
    costs = judged(jpeg_incompressible, rows)
    assert costs == sorted(costs)
    assert len(set(costs)) == 4
    assert judged(jpeg_compressible, rows) == pytest.approx([1 - cost for cost in costs])


def test_the_cost_is_per_pixel() -> None:
    tile = np.asarray(photo("coffee", 256))
    rows = [drawn(Image.fromarray(np.tile(tile, (n, n, 1)))) for n in (1, 2)]
    one, four = judged(jpeg_incompressible, rows)
    assert one == pytest.approx(four, rel=0.02)


def test_kilobytes_are_those_of_the_file() -> None:
    image = photo("coffee", 256)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    undrawn = Trajectory(Item("x"), ())
    assert jpeg_kilobytes([drawn(image), undrawn], None) == [len(file.getvalue()) / 1000, None]


def test_the_header_of_a_tiny_file_does_not_leave_the_scale() -> None:
    row = [drawn(Image.new("RGB", (4, 4)))]
    assert judged(jpeg_incompressible, row) == [1]
    assert judged(jpeg_compressible, row) == [0]


@pytest.mark.parametrize("subject", PHOTOS)
def test_brisque_prefers_a_clean_photo(subject: str) -> None:
    clean = photo(subject, 256)
    good, blur, noise = judged(brisque, [drawn(clean), drawn(blurred(clean, 3)), drawn(noisy(clean, 40))])
    assert good > 0.75
    assert blur < 0.45
    assert noise < 0.45


def test_brisque_cannot_judge_what_has_no_texture() -> None:
    rows = [drawn(Image.new("RGB", (64, 64), color)) for color in ("black", "red", "white")]
    assert brisque(rows, None) == [None] * 3
    assert brisque([drawn(photo("coffee", 2))], None) == [None]


@pytest.mark.parametrize("name", QUALITIES)
def test_the_last_drawing_alone_is_judged(name: str) -> None:
    reward = QUALITIES[name]
    first, last = photo("chelsea"), photo("rocket")
    both, nothing, alone = reward([drawn(first, last), drawn(), drawn(last)], None)
    assert nothing is None
    assert both == pytest.approx(alone, rel=1e-6)
    assert reward([drawn(last)], None)[0] == pytest.approx(alone, rel=1e-6)
    assert reward([drawn(first)], None)[0] != pytest.approx(alone, abs=0.01)


def test_the_aesthetic_score_is_the_head_on_the_unit_embedding(tmp_path: Path) -> None:
    folders = judges.build(tmp_path, judges.JudgeSize(width=32, layers=2, image=48))
    spec = judges.spec("aesthetic", folders)
    images = [photo(name) for name in PHOTOS]
    values = judged(load_rewards([spec])[spec], [drawn(image) for image in images])
    clip, processor = load(CLIPModel, CLIPImageProcessorPil, str(folders["clip"]), CPU)
    with torch.no_grad():
        x = clip.get_image_features(**processor(images, return_tensors="pt")).pooler_output
        x = x / x.norm(dim=-1, keepdim=True)
        for layer in load_head(str(folders["head"]), CPU).layers:
            if isinstance(layer, torch.nn.Linear):
                x = x @ layer.weight.T + layer.bias
    assert values == pytest.approx((x[:, 0] / 10).tolist(), abs=1e-6)
    assert len(set(values)) == len(PHOTOS)


# -- text rendering -----------------------------------------------------------------------------------------------


def test_the_text_quoted_is_above_garbled_text_and_that_above_none() -> None:
    prompt = 'a sign that says "Hello World"'
    texts = ("Hello World", "HELLO\nWORLD", "Hallo Wrld", "good night", "")
    right, lines, garbled, wrong, blank = judged(ocr, [drawn(writing(text), prompt=prompt) for text in texts])
    assert right == lines == 1
    assert garbled == pytest.approx(0.8)
    assert garbled > wrong
    assert blank == 0


def test_much_other_text_is_worth_nothing_not_less() -> None:
    row = drawn(writing("this is a long text of\nno relation to the sign", size=18), prompt='"exit"')
    assert judged(ocr, [row]) == [0]


@pytest.mark.parametrize("prompt", ['"OPEN" 24', "“OPEN” 24", '"OP" and "EN"'])
def test_all_that_is_quoted_is_wanted(prompt: str) -> None:
    assert judged(ocr, [drawn(writing("open"), prompt=prompt)]) == [1]


def test_without_a_quotation_or_a_drawing_there_is_no_text_to_find() -> None:
    image = writing("open")
    rows = [drawn(image, prompt=prompt) for prompt in ("a sign that says open", None, 'a 5" nail', '""', '" "')]
    assert ocr([*rows, drawn(prompt='"open"')], None) == [None] * 6


def test_text_on_a_photo_is_read_and_a_photo_without_text_is_empty() -> None:
    image = photo("chelsea", 384)
    ImageDraw.Draw(image).text((20, 300), "Chelsea", fill="white", font=ImageFont.load_default(32))
    assert normalise(read(image)) == "chelsea"
    assert read(photo("coffee", 384)) == read(Image.new("RGB", (64, 64))) == ""


# -- what all of them share ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, reward in REWARDS.items() if reward.packages])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unison.rewards, "find_spec", lambda package: None)
    message = f"'{name}' needs {', '.join(REWARDS[name].packages)}, not installed: pip install .*judges"
    with pytest.raises(ValueError, match=message):
        load_rewards([name])
    assert set(load_rewards(["mse", "accuracy"])) == {"mse", "accuracy"}


def test_chunks_are_of_the_stated_size_and_keep_the_order() -> None:
    sizes: list[int] = []

    def judge(rows: list[int]) -> list[float]:
        sizes.append(len(rows))
        return [float(row) for row in rows]

    assert in_chunks(judge, [0, None, 1, 2, None, 3, 4], 2) == [0, None, 1, 2, None, 3, 4]
    assert sizes == [2, 2, 1]
    assert in_chunks(judge, [None], 2) == [None]
    assert sizes == [2, 2, 1]
