"""Rewards that read a reply: answers in every form that people and models write them."""

from __future__ import annotations

import random
import threading
import time

import pytest

from unison.answers import REPLY_FORMAT as SUFFIX
from unison.answers import is_formatted, is_right, parse_answer
from unison.rewards.mathematics import math
from unison.rewards.text import accuracy, accuracy_soft, format_
from unison.types import TASKS, AnswerKind, Item, Trajectory
from unison.world.scene import ask, sample

INLINE = "What color is the circle? A. red B. blue C. green D. black"
LINES = INLINE.replace(" A.", "\nA.").replace(" B.", "\nB.").replace(" C.", "\nC.").replace(" D.", "\nD.")
QUESTIONS = {
    "inline": INLINE,
    "inline with the world's suffix": f"{INLINE}\n{SUFFIX}",
    "lines": LINES,
    "lines, then a request": f"{LINES}\n{SUFFIX}",
    "inline, then a request on its own line": f"{INLINE}\nThink first.",
    "parentheses": "What color is the circle? (A) red (B) blue (C) green (D) black",
    "brackets after": "What color is the circle? A) red B) blue C) green D) black",
}


def choice(answer: str = "B", question: str = INLINE) -> Item:
    return Item("x", question=question, answer=answer, kind="multiple_choice")


def tagged(answer: str) -> str:
    return f"<think> it is so </think><answer> {answer} </answer>"


def said(*replies: str, answer: str | None = "B", kind: AnswerKind = "multiple_choice") -> Trajectory:
    return Trajectory(Item("x", question=INLINE, answer=answer, kind=kind), (), texts=replies)


# -- the answer in a reply ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("<think> a </think><answer> B </answer>", "B"),
        ("<answer>\nleft of\n</answer>", "left of"),
        ("first <answer> B </answer> then", "B"),
        ("<answer> B </answer><answer> C </answer>", "B"),
        ("<answer></answer>", ""),
        ("  B  ", "B"),
        ("<answer> B", "<answer> B"),
        ("", ""),
    ],
)
def test_the_answer_is_what_stands_in_the_tags_or_the_whole_reply(reply: str, answer: str) -> None:
    assert parse_answer(reply) == answer


# -- the format ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        "<think> a </think><answer> B </answer>",
        "<think>a</think><answer>B</answer>",
        "<think>\nline one\nline two\n</think>\n\n<answer>\nB\n</answer>\n",
        "  <think> a </think> <answer> B </answer>  ",
    ],
)
def test_a_think_block_then_an_answer_block_is_the_format(reply: str) -> None:
    assert is_formatted(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "B",
        "<answer> B </answer>",
        "<think> a </think>",
        "<think> a </think> B",
        "<think></think><answer> B </answer>",
        "<think> a </think><answer> \n </answer>",
        "<answer> B </answer><think> a </think>",
        "well: <think> a </think><answer> B </answer>",
        "<think> a </think> so <answer> B </answer>",
        "<think> a </think><answer> B </answer> done",
        "<think> a </think><answer> B </answer><answer> C </answer>",
        "<think> a </think><think> b </think><answer> B </answer>",
        "<think> <think> a </think> </think><answer> B </answer>",
        "<think> a <answer> B </answer> </think><answer> B </answer>",
        "<think> a </think><answer> <answer> B </answer> </answer>",
        "<think> a </think><answer> B ",
        "<THINK> a </THINK><ANSWER> B </ANSWER>",
    ],
)
def test_everything_else_is_not(reply: str) -> None:
    assert not is_formatted(reply)


# -- multiple choice ----------------------------------------------------------------------------------------------

RIGHT = [
    "B",
    "b",
    "B.",
    "(B)",
    "B)",
    "B:",
    "B. blue",
    "B blue",
    "(B) blue",
    "B) blue",
    "B: blue",
    "b. Blue.",
    "blue",
    "BLUE.",
]
WRONG = ["A", "red", "A. blue", "B. red", "B or C", "BB", "", " ", "lue", "blue and red", "ABCD"]


