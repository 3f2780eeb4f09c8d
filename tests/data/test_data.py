"""Items: the world, tables with good and bad rows, opening sources, the order of steps, export."""

from __future__ import annotations

import io
import json
import random
import socket
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from unison.answers import unwrap_answer
from unison.config import HELD_OUT, DataConfig
from unison.data import Items, open_items, step_indices
from unison.data.rows import BadRow, RowReader, read_image
from unison.data.tables import TableItems, export
from unison.data.world import WorldItems
from unison.types import TASKS, Item
from unison.world.judge import judge
from unison.world.scene import parse_prompt

SUFFIX = "Think first."
PICTURE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def png(picture: Image.Image = PICTURE) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def every(items: Items) -> list[Item]:
    return [items[i] for i in range(len(items))]


def same(a: Item, b: Item) -> bool:
    plain = replace(a, image=None).__dict__ == replace(b, image=None).__dict__
    return plain and np.array_equal(np.asarray(a.image), np.asarray(b.image))


def row(**changed: Any) -> dict[str, Any]:
    """A good row in the CoRL columns; None as a value drops nothing, it is a null."""
    good = {
        "prompt": "a cat",
        "real_image": png(),
        "qa_problem": "What is it?",
        "qa_solution": "cat",
        "qa_type": "open_ended",
    }
    return good | changed


def table(*rows: dict[str, Any], source: str | Path = "hub/cats", skip: bool = False, **columns: str) -> TableItems:
    return items_of(datasets.Dataset.from_list(list(rows)), columns, source=source, skip=skip)


def items_of(
    rows: datasets.Dataset,
    columns: dict[str, str],
    suffix: str = "",
    source: str | Path = "x.jsonl",
    skip: bool = False,
) -> TableItems:
    return TableItems(rows, RowReader(rows.column_names, columns, suffix, {}, source, skip))


def write_jsonl(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(x) + "\n" for x in rows))
    return path


def text_row(**changed: Any) -> dict[str, Any]:
    return {"prompt": "a cat", "qa_problem": "What is it?", "qa_solution": "cat"} | changed


# -- the world -----------------------------------------------------------------------------------------------


def test_world_items_depend_on_split_seed_and_index_alone():
    items, again = (WorldItems("train", "mixed", SUFFIX, 3, 50) for _ in range(2))
    assert same(items[17], [again[i] for i in (40, 3, 17)][-1])
    assert not same(items[17], WorldItems("train", "mixed", SUFFIX, 4, 50)[17])
    assert not same(items[17], WorldItems("eval", "mixed", SUFFIX, 3, 50)[17])
    assert not same(items[17], items[23])  # the same task


def test_world_items_take_the_tasks_in_turn_and_have_unique_ids():
    items = every(WorldItems("eval", "mixed", "", 0, 24))
    assert [item.task for item in items] == [*TASKS] * 4
    assert len({item.id for item in items}) == 24
    assert items[5].id == "world-eval-0-5"


def test_world_pictures_show_what_their_prompts_ask_for():
    items = every(WorldItems("train", "open_ended", "", 0, 60))
    right = [judge(item.image, parse_prompt(item.prompt)).correct for item in items if item.image and item.prompt]
    assert sum(right) >= 59
    assert len(right) == 60


def test_the_form_of_a_question_changes_neither_picture_nor_truth():
    opened, choice, mixed = (
        every(WorldItems("train", form, "", 1, 60)) for form in ("open_ended", "multiple_choice", "mixed")
    )
    for a, b, m in zip(opened, choice, mixed, strict=True):
        assert a.question is not None
        assert b.question is not None
        assert (a.prompt, a.image) == (b.prompt, b.image)
        assert (a.kind, b.kind) == ("open_ended", "multiple_choice")
        assert b.question.startswith(a.question + " A. ")
        assert f"{b.answer}. {a.answer}" in b.question
        assert same(m, a if m.kind == "open_ended" else b)
    assert {m.kind for m in mixed} == {"open_ended", "multiple_choice"}


def test_world_questions_end_with_the_suffix_if_there_is_one():
    bare, asked = WorldItems("train", "mixed", "", 0, 12), WorldItems("train", "mixed", SUFFIX, 0, 12)
    assert [x.question for x in asked] == [f"{x.question}\n{SUFFIX}" for x in bare]


