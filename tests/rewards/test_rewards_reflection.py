"""Rewards of edits that are taken back and of drawings that are corrected, on trajectories made by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image

from unison.answers import says_right
from unison.rewards.reflection import agreement, gain, gains, improvement, verdict_right
from unison.rewards.world import world as world_last
from unison.rewards.world import world_clean, world_cycle, world_first, world_first_strict, world_strict
from unison.types import TASKS, Item, Trajectory
from unison.world import scene as scenes
from unison.world.judge import judge_asked
from unison.world.render import render
from unison.world.scene import Object, Scene, caption

CIRCLE, SQUARE = Object("circle", "red", 0, 0), Object("square", "blue", 0, 2)
RIGHT, HALF, WRONG = (CIRCLE, SQUARE), (CIRCLE,), (Object("cross", "green", 2, 2),)
PROMPT = "a red circle and a blue square"
SAYS_RIGHT, SAYS_WRONG = (f"<think> so </think><answer> {x} </answer>" for x in ("right", "wrong, add one cross"))


def drawn(first: Scene, last: Scene, said: str = SAYS_RIGHT, **fields: str) -> Trajectory:
    item = Item("x", **({"prompt": PROMPT} | fields))  # type: ignore[arg-type]
    return Trajectory(item, (), texts=(said,), images=(render(first), render(last)))


# -- edits -----------------------------------------------------------------------------------------------------------


def test_an_edit_is_judged_by_its_target_and_its_return_by_its_source() -> None:
    before, after = (CIRCLE, SQUARE), (CIRCLE, Object("square", "green", 0, 2))
    captions = {"prompt": "make the square green", "source_caption": caption(before), "target_caption": caption(after)}
    rows = [
        drawn(after, before, **captions),
        drawn(before, before, **captions),  # nothing was done, and so nothing lost
        drawn(after, after, **captions),
    ]
    assert world_first(rows, None) == [1.0, 0.5, 1.0]
    assert world_first_strict(rows, None) == [1.0, 0.0, 1.0]
    assert world_cycle(rows, None) == [1.0, 1.0, 0.5]


def test_a_place_that_changed_is_no_longer_the_source() -> None:
    moved = (CIRCLE, Object("square", "blue", 2, 2))
    assert world_cycle([drawn(moved, moved, source_caption=caption(RIGHT))], None) == [0.5]
    assert world_cycle([drawn(moved, moved)], None) == [None]


def test_a_riddle_is_judged_by_what_it_means() -> None:
    row = drawn(WRONG, RIGHT, prompt="a shape without corners", target_caption=PROMPT)
    assert world_strict([row], None) == world_last([row], None) == [1.0]


@pytest.mark.parametrize("task", TASKS)
def test_captions_and_prompts_are_both_understood(task: str) -> None:
    rng = random.Random(task)
    for _ in range(20):
        description, scene = scenes.sample(rng, task, "train")
        image = render(scene)
        assert judge_asked(image, description.prompt).correct
        assert judge_asked(image, caption(scene)).correct
        assert not judge_asked(image, caption((*scene, Object("cross", "black", 1.0, 1.0)))).correct


def test_what_is_no_sentence_of_the_world_is_an_error() -> None:
    with pytest.raises(ValueError, match="not a sentence of the world"):
        judge_asked(render(RIGHT), "make the square green")


# -- clean pixels ----------------------------------------------------------------------------------------------------


def test_a_rendering_is_clean_whatever_it_shows() -> None:
    rng = random.Random(0)
    rows = [Trajectory(Item("x"), (), images=(render(scenes.sample(rng, task, "train")[1]),)) for task in TASKS]
    assert world_clean(rows, None) == [1.0] * len(TASKS)


def test_the_share_of_dirty_pixels_is_lost() -> None:
    pixels = np.asarray(render(RIGHT)).copy()
    pixels[24:] = (0, 255, 255)  # no colour of the world
    assert world_clean([Trajectory(Item("x"), (), images=(Image.fromarray(pixels),))], None) == [0.5]
    assert world_clean([Trajectory(Item("x"), ())], None) == [None]


# -- reflection ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("between", ["", " ", "\n", "\n\n "])
@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("right", True),
        ("Right", True),
        ("right.", True),
        ("RIGHT!\n", True),
        ("Wrong: add a circle", False),
        ("wrong, add a circle", False),
        ("wrong; add a circle", False),
        ("rightly so", None),
        ("not right", None),
        ("<answer>right", None),
        (" ", None),
    ],
)
def test_a_verdict_is_read_as_the_format_reward_reads_it(between: str, answer: str, right: bool | None) -> None:
    reply = f"<think>so</think>{between}<answer>{answer}</answer>"
    assert says_right(reply) is right
    assert says_right(reply + " indeed") is None


def test_a_verdict_is_right_where_it_agrees_with_the_judge_of_the_first_drawing() -> None:
    rows = [
        drawn(RIGHT, WRONG, SAYS_RIGHT),
        drawn(RIGHT, RIGHT, SAYS_WRONG),
        drawn(HALF, RIGHT, SAYS_RIGHT),
        drawn(HALF, RIGHT, SAYS_WRONG),
        drawn(RIGHT, RIGHT, "right"),  # out of the format
        drawn(WRONG, RIGHT, "wrong"),
    ]
    assert verdict_right(rows, None) == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert [says_right(row.texts[0]) for row in rows[-2:]] == [None, None]


def test_agreement_needs_a_reply_and_a_truth() -> None:
    silent = Trajectory(Item("x"), ())
    assert agreement([silent, drawn(RIGHT, RIGHT)], [1.0, None]) == [None, None]


def test_a_right_drawing_earns_most_if_it_stays_and_loses_if_it_is_made_worse() -> None:
    kept, corrected, left, spoilt = (
        drawn(*pair) for pair in ((RIGHT, RIGHT), (HALF, RIGHT), (HALF, HALF), (RIGHT, WRONG))
    )
    values = improvement([kept, corrected, left, spoilt], None)
    assert values[:3] == [1.0, 1.0, 0.0]
    assert values[3] is not None
    assert values[3] < 0


def test_a_gain_is_the_share_of_what_was_lacking_or_of_what_was_lost() -> None:
    assert gain(0.5, 0.75) == 0.5
    assert gain(0.5, 0.25) == -0.5
    assert gain(1, 0.75) == -0.25
    assert (gain(0, 0), gain(0, 1), gain(1, 0), gain(1, 1)) == (0, 1, -1, 1)
    assert gain(-5, 0.5) == 0.5  # GenEval's partial credit may be negative
    assert gains([None, 0.5], [1.0, None]) == [None, None]


def test_no_first_drawing_earns_more_than_a_right_one() -> None:
    """Else a model would learn to draw badly first."""
    for last in (0.0, 0.3, 0.6, 1.0):
        assert all(gain(first, last) <= gain(1, 1) for first in (0.0, 0.3, 0.6, 1.0))
