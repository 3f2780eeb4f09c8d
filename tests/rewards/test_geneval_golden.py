"""GenEval's decisions, partial credit, geometry and crops against those of the published programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from unison.data.geneval import read_wanted
from unison.data.objects import COCO, COLORS
from unison.rewards.geneval import rules
from unison.rewards.geneval.rules import Detection, decide, keep
from unison.types import Clause, Wanted


@pytest.fixture(scope="module")
def facts(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "geneval_cases.json").read_text())


def detections(case: dict[str, Any]) -> list[Detection]:
    return [Detection(d["class"], tuple(d["box"]), d["score"], color=d["color"]) for d in case["detections"]]


def wanted(case: dict[str, Any]) -> Wanted:
    metadata = case["metadata"]
    return read_wanted(metadata) if metadata["include"] else Wanted(metadata["tag"], ())


def failures(facts: dict[str, Any], agrees: Any) -> list[tuple[int, str]]:
    """Cases on which we differ, by number and scenario."""
    assert len(facts["cases"]) == 213
    return [(case["id"], case["scenario"]) for case in facts["cases"] if not agrees(case)]


def test_names_and_thresholds_are_the_published_ones(facts: dict[str, Any]) -> None:
    assert list(COCO) == facts["classnames"]
    assert list(COLORS) == facts["colors"]
    limits = [rules.LEAST_SCORE, rules.LEAST_SCORE_COUNTING, rules.MOST_OF_A_CLASS, 1.0, rules.CLOSE]
    assert limits == list(facts["thresholds"].values())


def test_the_kept_boxes_and_their_order_are_upstreams(facts: dict[str, Any]) -> None:
    def agrees(case: dict[str, Any]) -> bool:
        kept = keep(detections(case), case["metadata"]["tag"])
        boxes = {noun: [[*d.box, float(np.float32(d.score))] for d in found] for noun, found in kept.items()}
        expected = case["geneval"]["kept_boxes_in_order"]
        return boxes.keys() == expected.keys() and all(np.allclose(boxes[n], expected[n], atol=1e-6) for n in boxes)

    assert failures(facts, agrees) == []


def test_every_case_is_decided_as_upstream_for_the_same_reason(facts: dict[str, Any]) -> None:
    def agrees(case: dict[str, Any]) -> bool:
        verdict = decide(wanted(case), keep(detections(case), case["metadata"]["tag"]))
        told = case["geneval"]["reason_accepted_spellings"]
        return verdict.correct == case["geneval"]["correct"] and verdict.reason in told

    assert failures(facts, agrees) == []


def test_every_case_earns_the_partial_credit_of_the_reward_server(facts: dict[str, Any]) -> None:
    def agrees(case: dict[str, Any]) -> bool:
        verdict = decide(wanted(case), keep(detections(case), case["metadata"]["tag"]))
        server = case["unirl_zero"]
        strict = verdict.strict == server["strict_correct"]
        told = verdict.strict_reason in server["strict_reason_accepted_spellings"]
        return strict and told and abs(verdict.score - server["score"]) < 1e-6

    assert failures(facts, agrees) == []


def test_relations_of_boxes_are_upstreams(facts: dict[str, Any]) -> None:
    cases = facts["relative_position_cases"]
    found = [sorted(rules.relations(tuple(c["a"]), tuple(c["b"]))) for c in cases]
    assert found == [sorted(c["relations"]) for c in cases]


def test_overlaps_are_upstreams(facts: dict[str, Any]) -> None:
    cases = facts["iou_cases"]
    found = [rules.iou(tuple(c["a"]), tuple(c["b"])) for c in cases]
    assert found == pytest.approx([c["iou"] for c in cases], abs=1e-6)


def test_crops_are_upstreams_pixel_by_pixel(golden: Path, facts: dict[str, Any]) -> None:
    arrays = load_file(golden / "geneval_crops.safetensors")
    picture = Image.fromarray(arrays["image"])
    assert list(rules.GREY) == facts["crop_cases"]["background_rgb"]
    for case in facts["crop_cases"]["cases"]:
        name, box = case["index"], tuple(case["box"])
        masked = Detection("cat", box, 1.0, arrays[f"{name}.mask"].astype(bool))
        assert np.array_equal(np.asarray(rules.crop(picture, masked)), arrays[f"{name}.crop"])
        bare = rules.crop(picture, Detection("cat", box, 1.0))
        assert np.array_equal(np.asarray(bare), arrays[f"{name}.crop_no_mask"])


# -- what no golden case probes ----------------------------------------------------------------------------------------


def test_overlapping_boxes_of_a_noun_are_dropped_where_a_limit_is_set() -> None:
    boxes = [(0, 0, 10, 10), (1, 0, 11, 10), (30, 0, 40, 10)]
    found = [Detection("cat", box, 0.9 - i / 10) for i, box in enumerate(boxes)]
    assert [d.box for d in keep(found, "colors", overlap=0.5)["cat"]] == [boxes[0], boxes[2]]
    assert len(keep(found, "colors")["cat"]) == 3


def test_a_box_thinner_than_a_pixel_still_gives_a_picture() -> None:
    picture = Image.new("RGB", (8, 8), "red")
    assert rules.crop(picture, Detection("cat", (3.1, 3.1, 3.2, 3.4), 1.0)).size == (1, 1)


def test_the_colour_is_asked_of_every_kept_object_of_a_coloured_noun_and_of_no_other() -> None:
    found = [Detection(noun, (0, 0, 9, 9), 0.9) for noun in ("cat", "cat", "dog")]
    request = Wanted("color_attr", (Clause("cat", 1, "red"), Clause("dog")))
    assert rules.asks_color(request, keep(found, "color_attr")) == found[1::-1]