@pytest.mark.parametrize("form", QUESTIONS)
@pytest.mark.parametrize("tags", [True, False], ids=["tagged", "bare"])
def test_a_letter_its_option_or_both_are_right(form: str, tags: bool) -> None:
    item = choice(question=QUESTIONS[form])
    write = tagged if tags else str
    assert [reply for reply in RIGHT if not is_right(write(reply), item)] == []
    assert [reply for reply in WRONG if is_right(write(reply), item)] == []


@pytest.mark.parametrize("form", QUESTIONS)
def test_the_last_option_ends_where_the_request_for_a_format_starts(form: str) -> None:
    item = choice("D", QUESTIONS[form])
    assert is_right("black", item)
    assert is_right("D. black", item)
    assert not is_right("D. red", item)


@pytest.mark.parametrize("truth", ["B", "b", "(B)", "B.", "B. blue", "B) blue", "blue", "Blue."])
def test_the_truth_may_be_written_in_any_of_these_forms(truth: str) -> None:
    for reply in ("B", "blue", "B. blue"):
        assert is_right(reply, choice(truth))
    for reply in ("A", "C", "green"):
        assert not is_right(reply, choice(truth))


def test_a_letter_as_the_truth_is_a_letter_even_where_options_are_letters() -> None:
    item = choice("A", "Which letter is it? A. B B. A")
    assert is_right("A. B", item)
    assert not is_right("B. A", item)


def test_options_that_cannot_be_read_leave_the_letter() -> None:
    item = choice(question="Which one is it?")
    assert is_right("B", item)
    assert is_right("(b).", item)
    assert not is_right("A", item)
    assert not is_right("", item)


def test_options_of_several_words_are_read_whole() -> None:
    item = choice("C", "Where is it? A. left of B. right of C. on the big table D. below\n" + SUFFIX)
    assert is_right("on the big table", item)
    assert is_right("C. on the big table", item)
    assert not is_right("on the", item)


def test_every_question_of_the_world_accepts_its_answer_and_rejects_the_others() -> None:
    rng = random.Random(0)
    for i in range(120):
        description, scene = sample(rng, TASKS[i % len(TASKS)], "train")
        question = ask(rng, description, scene)
        options = choice(question.letter, f"{question.asked(lettered=True)}\n{SUFFIX}")
        free = Item("x", question=f"{question.text}\n{SUFFIX}", answer=question.answer)
        for letter, option in zip("ABCD", question.options, strict=True):
            right = option == question.answer
            assert is_right(tagged(option), free) == right
            for reply in (letter, option, f"{letter}. {option}", f"({letter}) {option}"):
                assert is_right(tagged(reply), options) == right, (options.question, reply)


# -- open-ended ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "truth"),
    [
        ("red", "red"),
        ("Red.", "red"),
        ("left  of", "left of"),
        ("three", "3"),
        ("3", "Three"),
        ("Three cats.", "3 cats"),
        ("twelve", "12"),
        (tagged("red"), "red"),
        ("<answer>red", "<answer>red"),
    ],
)
def test_open_answers_are_compared_without_case_dots_and_number_words(reply: str, truth: str) -> None:
    assert is_right(reply, Item("x", question="?", answer=truth))


@pytest.mark.parametrize(
    ("reply", "truth"), [("dark red", "red"), ("", "red"), ("2", "three"), ("13", "three"), ("of left", "left of")]
)
def test_other_open_answers_are_wrong(reply: str, truth: str) -> None:
    assert not is_right(reply, Item("x", question="?", answer=truth))


# -- the rewards --------------------------------------------------------------------------------------------------


def test_the_last_reply_is_the_one_that_counts() -> None:
    assert accuracy([said("A", "B"), said("B", "A")], None) == [1.0, 0.0]
    assert format_([said("A", tagged("B")), said(tagged("B"), "A")], None) == [1.0, 0.0]