@pytest.mark.parametrize("index", [-1, 6])
def test_an_index_out_of_range_is_an_index_error(index: int):
    with pytest.raises(IndexError, match="of 6"):
        WorldItems("train", "mixed", "", 0, 6)[index]
    with pytest.raises(IndexError, match="of 1"):
        table(row())[index]


# -- tables --------------------------------------------------------------------------------------------------


def test_corl_columns_fill_an_item_by_default():
    item = table(row(qa_solution="<answer> a cat </answer>"))[0]
    assert (item.id, item.prompt, item.question) == ("cats-0", "a cat", "What is it?")
    assert (item.answer, item.kind, item.task) == ("a cat", "open_ended", "all")
    assert np.array_equal(np.asarray(item.image), np.asarray(PICTURE))


def test_id_and_task_columns_are_used_where_they_exist():
    item = table(row(id=7, task="colors"))[0]
    assert (item.id, item.task) == ("7", "colors")


def test_columns_can_be_mapped_and_the_suffix_is_appended():
    rows = datasets.Dataset.from_list([{"text": "a cat", "q": "What?", "a": 3}])
    items = items_of(rows, {"prompt": "text", "question": "q", "answer": "a"}, SUFFIX)
    item = items[0]
    assert (item.prompt, item.question, item.answer) == ("a cat", f"What?\n{SUFFIX}", "3")
    assert (item.image, item.kind, item.id) == (None, "open_ended", "x-0")


def test_a_table_may_hold_prompts_alone():
    item = table({"prompt": "a cat"})[0]
    assert (item.prompt, item.image, item.question, item.answer) == ("a cat", None, None, None)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(x, "multiple_choice") for x in ("multiple_choice", "mcq", "MC", "multiple-choice", "multi_choice")]
    + [(x, "open_ended") for x in ("open_ended", "oe", "VQA", "open-ended", "free_form")],
)
def test_kinds_are_read_in_every_spelling(value: str, kind: str):
    assert table(row(qa_type=value))[0].kind == kind


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        ("cat", "cat"),
        ("<answer>B</answer>", "B"),
        ("<think>x</think>\n<answer>\nB\n</answer>", "B"),
        ("<b", "<b"),
    ],
)
def test_answers_are_unwrapped(text: str, inside: str):
    assert unwrap_answer(text) == inside


def test_images_are_read_from_every_form_a_column_may_have(tmp_path: Path):
    PICTURE.save(tmp_path / "a.png")
    forms = [PICTURE, png(), {"bytes": png(), "path": None}, {"bytes": None, "path": "a.png"}, "a.png"]
    for form in (*forms, str(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(read_image(form, tmp_path)), np.asarray(PICTURE))
    assert read_image(png(PICTURE.convert("L")), tmp_path).mode == "RGB"
    decoded = datasets.Dataset.from_list([row(real_image=PICTURE)])
    assert isinstance(decoded.features["real_image"], datasets.Image)
    assert np.array_equal(np.asarray(table(row(real_image=PICTURE))[0].image), np.asarray(PICTURE))


def test_a_photo_taken_sideways_is_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image("a.jpg", tmp_path).size == (4, 8)


BAD_ROWS = {
    "empty prompt": ({"prompt": "  "}, "'prompt' (field prompt): is empty"),
    "null prompt": ({"prompt": None}, "'prompt' (field prompt): None is not text"),
    "null image": ({"real_image": None}, "'real_image' (field image): cannot be read: there is no image"),
    "broken image": ({"real_image": b"not a picture"}, "'real_image' (field image): cannot be read"),
    "truncated image": ({"real_image": png(Image.effect_noise((64, 64), 9))[:900]}, "(field image): cannot"),
    "empty question": ({"qa_problem": ""}, "'qa_problem' (field question): is empty"),
    "empty answer": ({"qa_solution": ""}, "'qa_solution' (field answer): is empty"),
    "empty wrapped answer": ({"qa_solution": "<answer> </answer>"}, "(field answer): is empty"),
    "unknown kind": ({"qa_type": "essay"}, "'qa_type' (field kind): 'essay' is not one of multiple_choice"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_an_error_that_names_source_row_and_column(name: str):
    changed, message = BAD_ROWS[name]
    items = table(row(), row(**changed))
    assert items[0].prompt == "a cat"
    with pytest.raises(BadRow) as caught:
        items[1]
    assert "hub/cats, row 1, column '" in str(caught.value)
    assert message in str(caught.value)
    assert "--data.skip-bad-rows" in str(caught.value)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_skipped_rows_are_replaced_counted_and_warned_of_once(name: str, caplog: pytest.LogCaptureFixture):
    items = table(row(prompt="first"), row(**BAD_ROWS[name][0]), row(prompt="third"), skip=True)
    assert items.skipped == 0
    assert [item.prompt for item in items] == ["first", "third", "third"]
    assert [item.prompt for item in items] == ["first", "third", "third"]
    assert items.skipped == 1
    assert [record.getMessage().count("row 1, column") for record in caplog.records] == [1]


def test_a_replacement_has_an_id_of_its_own_so_that_groups_stay_apart():
    items = table(row(id="a", prompt=""), row(id="b"), row(id="c", prompt=""), skip=True)
    assert [item.id for item in items] == ["b for row 0", "b", "b for row 2"]


def test_only_bad_rows_are_an_error_even_when_skipping():
    items = table(row(prompt=""), row(prompt=None), skip=True)
    with pytest.raises(ValueError, match="all 2 rows are bad"):
        items[0]


def test_a_missing_image_file_is_a_bad_row(tmp_path: Path):
    items = table(row(real_image="gone.png"), source=tmp_path / "x.jsonl")
    with pytest.raises(BadRow, match=r"x\.jsonl, row 0, column 'real_image'.*gone\.png"):
        items[0]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            row(),
            {"prompt": "promt"},
            r"no column 'promt' \(field prompt\).*has prompt, .*data\.columns prompt prompt",
        ),
        (
            {"Prompts": "x"},
            {},
            r"no column 'prompt' \(field prompt\) or 'qa_problem'.*columns prompt Prompts",
        ),
        ({"zzz": "x"}, {}, r"it has zzz\. .*--data\.columns prompt <name>"),
        ({"qa_problem": "x", "answer": "y"}, {}, r"no column 'qa_solution'.*--data\.columns answer answer"),
        (row(), {"promt": "prompt"}, r"the field 'promt', which is not one of prompt, image"),
        (row(), {"image": "picture"}, r"no column 'picture' \(field image\)"),
    ],
)
def test_missing_columns_are_an_error_that_says_how_to_map(rows: dict, columns: dict, message: str):
    with pytest.raises(ValueError, match=message):
        table(rows, **columns)


