"""GenEval-style prompts: their English, their questions, and what keeps them apart from GenEval's own."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from unison.answers import is_right
from unison.config import DataConfig
from unison.data import Items, open_items
from unison.data.geneval import read_wanted
from unison.data.objects import COCO, COLORS, IRREGULAR, MORE, OBJECTS, Phrase, article, plural
from unison.data.prompts import PromptItems, Request, draw, held_out, read_excluded
from unison.scenarios import SCENARIOS
from unison.types import RELATIONS, TASKS, Clause, Item, Wanted

MANY = 3000
RIGHT_OF = {"class": "dog", "count": 1, "position": ["right of", 0]}


def first(items: Items) -> list[Item]:
    return [items[i] for i in range(len(items))]


def items(**fields: Any) -> PromptItems:
    return PromptItems(**({"split": "train", "suffix": "", "seed": 0, "size": MANY} | fields))


# -- English -------------------------------------------------------------------------------------------------------


def test_there_are_160_names_half_of_them_cocos() -> None:
    assert (len(COCO), len(MORE), len({*OBJECTS})) == (80, 80, 160)


@pytest.mark.parametrize(
    ("noun", "many"),
    [
        ("person", "people"), ("sheep", "sheep"), ("goose", "geese"), ("computer mouse", "computer mice"),
        ("knife", "knives"), ("loaf", "loaves"), ("scarf", "scarves"), ("cactus", "cacti"), ("tomato", "tomatoes"),
        ("bus", "buses"), ("wine glass", "wine glasses"), ("sandwich", "sandwiches"), ("toothbrush", "toothbrushes"),
        ("fox", "foxes"), ("box", "boxes"), ("octopus", "octopuses"), ("cherry", "cherries"), ("key", "keys"),
        ("strawberry", "strawberries"), ("monkey", "monkeys"), ("giraffe", "giraffes"), ("tv", "tvs"),
        ("stop sign", "stop signs"), ("hot dog", "hot dogs"), ("butterfly", "butterflies"), ("compass", "compasses"),
    ],
)  # fmt: skip
def test_plurals(noun: str, many: str) -> None:
    assert noun in OBJECTS
    assert plural(noun) == many


def test_irregular_plurals_are_of_names_that_there_are() -> None:
    assert {*IRREGULAR} <= {*OBJECTS}


@pytest.mark.parametrize(
    ("words", "expected"),
    [("umbrella", "an"), ("hourglass", "an"), ("orange bus", "an"), ("unicycle", "a"), ("ukulele", "a"), ("car", "a")],
)
def test_articles_go_by_the_sound(words: str, expected: str) -> None:
    assert article(words) == expected


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        (Phrase("car"), "a car"),
        (Phrase("car", color="orange"), "an orange car"),
        (Phrase("umbrella", color="red"), "a red umbrella"),
        (Phrase("person", 3), "three people"),
        (Phrase("scissors"), "a pair of scissors"),
        (Phrase("skis", 2), "two pairs of skis"),
        (Phrase("scissors", color="blue"), "a pair of blue scissors"),
        (Phrase("broccoli", 4), "four heads of broccoli"),
    ],
)
def test_phrases(phrase: Phrase, expected: str) -> None:
    assert str(phrase) == expected


# -- questions -----------------------------------------------------------------------------------------------------

BENCH, OWL, SKIS = Phrase("bench"), Phrase("owl"), Phrase("skis")


@pytest.mark.parametrize(
    ("request_", "prompt", "question", "answer"),
    [
        (Request("single_object", (OWL,)), "an owl", "What is the main item in this image?", "owl"),
        (
            Request("two_object", (BENCH, OWL)),
            "a bench and an owl",
            "What are two items in this image?",
            "There is a bench and an owl",
        ),
        (Request("counting", (Phrase("goose", 3),)), "three geese", "How many items in this image?", "three geese"),
        (Request("counting", (Phrase("skis", 2),)), "two pairs of skis", "How many items in", "two pairs of skis"),
        (
            Request("colors", (Phrase("car", color="pink"),)),
            "a pink car",
            "What is the color of the object?",
            "pink",
        ),
        (
            Request("position", (BENCH, OWL), "left of"),
            "a bench left of an owl",
            "What are two objects and What is position relationship between two main items? Use one sentence.",
            "The bench is left of the owl",
        ),
        (Request("position", (SKIS, OWL), "above"), "a pair of skis above an owl", "", "The skis are above the owl"),
        (
            Request("color_attr", (Phrase("bench", color="red"), Phrase("owl", color="white"))),
            "a red bench and a white owl",
            "What are two objects and the colors of two objects in the image? Use one sentence",
            "The bench is red and the owl is white",
        ),
    ],
)
def test_questions_and_answers_are_those_of_the_paper(
    request_: Request, prompt: str, question: str, answer: str
) -> None:
    assert str(request_) == prompt
    assert request_.question[0].startswith(question)
    assert request_.question[1] == answer


def test_the_answer_of_every_item_is_accepted_as_its_own() -> None:
    for item in items():
        assert item.answer
        assert is_right(f"{item.answer.upper()}.", item)


# -- items ---------------------------------------------------------------------------------------------------------


def test_an_item_depends_on_split_seed_and_number_alone() -> None:
    forward, backward = [items()[i] for i in range(200)], [items(size=10**9)[i] for i in reversed(range(200))]
    assert [fields(x) for x in forward] == [fields(x) for x in backward[::-1]]
    assert [x.prompt for x in forward] != [items(seed=1)[i].prompt for i in range(200)]


def fields(item: Item) -> tuple[str | None, ...]:
    return item.id, item.prompt, item.question, item.answer, item.task


def test_items_take_the_categories_in_turn_and_use_every_word() -> None:
    found = first(items(size=12_000))
    assert Counter(x.task for x in found) == dict.fromkeys(TASKS, 2000)
    text = " | ".join(str(x.prompt) for x in found)
    words = {*(noun for noun in OBJECTS if re.search(rf"\b{noun}\b", text))}
    assert words == {*OBJECTS}
    assert all(f" {word} " in text for word in (*COLORS, *RELATIONS, "two", "three", "four"))
    assert len({x.id for x in found}) == len(found)


def test_held_out_meanings_never_occur_in_training() -> None:
    rng = random.Random(0)
    meanings = {draw(rng, task).meaning for task in TASKS for _ in range(1000)}
    assert 0.05 < sum(map(held_out, meanings)) / len(meanings) < 0.15
    texts = {split: {bare(x) for x in items(split=split, size=12_000)} for split in ("train", "eval")}
    assert not texts["train"] & texts["eval"]


def bare(item: Item) -> str:
    """What is asked for without its sentence, as the category's answer tells it."""
    return f"{item.task}: {item.answer}" if item.task != "colors" else f"colors: {item.prompt}"


