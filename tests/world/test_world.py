"""The embedded world: language, split, questions, and a judge that is ground truth."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from PIL import Image

from unison.types import COUNTS, RELATIONS, TASKS, Split
from unison.world.judge import judge, see
from unison.world.render import SIZE, render
from unison.world.scene import (
    COLORS,
    NUMBER_WORDS,
    SHAPES,
    Description,
    Object,
    Question,
    Scene,
    ask,
    ask_count,
    caption,
    check,
    is_held_out,
    parse_caption,
    parse_prompt,
    relation_of,
    sample,
)

MANY = 3000


@cache
def samples(split: Split) -> list[tuple[Description, Scene]]:
    rng = random.Random(f"test:{split}")
    return [sample(rng, TASKS[i % len(TASKS)], split) for i in range(MANY)]


@cache
def drawn() -> list[tuple[Description, Scene, Image.Image]]:
    both = [pair for pairs in zip(samples("train"), samples("eval"), strict=True) for pair in pairs]
    return [(description, scene, render(scene)) for description, scene in both[:MANY]]


def combination(scene: Scene, task: str) -> tuple:
    """What the split divides: (shape, colour), (shape, count), (shape, relation, shape) or two coloured shapes."""
    first, second = sorted(scene, key=lambda o: o.shape)[0], sorted(scene, key=lambda o: o.shape)[-1]
    if len(scene) == 1:
        return first.shape, first.color
    if first.shape == second.shape:
        return first.shape, len(scene)
    relation = relation_of((first.row, first.column), (second.row, second.column))
    by_relation, by_colors = (
        (first.shape, relation, second.shape),
        (first.shape, first.color, second.shape, second.color),
    )
    return {"position": by_relation, "color_attr": by_colors}.get(task, by_relation + by_colors)


def one(prompt: str, *objects: Object):
    return check(objects, parse_prompt(prompt))


# -- language ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_parsing_inverts_the_prompt(task: str):
    mine = [d for split in ("train", "eval") for d, _ in samples(split) if d.task == task]
    assert len(mine) == 2 * MANY // len(TASKS)
    assert all(parse_prompt(d.prompt) == d for d in mine)


def test_parsing_forgives_case_spaces_and_a_full_stop():
    assert parse_prompt(" A Red Circle. ") == parse_prompt("a red circle")


@pytest.mark.parametrize(
    "prompt", ["", "a cat", "red circle", "five circles", "a pink triangle", "a triangle and", "a big red triangle"]
)
def test_a_sentence_outside_the_grammar_is_an_error(prompt: str):
    with pytest.raises(ValueError, match=r"is not a sentence of the world.*red, yellow.*circle, square"):
        parse_prompt(prompt)


def test_parsing_inverts_the_caption():
    assert all(parse_caption(caption(scene)) == tuple(sorted(scene, key=by_place)) for _, scene in samples("train"))
    assert [parse_caption(text) for text in ("", "a red circle", "red circle nowhere", "pink circle middle")] == [
        None
    ] * 4


def by_place(thing: Object) -> tuple[float, float]:
    return thing.row, thing.column


def test_an_unknown_task_is_an_error_that_lists_the_tasks():
    with pytest.raises(ValueError, match=r"'painting' is not one of single_object, two_object"):
        sample(random.Random(0), "painting", "train")


# -- the split -----------------------------------------------------------------------------------------------


def test_train_and_eval_scenes_are_disjoint_by_construction():
    assert not any(is_held_out(scene) for _, scene in samples("train"))
    assert all(is_held_out(scene, description.task) for description, scene in samples("eval"))
    for task in TASKS:
        train = {combination(scene, task) for _, scene in samples("train")}
        assert not train & {combination(scene, task) for d, scene in samples("eval") if d.task == task}


@pytest.mark.parametrize("task", ["counting", "colors", "position", "color_attr"])
def test_prompts_that_name_a_combination_are_new_in_evaluation(task: str):
    train, test = ({d.prompt for d, _ in samples(split) if d.task == task} for split in ("train", "eval"))
    assert test
    assert not train & test


@pytest.mark.parametrize("split", ["train", "eval"])
def test_every_sampled_scene_satisfies_its_description(split: Split):
    assert all(check(scene, description).correct for description, scene in samples(split))


def test_every_part_of_the_world_occurs_in_training():
    things = [o for _, scene in samples("train") for o in scene]
    assert {o.shape for o in things} == {*SHAPES}
    assert {o.color for o in things} == {*COLORS}
    assert {len(scene) for d, scene in samples("train") if d.task == "counting"} == {*COUNTS}
    assert {d.relation for d, _ in samples("train")} == {*RELATIONS, None}


def test_every_task_has_held_out_scenes_of_several_kinds():
    kinds = {task: {combination(scene, task) for d, scene in samples("eval") if d.task == task} for task in TASKS}
    assert all(len(found) >= 3 for found in kinds.values())


# -- questions -----------------------------------------------------------------------------------------------


Ask = Callable[[random.Random, Description, Scene], Question]


def count(rng: random.Random, description: Description, scene: Scene) -> Question:
    return ask_count(rng, scene)


def questions(asking: Ask = ask) -> list[tuple[Description, Scene, Question]]:
    rng = random.Random("ask")
    return [(d, scene, asking(rng, d, scene)) for d, scene in samples("train") + samples("eval")]


def answer_from(scene: Scene, text: str) -> str:
    """Answers the question from the scene by a way of its own: by the shape that the question names."""
    named = [o for shape in SHAPES for o in scene if f" {shape}" in text and o.shape == shape]
    match text.split():
        case ["What", "shape", "is", "in", *_]:
            return scene[0].shape
        case ["What", "shape", *_]:
            return next(o.shape for o in scene if o.shape != named[0].shape)
        case ["How", "many", *_]:
            return NUMBER_WORDS[len(scene)]
        case ["Where", *_]:
            a, b = sorted(named, key=lambda o: text.index(o.shape))
            return str(relation_of((a.row, a.column), (b.row, b.column)))
        case _:
            return named[0].color


@pytest.mark.parametrize("asking", [ask, count])
def test_answers_are_right_about_the_scene(asking: Ask):
    wrong = [q for _, scene, q in questions(asking) if q.answer != answer_from(scene, q.text)]
    assert wrong == []


def satisfying(rng: random.Random, description: Description) -> Scene:
    """Any scene that the description asks for: what it leaves open is drawn at random."""
    while True:
        asked = [clause for clause in description.clauses for _ in range(clause.count)]
        cells = [divmod(cell, 3) for cell in rng.sample(range(9), len(asked))]
        scene = tuple(
            Object(c.shape, c.color or rng.choice(COLORS), *cell) for c, cell in zip(asked, cells, strict=True)
        )
        if check(scene, description).correct:
            return scene


@pytest.mark.parametrize("asking", [ask, count])
@pytest.mark.parametrize("task", TASKS)
def test_the_question_about_any_drawing_that_satisfies_the_prompt_has_the_items_answer(task: str, asking: Ask):
    """So a model may be asked about its own drawing, which nobody has seen."""
    rng = random.Random(f"own:{task}")
    asked = [(d, q) for d, _, q in questions(asking) if d.task == task]
    wrong = [
        (d.prompt, q.text, scene)
        for d, q in asked
        for scene in (satisfying(rng, d) for _ in range(5))
        if answer_from(scene, q.text) != q.answer
    ]
    assert len(asked) > 400
    assert wrong == []


def test_the_letter_points_at_the_answer_among_four_distinct_options():
    letters = set()
    for _, _, question in questions():
        assert len(set(question.options)) == 4
        assert question.options["ABCD".index(question.letter)] == question.answer
        assert f" {question.letter}. {question.answer}" in question.asked(lettered=True)
        letters.add(question.letter)
    assert letters == set("ABCD")


# -- the judge -----------------------------------------------------------------------------------------------


def test_the_judge_accepts_pictures_of_the_truth():
    wrong = [(d.prompt, judge(image, d).reason) for d, _, image in drawn() if not judge(image, d).correct]
    assert len(wrong) <= 0.005 * MANY, wrong[:10]


def test_the_judge_rejects_pictures_of_something_else():
    rng, tried, fooled = random.Random("wrong"), 0, []
    descriptions = [d for d, _, _ in drawn()]
    for _, scene, image in drawn():
        other = rng.choice(descriptions)
        if not check(scene, other).correct:
            tried += 1
            fooled += [(other.prompt, scene)] * judge(image, other).correct
    assert tried > 0.9 * MANY
    assert len(fooled) <= 0.005 * tried, fooled[:10]


def test_the_judge_rejects_near_misses():
    """One colour, one shape, one object or the relation changed: the errors that a drawing policy makes."""
    rng, fooled, tried = random.Random("near"), 0, 0
    for description, scene, _ in drawn():
        near = _near_miss(rng, scene)
        if not check(near, description).correct:
            tried += 1
            fooled += judge(render(near), description).correct
    assert tried > 0.5 * MANY
    assert fooled <= 0.005 * tried


def _near_miss(rng: random.Random, scene: Scene) -> Scene:
    first, *rest = scene
    changes = [
        (
            Object(rng.choice([s for s in SHAPES if s != first.shape]), first.color, first.row, first.column),
            *rest,
        ),
        (
            Object(first.shape, rng.choice([c for c in COLORS if c != first.color]), first.row, first.column),
            *rest,
        ),
        tuple(rest),
        tuple(Object(o.shape, o.color, p.row, p.column) for o, p in zip(scene, scene[::-1], strict=True)),
    ]
    return rng.choice(changes)


def test_the_judge_names_every_object_and_its_cell():
    for _, scene, image in drawn()[:300]:
        seen = sorted((o.shape, o.color, round(o.row), round(o.column)) for o in see(image))
        assert seen == sorted((o.shape, o.color, o.row, o.column) for o in scene)


def test_a_blank_or_noisy_picture_satisfies_no_prompt():
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    blank = render(())
    assert see(blank) == ()
    for task in TASKS:
        description, _ = sample(random.Random(0), task, "train")
        assert not judge(blank, description).correct
        assert not judge(Image.fromarray(noise), description).correct


def test_the_judge_reads_enlarged_pictures():
    right = sum(judge(image.resize((192, 192)), d).correct for d, _, image in drawn()[:300])
    assert right >= 295


def test_partial_credit_grows_with_what_is_right():
    triangle, circle = Object("triangle", "red", 0, 0), Object("circle", "blue", 0, 2)
    prompt = "a red triangle and a blue circle"
    nothing = one(prompt).score
    half = one(prompt, triangle).score
    shape = one(prompt, triangle, Object("circle", "green", 0, 2)).score
    extra = one(prompt, triangle, circle, Object("cross", "red", 2, 2)).score
    right = one(prompt, triangle, circle).score
    assert 0 <= nothing < half < shape < extra < right == 1


def test_partial_credit_grows_as_the_count_comes_closer():
    scores = [
        one("four triangles", *[Object("triangle", "red", *divmod(i, 3)) for i in range(n)]).score for n in range(6)
    ]
    assert scores[:5] == sorted(set(scores[:5]))
    assert scores[5] < scores[4] == 1


def test_a_wrong_relation_keeps_the_credit_of_the_objects():
    left, right = Object("triangle", "red", 1, 0), Object("cross", "red", 1, 2)
    swapped = one("a cross left of a triangle", left, right)
    assert one("a triangle left of a cross", left, right).correct
    assert not swapped.correct
    assert one("a cross left of a triangle", left).score < swapped.score < 1


@pytest.mark.parametrize(
    ("prompt", "objects", "reason"),
    [
        ("a red triangle", [("triangle", "red", 0, 0)], "as asked"),
        ("a red triangle", [("triangle", "blue", 0, 0)], "triangle is blue, expected red"),
        ("three triangles", [("triangle", "blue", 0, 0)], "1 triangle, expected 3"),
        ("a triangle", [("triangle", "red", 0, 0), ("cross", "blue", 2, 2)], "extra: blue cross"),
        (
            "a triangle above a cross",
            [("triangle", "red", 0, 0), ("cross", "red", 0, 2)],
            "triangle is left of, expected above",
        ),
        (
            "a triangle above a cross",
            [("triangle", "red", 0, 0), ("cross", "red", 2, 2)],
            "triangle is on a diagonal, expected above",
        ),
        ("a triangle above a cross", [("triangle", "red", 0, 0)], "0 cross, expected 1; nothing is above anything"),
    ],
)
def test_the_verdict_says_what_is_wrong(prompt: str, objects: list[tuple], reason: str):
    scene = tuple(Object(*values) for values in objects)
    assert check(scene, parse_prompt(prompt)).reason == reason
    assert judge(render(scene), parse_prompt(prompt)).reason == reason


@pytest.mark.parametrize("prompt", ["a circle", "two crosses", "a red circle", "a circle above a cross"])
def test_an_empty_picture_earns_nothing(prompt: str):
    assert judge(render(()), parse_prompt(prompt)).score == 0