def test_repeated_ids_are_an_error():
    with pytest.raises(ValueError, match=r"column 'id' \(field id\): 'a' occurs 2 times"):
        table(row(id="a"), row(id="b"), row(id="a"))
    with pytest.raises(ValueError, match="'0' occurs 2 times"):
        table(row(id=0), row(id=0))


def test_a_table_without_rows_is_an_error():
    empty = datasets.Dataset.from_dict({"prompt": []})
    with pytest.raises(ValueError, match=r"x has no rows"):
        items_of(empty, {}, source="x")


# -- opening -------------------------------------------------------------------------------------------------


def test_the_world_is_opened_with_the_configured_questions():
    config = DataConfig(questions="multiple_choice", question_suffix=SUFFIX)
    assert open_items("world", "eval", config, 5, 9) == WorldItems("eval", "multiple_choice", SUFFIX, 5, 9)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_local_files_are_read_offline(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("used the network"))
    PICTURE.save(tmp_path / "a.png")
    rows = [text_row(real_image="a.png", qa_solution=x) for x in ("None", "3")]
    path, data = tmp_path / f"data{suffix}", datasets.Dataset.from_list(rows)
    match suffix:
        case ".jsonl":
            write_jsonl(path, *rows)
        case ".json":
            path.write_text(json.dumps(rows))
        case ".parquet":
            data.to_parquet(path)
        case _:
            data.to_csv(path)
    items = open_items(str(path), "train", DataConfig(question_suffix=SUFFIX), 0, 99)
    assert [(x.id, x.answer) for x in items] == [("data-0", "None"), ("data-1", "3")]
    assert items[0].question == f"What is it?\n{SUFFIX}"
    assert np.array_equal(np.asarray(items[1].image), np.asarray(PICTURE))