def test_without_a_reply_or_an_answer_there_is_nothing_to_judge() -> None:
    assert accuracy([said(), said("B", answer=None)], None) == [None, None]
    assert format_([said(), said(tagged("B"), answer=None)], None) == [None, 1.0]


def test_accuracy_and_format_are_judged_apart() -> None:
    both, bare, wrong = said(tagged("B")), said("B"), said(tagged("A"))
    assert accuracy([both, bare, wrong], None) == [1.0, 1.0, 0.0]
    assert format_([both, bare, wrong], None) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("reply", "truth", "credit"),
    [
        ("a red circle", "a red circle", 1),
        ("red circle", "a red circle", 2 * 2 / 5),
        ("the circle, red", "red circle", 2 * 2 / 5),
        ("Red!", "red", 1),
        ("two cats", "2 dogs", 2 * 1 / 4),
        ("red red red", "red", 2 * 1 / 4),
        ("blue", "red", 0),
        ("", "red", 0),
        ("!", "?", 0),
        (tagged("dark red"), "red", 2 * 1 / 3),
    ],
)
def test_soft_credit_is_the_f1_of_the_words(reply: str, truth: str, credit: float) -> None:
    assert accuracy_soft([said(reply, answer=truth, kind="open_ended")], None) == [pytest.approx(credit)]


def test_soft_credit_gives_the_full_point_wherever_the_answer_is_right_and_options_no_part() -> None:
    replies = [*RIGHT, *WRONG, tagged("B"), "A. blue"]
    rows = [said(reply) for reply in replies]
    assert accuracy_soft(rows, None) == accuracy(rows, None)
    assert accuracy_soft([said(), said("B", answer=None)], None) == [None, None]


# -- mathematics --------------------------------------------------------------------------------------------------


def solved(answer: str, reply: str) -> float | None:
    return math([said(reply, answer=answer, kind="open_ended")], None)[0]


@pytest.mark.parametrize(
    ("answer", "given"),
    [
        ("72", "72"),
        ("She sold 48 / 2 = 24.\n#### 72", "72 clips"),
        ("1/2", "0.5"),
        (r"\frac{1}{2}", "2/4"),
        ("1,000", "1000"),
        ("18", "$18.00"),
        ("x^2+2x+1", "(x+1)^2"),
        (r"\sqrt{2}", "sqrt(2)"),
        ("5", "x = 5"),
        ("(1, 2)", "(1,2)"),
        ("0.333333", "1/3"),
        ("72", "The answer is 72."),
    ],
)
def test_answers_equal_as_mathematics_are_right(answer: str, given: str) -> None:
    assert solved(answer, tagged(given)) == 1


@pytest.mark.parametrize(
    ("answer", "given"),
    [("72", "27"), ("(1,2)", "2"), ("2", "(1, 2)"), ("3", "1/3"), ("x+1", "x-1"), ("72", ""), ("72", "no idea")],
)
def test_answers_that_differ_are_wrong(answer: str, given: str) -> None:
    assert solved(answer, tagged(given)) == 0


def test_without_tags_the_last_result_counts() -> None:
    assert solved("72", "First 24, then 48, so 72") == 1
    assert solved("24", "First 24, then 48, so 72") == 0


def test_what_is_no_mathematics_cannot_be_judged() -> None:
    assert solved("on the red sofa", tagged("on the red sofa")) is None
    assert math([said(answer="72"), said("72", answer=None)], None) == [None, None]


@pytest.mark.parametrize("given", ["9^9^9^9^9", "7^{7^{7^{7^7}}}", "9**9**9**9"])
def test_a_power_of_powers_does_not_stop_the_run(given: str) -> None:
    start = time.perf_counter()
    assert solved("7", tagged(given)) == 0
    assert time.perf_counter() - start < 4


def test_answers_are_judged_alike_outside_the_main_thread() -> None:
    found: list[float | None] = []
    thread = threading.Thread(target=lambda: found.extend((solved("1/2", tagged("0.5")), solved("1/2", tagged("2")))))
    thread.start()
    thread.join()
    assert found == [1, 0]
