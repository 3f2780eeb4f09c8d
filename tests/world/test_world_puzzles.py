"""Puzzles and verdicts of the world are right, say so themselves, and keep evaluation out of training."""

import random

import pytest

from unison.answers import FORMAT, says_right
from unison.world import puzzles, verdicts
from unison.world import scene as scenes
from unison.world.scene import Clause, Description, Object

RED_CIRCLE, BLUE_SQUARE = Object("circle", "red", 0, 0), Object("square", "blue", 0, 2)


@pytest.mark.parametrize("kind", puzzles.KINDS)
def test_no_puzzle_is_on_both_sides_of_the_split(kind: str) -> None:
    rng = random.Random(0)
    train, held_out = ({puzzles.sample(rng, split, kind).text for _ in range(1500)} for split in ("train", "eval"))
    assert len(train) > 2 * len(held_out) > 0
    assert not train & held_out


def test_an_order_puzzle_is_solved_by_its_clues() -> None:
    rng = random.Random(1)
    for _ in range(200):
        puzzle = puzzles.sample(rng, "train", "order")
        clues, _, question = puzzle.text.partition(". ")
        pairs = [clue.removeprefix("the ").split(" is left of the ") for clue in clues.split(", ")]
        outer = {a for a, _ in pairs} ^ {b for _, b in pairs}
        last = {b for _, b in pairs} & outer
        assert puzzle.answer in (last if "far right" in question else outer - last)


def test_a_swap_gives_each_shape_the_color_of_the_other() -> None:
    rng = random.Random(2)
    for _ in range(200):
        puzzle = puzzles.sample(rng, "train", "swap")
        told, _, asked = puzzle.text.partition(". They swap colors. What color is the ")
        colors = dict(part.removeprefix("the ").split(" is ") for part in told.split(", "))
        own = colors.pop(asked.removesuffix("?"))
        assert [puzzle.answer] == list(colors.values()) != [own]


def test_an_unknown_kind_of_puzzle_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match="'maze' is not one of total, order, swap"):
        puzzles.sample(random.Random(0), "train", "maze")


def test_questions_about_pictures_count_on_or_look_for_the_outermost() -> None:
    rng = random.Random(0)
    scene = (RED_CIRCLE, BLUE_SQUARE)
    made = {(p.text, p.answer) for p in (puzzles.about(rng, scene) for _ in range(300))}
    assert ("How many shapes are there with three more?", "five") in made
    assert ("What color is the shape that is furthest left?", "red") in made
    assert ("What color is the shape that is furthest right?", "blue") in made
    assert not any("furthest up" in text or "furthest down" in text for text, _ in made)  # both are in one row


def test_a_verdict_is_right_exactly_where_the_judge_says_so() -> None:
    rng = random.Random(0)
    seen = set()
    for _ in range(2000):
        made = verdicts.sample(rng, "train")
        reply = verdicts.verdict(made.shown, made.description).reply
        right = scenes.check(made.shown, made.description).correct
        assert says_right(reply) is right
        assert FORMAT.fullmatch(reply)
        seen.add(right)
    assert seen == {True, False}


@pytest.mark.parametrize(
    ("scene", "clauses", "relation", "corrections"),
    [
        ((BLUE_SQUARE,), (Clause(1, "circle", "red"),), None, ("remove the blue square", "add one red circle")),
        ((RED_CIRCLE,), (Clause(1, "circle", "blue"),), None, ("make the circle blue",)),
        ((RED_CIRCLE,), (Clause(3, "circle"),), None, ("add two circles",)),
        (
            (RED_CIRCLE, BLUE_SQUARE),
            (Clause(1, "circle"), Clause(1, "square")),
            "right of",
            ("move the circle right of the square",),
        ),
        ((RED_CIRCLE,), (Clause(1, "circle", "red"),), None, ()),
    ],
)
def test_corrections_say_what_is_to_be_done(
    scene: scenes.Scene, clauses: tuple[Clause, ...], relation: str | None, corrections: tuple[str, ...]
) -> None:
    assert verdicts.verdict(scene, Description("any", clauses, relation)).corrections == corrections


@pytest.mark.parametrize(
    "reply", ["right", "<think> x </think><answer> maybe </answer>", "<answer> right </answer>", ""]
)
def test_a_reply_out_of_the_format_is_no_verdict(reply: str) -> None:
    assert says_right(reply) is None


def test_training_shows_no_held_out_scene() -> None:
    rng = random.Random(3)
    assert not any(scenes.is_held_out(verdicts.sample(rng, "train").shown) for _ in range(1000))