def test_reading_leaves_nothing_beside_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = write_jsonl(tmp_path / "a.jsonl", text_row())
    assert len(open_items("./a.jsonl", "train", DataConfig(), 0, 0)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_file_is_read_anew(tmp_path: Path):
    path = write_jsonl(tmp_path / "a.jsonl", text_row())
    assert open_items(str(path), "train", DataConfig(), 0, 0)[0].prompt == "a cat"
    write_jsonl(path, text_row(prompt="a dog"))
    assert open_items(str(path), "train", DataConfig(), 0, 0)[0].prompt == "a dog"


def test_names_with_pattern_characters_are_read_literally(tmp_path: Path):
    folder = tmp_path / "a[1]*"
    folder.mkdir()
    path = write_jsonl(folder / "b[2].jsonl", text_row())
    assert open_items(str(path), "train", DataConfig(), 0, 0)[0].prompt == "a cat"


@pytest.mark.parametrize("place", [".", "data"])
def test_files_of_a_folder_that_are_named_after_a_split_are_kept_apart(place: str, tmp_path: Path):
    folder = tmp_path / place
    folder.mkdir(exist_ok=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        datasets.Dataset.from_list([text_row(prompt=name)]).to_parquet(folder / f"{name}.parquet")
    train, test = (open_items(str(tmp_path), split, DataConfig(), 0, 0) for split in ("train", "eval"))
    assert [x.prompt for x in train] == ["train-00000-of-00002", "train-00001-of-00002"]
    assert [x.prompt for x in test] == ["test-00000-of-00001"]


def test_a_folder_of_unnamed_jsonl_files_serves_either_split(tmp_path: Path):
    write_jsonl(tmp_path / "a.jsonl", text_row(prompt="a"))
    write_jsonl(tmp_path / "b.jsonl", text_row(prompt="b"))
    for split in ("train", "eval"):
        assert [x.prompt for x in open_items(str(tmp_path), split, DataConfig(), 0, 0)] == ["a", "b"]


def test_an_evaluation_never_falls_back_to_the_files_of_training(tmp_path: Path):
    write_jsonl(tmp_path / "train.jsonl", text_row())
    with pytest.raises(ValueError, match=r"no file is named test or .*give one of train\.jsonl itself"):
        open_items(str(tmp_path), "eval", DataConfig(), 0, 0)


@pytest.mark.parametrize("source", ["gone.jsonl", "./gone", "/gone/data", "~/gone-data", "data/gone.parquet"])
def test_a_missing_local_path_is_an_error(source: str):
    with pytest.raises(ValueError, match=r"data\.eval = .*gone.*: there is no such file or folder"):
        open_items(source, "eval", DataConfig(), 0, 0)


def test_an_unknown_format_and_an_empty_folder_are_errors(tmp_path: Path):
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"the format must be one of \.jsonl, \.json, \.parquet, \.csv"):
        open_items(str(tmp_path / "a.txt"), "train", DataConfig(), 0, 0)
    with pytest.raises(ValueError, match=r"no metadata\.jsonl, \*\.jsonl or \*\.parquet"):
        open_items(str(tmp_path), "train", DataConfig(), 0, 0)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.jsonl", '{"prompt": "x"}\n{oops\n'), ("a.parquet", "no parquet"), ("a.jsonl", ""), ("a.csv", "")],
)
def test_an_unreadable_file_is_an_error_that_names_it(name: str, content: str, tmp_path: Path):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name):
        open_items(str(tmp_path / name), "train", DataConfig(), 0, 0)


def test_an_unreachable_hub_data_set_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def offline(*_: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "get_dataset_split_names", offline)
    with pytest.raises(ValueError, match=r"data\.train = 'org/name' is neither `world`.*no network"):
        open_items("org/name", "train", DataConfig(), 0, 0)


def test_a_hub_data_set_gives_the_split_that_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    splits = {"train": "a", "validation": "b"}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda _: list(splits))
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda _, split, streaming: datasets.Dataset.from_list([text_row(prompt=splits[split])]),
    )
    assert open_items("org/name", "train", DataConfig(), 0, 0)[0].prompt == "a"
    assert open_items("org/name-v1.5", "eval", DataConfig(), 0, 0)[0].prompt == "b"
    del splits["validation"]
    with pytest.raises(ValueError, match=r"has the splits train, none of test, validation"):
        open_items("org/name", "eval", DataConfig(), 0, 0)


@pytest.mark.parametrize("streaming", [0, 8])
def test_each_40th_row_is_held_out_and_the_others_are_trained_on(tmp_path: Path, streaming: int):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"row {i}"}) + "\n" for i in range(100)))
    config = DataConfig(str(path), HELD_OUT, streaming=streaming)
    train, held_out = (open_items(config.train, split, config, 0, 300) for split in ("train", "eval"))
    assert [item.prompt for item in held_out] == ["row 0", "row 40", "row 80"]
    trained = {str(train[i].prompt) for i in range(97)}
    assert trained == {f"row {i}" for i in range(100) if i % 40}
    whole = open_items(config.train, "train", replace(config, eval="world"), 0, 0)
    assert len({str(whole[i].prompt) for i in range(100)}) == 100