def test_prompts_are_a_choice_of_training_data_for_a_model_that_improves_itself() -> None:
    found = open_items("prompts", "train", DataConfig(train="prompts", question_suffix="Be brief."), 0, 60)
    first = found[0]
    assert len(found) == 60
    assert first.image is None
    assert str(first.question).endswith("\nBe brief.")
    assert all(getattr(first, name) for name in SCENARIOS["self_improve"].fields)
    with pytest.raises(IndexError):
        found[60]


# -- GenEval's test prompts ----------------------------------------------------------------------------------------


def geneval_row(rng: random.Random, task: str, noun: str = "") -> dict[str, Any]:
    """A test prompt in the published file's format, from COCO's names alone."""
    request = draw(rng, task)
    while any(p.noun not in COCO for p in request.phrases):
        request = draw(rng, task)
    phrases = (Phrase(noun),) if noun else request.phrases
    include: list[dict[str, Any]] = [{"class": p.noun, "count": p.count} for p in phrases]
    for thing, phrase in zip(include, phrases, strict=True):
        if phrase.color:
            thing["color"] = phrase.color
    if request.relation:  # the published file lists the object that the other one is placed by first
        include = [include[1], include[0] | {"position": [request.relation, 0]}]
    return {"tag": task, "include": include, "prompt": f"a photo of {phrases[0] if noun else request}"}


