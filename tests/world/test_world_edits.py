"""Edits and riddles of the world, and the tiny MetaQuery that is pretrained on them."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from unison.types import TASKS
from unison.world import edits, riddles, scene
from unison.world.edits import KINDS, Edit
from unison.world.judge import see
from unison.world.render import render
from unison.world.scene import COLORS, SHAPES


def drawn(split: scene.Split, kind: str, count: int = 100) -> list[Edit]:
    rng = random.Random(kind)
    return [edits.sample(rng, split, kind) for _ in range(count)]


# -- edits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_judge_sees_what_an_edit_leads_to(kind: str):
    for edit in drawn("train", kind):
        verdict = edits.check(see(render(edit.after)), edit.after)
        assert verdict.correct, verdict.reason
        assert verdict.score == 1
        undone = edits.check(see(render(edit.before)), edit.after)
        assert not undone.correct
        assert undone.score < 1


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_names_one_object_of_its_scenes(kind: str):
    for edit in drawn("train", kind):
        for before, said in ((edit.before, edit.instruction), (edit.after, edit.reverse)):
            shapes = [o.shape for o in before]
            assert len(set(shapes)) == len(shapes)
            named = re.findall("the (circle|square|triangle|cross)", said)
            assert len(named) == (not said.startswith("add"))
            assert all(name in shapes for name in named)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reverse_of_an_edit_is_an_edit_of_its_own(kind: str):
    """Words apart, an instruction and its reverse are of one form, so that editing there and back is one skill."""
    form = re.compile("|".join((*SHAPES, *COLORS, *sorted(scene.PLACES, key=len, reverse=True), "an?")))
    forms = {form.sub("_", edit.instruction) for k in KINDS for edit in drawn("train", k)}
    assert {form.sub("_", edit.reverse) for edit in drawn("train", kind)} <= forms


def test_training_edits_hold_no_evaluation_scene():
    for kind in KINDS:
        for edit in drawn("train", kind):
            assert not scene.is_held_out(edit.before)
            assert not scene.is_held_out(edit.after)
        assert all(scene.is_held_out(edit.after) for edit in drawn("eval", kind))


def test_a_half_right_edit_earns_half():
    edit = next(e for e in drawn("train", "recolor") if len(e.after) == 2)
    verdict = edits.check(edit.before, edit.after)
    assert verdict.score == 0.5
    assert verdict.reason == f"missing: {edit.after[0].color} {edit.after[0].shape}; extra: " + (
        f"{edit.before[0].color} {edit.before[0].shape}"
    )
    assert edits.check((), edit.after).score == 0


def test_an_unknown_kind_of_edit_is_refused():
    with pytest.raises(ValueError, match="'paint' is not one of recolor"):
        edits.sample(random.Random(0), "train", "paint")


# -- riddles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_riddle_names_neither_shape_nor_colour_and_its_answer_is_the_prompt(task: str):
    rng = random.Random(0)
    for _ in range(50):
        description, _ = scene.sample(rng, task, "train")
        riddle = riddles.riddle(description)
        names = (*SHAPES, *COLORS, *scene.PLURALS.values())
        assert not any(re.search(rf"\b{name}\b", riddle.prompt) for name in names)
        assert scene.parse_prompt(riddle.answer) == description
        for clause in description.clauses:
            assert clause.shape in riddle.thought
            assert clause.color is None or clause.color in riddle.thought


def test_riddles_of_different_prompts_differ():
    prompts: dict[str, str] = {}
    rng = random.Random(0)
    for i in range(600):
        riddle = riddles.riddle(scene.sample(rng, TASKS[i % 6], "train")[0])
        assert prompts.setdefault(riddle.prompt, riddle.answer) == riddle.answer


# -- pretraining ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_makes_a_metaquery_that_can_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A few steps of every stage; an interrupted run goes on after the stages that it finished."""
    import json

    from unison.config import PolicyConfig
    from unison.policies import load_policy
    from unison.pretrain import metaquery as made
    from unison.types import Context, Sampling

    monkeypatch.setattr(made, "judge_agreement", lambda repaint: repaint(torch.zeros(1, 3, 48, 48)).mean().item())
    config = made.MetaQueryPretrainConfig(
        out=tmp_path,
        eyes=made.EyesConfig(steps=4, vision_steps=4, images=30, batch_size=4),
        speech=made.SpeechConfig(
            steps=3, cycle=3, answers=2, riddles=2, puzzles=2, multi_step=2, verdicts=2, snapshot_every=3
        ),
        brush=made.BrushConfig(steps=3, cycle=3, drawings=2, edits=2, snapshot_every=3),
    )
    folder = made.pretrain_metaquery(config, held_out_items=6)
    policy = load_policy(PolicyConfig(str(folder)))
    picture = render(drawn("train", "move", 1)[0].before)
    drawing = policy.draw([Context((picture, "make the circle red"))], Sampling(steps=2), [0])
    assert policy.decode(drawing)[0].size == (48, 48)
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) < 8e6
    lines = [json.loads(line) for line in (tmp_path / "pretrain.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"autoencoder", "vision", "language", "diffusion", "held-out"}
    assert {"edits", "drawing", "answer"} <= lines[-1].keys()

    again = replace(config, brush=replace(config.brush, jointly=True))
    made.pretrain_metaquery(again, held_out_items=6)
    added = [json.loads(line) for line in (tmp_path / "pretrain.jsonl").read_text().splitlines()][len(lines) :]
    assert {line["stage"] for line in added} == {"autoencoder", "diffusion", "held-out"}
    assert {"draw", "edit", "answer", "riddle", "puzzle", "multi-step", "verdict"} <= added[1].keys()


def test_an_autoencoder_s_latents_are_brought_to_unit_variance():
    from unison.policies.metaquery import diffusion
    from unison.pretrain.metaquery import EyesConfig, build_autoencoder, measure_scale
    from unison.pretrain.vq import to_pixels, training_images

    torch.manual_seed(0)
    vae = build_autoencoder((8, 8, 8, 16))
    measure_scale(vae, EyesConfig())
    with torch.no_grad():
        latents = diffusion.to_latents(vae, to_pixels(training_images(120, 5)))
    assert latents.shape == (120, 8, 6, 6)
    assert latents.square().mean().sqrt().item() == pytest.approx(1, abs=0.1)


def test_the_vision_tower_is_taught_in_the_order_of_its_tokens():
    """Each token spans four patches; the tower sees a patch of one colour in the token that the codes say."""
    from einops import rearrange

    from unison.policies.metaquery.layout import see_pixels
    from unison.pretrain.metaquery import SIDE, build_image_processor
    from unison.pretrain.vq import PATCH

    values = torch.arange(SIDE * SIDE).float().view(SIDE, SIDE)
    picture = values.repeat_interleave(PATCH, 0).repeat_interleave(PATCH, 1)[None].expand(3, -1, -1) / SIDE**2
    seen = see_pixels(picture, build_image_processor()).patches.mean(1)
    codes = rearrange(values, "(h m) (w n) -> (h w m n)", m=2, n=2)
    assert torch.equal(seen.argsort(), codes.argsort())