# -- order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "items"), [(10, 4), (12, 4), (7, 3), (5, 5), (5, 4), (1, 1)])
def test_every_epoch_takes_every_item_once(count: int, items: int):
    chain = [i for step in range(6 * count) for i in step_indices(count, items, step, 1)]
    epochs = [chain[k : k + count] for k in range(0, len(chain) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1 or count == 1


@pytest.mark.parametrize(("count", "items"), [(10, 4), (8, 4), (7, 3), (23, 5), (64, 31)])
def test_no_step_takes_an_item_twice_even_where_an_epoch_ends_within_it(count: int, items: int):
    for step in range(200):
        assert len(set(step_indices(count, items, step, 0))) == items


def test_the_order_of_steps_needs_no_state():
    forward = [step_indices(11, 4, step, 2) for step in range(40)]
    shuffled = random.Random(0).sample(range(40), 40)
    assert [step_indices(11, 4, step, 2) for step in shuffled] == [forward[step] for step in shuffled]
    assert forward != [step_indices(11, 4, step, 3) for step in range(40)]


def test_every_item_is_equally_likely_to_come_first():
    first = Counter(step_indices(6, 1, 0, seed)[0] for seed in range(600))
    assert all(60 < first[i] < 140 for i in range(6))


def test_a_step_larger_than_the_data_is_an_error():
    with pytest.raises(ValueError, match=r"step\.items = 5: must be at most the 4 items"):
        step_indices(4, 5, 0, 0)


# -- export --------------------------------------------------------------------------------------------------


def test_exported_world_items_come_back_the_same(tmp_path: Path):
    config = DataConfig(questions="mixed", question_suffix=SUFFIX)
    world = WorldItems("eval", "mixed", SUFFIX, 0, 30)
    folder = export(world, tmp_path / "world", 24)
    items = open_items(str(folder), "eval", config, 0, 0)
    assert len(items) == 24
    assert all(same(a, b) for a, b in zip(every(items), every(world), strict=False))
    assert isinstance(items, TableItems)
    again = open_items(str(export(items, tmp_path / "again", 24)), "eval", config, 0, 0)
    assert all(same(a, b) for a, b in zip(every(again), every(items), strict=True))


def test_an_export_holds_the_corl_columns_and_bare_questions(tmp_path: Path):
    world = WorldItems("train", "open_ended", SUFFIX, 0, 6)
    rows = (export(world, tmp_path, 6) / "metadata.jsonl").read_text().splitlines()
    first = json.loads(rows[0])
    assert set(first) == {
        *("prompt", "real_image", "qa_problem", "qa_solution", "qa_reply", "qa_type", "task", "id"),
        "file_name",
    }
    assert first["qa_problem"] == "What shape is in the image?"
    assert (tmp_path / first["real_image"]).is_file()


def test_an_export_is_readable_as_json_and_as_an_imagefolder(tmp_path: Path):
    world, cache = WorldItems("train", "open_ended", "", 0, 6), str(tmp_path / "cache")
    folder = str(export(world, tmp_path / "x", 6))
    rows = datasets.load_dataset("json", data_files=f"{folder}/metadata.jsonl", split="train", cache_dir=cache)
    assert rows["prompt"] == [x.prompt for x in world]
    pictures = datasets.load_dataset("imagefolder", data_dir=folder, split="train", cache_dir=cache)
    assert pictures["qa_solution"] == [x.answer for x in world]
    assert np.array_equal(np.asarray(pictures[0]["image"]), np.asarray(world[0].image))


def test_an_export_of_prompts_alone_leaves_out_the_other_columns(tmp_path: Path):
    folder = export(table({"prompt": "a cat"}), tmp_path / "x", 1)
    item = open_items(str(folder), "train", DataConfig(), 0, 0)[0]
    assert (item.id, item.prompt, item.image, item.question) == ("cats-0", "a cat", None, None)


def test_an_export_refuses_too_many_items_and_a_folder_in_use(tmp_path: Path):
    world = WorldItems("train", "open_ended", "", 0, 2)
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"count = {count}: must be from 1 to the 2 items"):
            export(world, tmp_path, count)
    export(world, tmp_path, 2)
    with pytest.raises(ValueError, match=r"already has a metadata\.jsonl"):
        export(world, tmp_path, 2)