@pytest.fixture(scope="module")
def geneval(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """553 rows as in the published file: every COCO object alone, and about a hundred of each other category."""
    rng = random.Random("geneval")
    rows = [geneval_row(rng, "single_object", noun) for noun in COCO]
    sizes = {"two_object": 99, "counting": 80, "colors": 94, "position": 100, "color_attr": 100}
    rows += [geneval_row(rng, task) for task, size in sizes.items() for _ in range(size)]
    path = tmp_path_factory.mktemp("geneval") / "evaluation_metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_no_prompt_is_a_sentence_of_geneval(geneval: Path) -> None:
    """Without the file."""
    sentences = {json.loads(line)["prompt"] for line in geneval.read_text().splitlines()}
    assert len(geneval.read_text().splitlines()) == 553
    assert not {item.prompt for item in items(size=12_000)} & sentences


def test_with_the_file_no_prompt_asks_for_what_a_test_prompt_asks_for(geneval: Path) -> None:
    source, config = f"prompts:{geneval}", DataConfig()
    rows = [json.loads(line) for line in geneval.read_text().splitlines()]
    asked = {row["prompt"].removeprefix("a photo of ") for row in rows}
    for split in ("train", "eval"):
        found = [str(item.prompt) for item in open_items(source, split, config, 0, 12_000)]
        assert not {exact(prompt) for prompt in found} & asked
    single = [x for x in open_items(source, "train", config, 0, 6000) if x.task == "single_object"]
    assert {x.answer for x in single} <= {*MORE}
    without = {exact(str(x.prompt)) for x in items(size=12_000)}
    assert without & asked, "the file would have changed nothing"


def exact(prompt: str) -> str:
    """What is asked for, without the sentence around it."""
    for opening in ("a picture of ", "an image of ", "a snapshot showing ", "a scene with "):
        prompt = prompt.removeprefix(opening)
    return prompt.removesuffix(" in plain view")


def test_prompts_for_a_detector_leave_out_the_category_that_the_file_holds_whole(geneval: Path) -> None:
    found = first(open_items(f"coco-prompts:{geneval}", "train", DataConfig(), 0, 500))
    assert Counter(item.task for item in found) == dict.fromkeys(TASKS[1:], 100)
    assert TASKS[0] == "single_object"
    assert all(item.wanted for item in found)


def test_other_words_for_the_same_picture_are_excluded_too(tmp_path: Path) -> None:
    cat, dog = {"class": "cat", "count": 1}, {"class": "dog", "count": 1}
    rows = [
        {"tag": "position", "include": [cat, dog | {"position": ["left of", 0]}], "prompt": "a dog left of a cat"},
        {"tag": "two_object", "include": [cat, dog], "prompt": "a cat and a dog"},
        {"tag": "single_object", "include": [{"class": "remote", "count": 1}], "prompt": "a remote"},
    ]
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    excluded, (a, b) = read_excluded(path), (Phrase("cat"), Phrase("dog"))
    assert Request("position", (b, a), "left of").meaning in excluded
    assert Request("position", (a, b), "right of").meaning in excluded
    assert Request("position", (a, b), "left of").meaning not in excluded
    assert Request("position", (b, a), "above").meaning not in excluded
    assert Request("two_object", (b, a)).meaning in excluded
    assert Request("single_object", (Phrase("tv remote"),)).meaning in excluded  # GenEval's name, and COCO's


def test_a_prompt_with_a_name_of_ours_is_in_no_test_prompt(geneval: Path) -> None:
    excluded = read_excluded(geneval)
    rng = random.Random(3)
    ours = [r for r in (draw(rng, TASKS[i % 6]) for i in range(MANY)) if any(p.noun in MORE for p in r.phrases)]
    assert len(ours) > MANY / 3
    assert not [r for r in ours if r.meaning in excluded]


@pytest.mark.parametrize(
    "line", ["not json", '{"tag": "counting"}', '{"tag": "colors", "include": [{"class": "car"}]}', "[1]"]
)
def test_a_line_of_another_format_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"tag": "single_object", "include": [{"class": "car", "count": 1}], "prompt": "p"}\n' + line)
    with pytest.raises(ValueError, match=r"prompts:.*line 2: not a prompt in GenEval's format"):
        read_excluded(path)


def test_a_file_that_is_not_there_or_excludes_everything_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompts:.*none: no such file"):
        open_items(f"prompts:{tmp_path / 'none'}", "train", DataConfig(), 0, 6)
    everything = frozenset(Request("single_object", (Phrase(noun),)).meaning for noun in OBJECTS)
    with pytest.raises(ValueError, match="leaves no prompt of single_object"):
        items(excluded=everything)[0]


# -- what a detector must find -------------------------------------------------------------------------------------


def test_prompts_of_cocos_objects_say_what_a_detector_must_find() -> None:
    made = first(items())
    told = [item for item in made if item.wanted]
    assert 0.2 < len(told) / MANY < 0.6
    assert {item.wanted.tag for item in told if item.wanted} == {*TASKS}
    for item in told:
        assert item.wanted
        assert item.wanted.tag == item.task
        assert all(clause.noun in COCO for clause in item.wanted.include)
        assert bool(item.wanted.exclude) == (item.task == "counting")


def test_a_position_is_that_of_the_first_object_to_the_second() -> None:
    wanted = Request("position", (Phrase("dog"), Phrase("cat")), "left of").wanted
    assert wanted == Wanted("position", (Clause("cat"), Clause("dog", 1, None, ("left of", 0))))
    assert Request("counting", (Phrase("cat", 3),)).wanted == Wanted(
        "counting", (Clause("cat", 3),), (Clause("cat", 4),)
    )


def test_genevals_prompt_files_are_data_to_train_on(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [{"class": "cat", "count": 3}]},
        {"tag": "position", "include": [{"class": "cat", "count": 1}, RIGHT_OF]},
        {"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}]},
    ]
    path = tmp_path / "train_metadata.jsonl"
    path.write_text("".join(json.dumps(row | {"prompt": "a photo"}) + "\n" for row in rows))
    read = first(open_items(str(path), "train", DataConfig(), 0, 0))
    assert [item.wanted for item in read] == [read_wanted(row) for row in rows]
    assert [item.task for item in read] == ["counting", "position", "colors"]
    path.write_text(json.dumps(rows[0] | {"prompt": "x", "tag": "dance"}) + "\n")
    with pytest.raises(ValueError, match=r"row 0, column 'include' .*tag = 'dance' is not one of"):
        open_items(str(path), "train", DataConfig(), 0, 0)[0]
