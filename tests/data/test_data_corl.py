"""The CoRL data sets as they come: Parquet with the real columns, options in a column of their own, streams."""

from __future__ import annotations

import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unison.answers import is_right
from unison.cli import main as cli
from unison.config import DataConfig
from unison.data import Items, open_items, step_items
from unison.data.rows import BadRow
from unison.data.streams import KEPT, StreamItems, columns_of
from unison.data.tables import TableItems
from unison.types import Item

ROWS = 32


def picture(i: int) -> Image.Image:
    return Image.new("RGB", (8 + i % 3, 6), (i * 7, 255 - i * 7, 30))


def png(i: int) -> bytes:
    buffer = io.BytesIO()
    picture(i).save(buffer, "PNG")
    return buffer.getvalue()


def row(i: int) -> dict[str, Any]:
    """A row in the columns of the CoRL data sets, every other one multiple choice."""
    choice = i % 2
    return {
        "prompt": f"a photo of {i} cats",
        "real_image": {"bytes": png(i), "path": f"{i}.png"},
        "qa_problem": f"How many cats are there? Options: A. {i} B. {i + 1}" if choice else "How many cats are there?",
        "qa_solution": "<answer> A </answer>" if choice else f"<answer>{i}</answer>",
        "qa_type": "mcq" if choice else "open-ended",
    }


def aokvqa(i: int) -> dict[str, Any]:
    """A row in the columns of A-OKVQA."""
    return {
        "question": f"What is number {i}?",
        "image": {"bytes": png(i), "path": None},
        "choices": ["cat", "dog", "bus", "tree"],
        "correct_choice_idx": i % 4,
    }


AOKVQA = {"question": "question", "image": "image"}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` sleeps for 5 s at the end of every pass over a Parquet stream, for the sake of Arrow's threads."""
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)


def parquet(path: Path, make: Callable[[int], dict[str, Any]] = row, **changed: dict[int, Any]) -> Path:
    """32 rows without any metadata of `datasets`; `changed` gives values by column and row."""
    rows = [make(i) for i in range(ROWS)]
    for column, values in changed.items():
        for i, value in values.items():
            rows[i][column] = value
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def opened(path: Path, **settings: Any) -> Items:
    return open_items(str(path), "train", DataConfig(**settings), 0, 0)


def same_picture(item: Item, i: int) -> bool:
    return item.image is not None and np.array_equal(np.asarray(item.image), np.asarray(picture(i)))


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("used the network"))


# -- tables --------------------------------------------------------------------------------------------------


def test_parquet_with_the_real_columns_is_read_whole(tmp_path: Path):
    items = opened(parquet(tmp_path / "x2x.parquet"))
    assert len(items) == ROWS
    for i in range(ROWS):
        item = items[i]
        assert (item.id, item.prompt) == (f"x2x-{i}", f"a photo of {i} cats")
        assert item.kind == ("multiple_choice" if i % 2 else "open_ended")
        assert item.answer == ("A" if i % 2 else str(i))
        assert same_picture(item, i)


def test_an_image_column_of_datasets_is_read_the_same(tmp_path: Path):
    rows = [row(i) | {"real_image": picture(i)} for i in range(ROWS)]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "x2x.parquet")
    for streaming in (0, 1):
        items = opened(tmp_path / "x2x.parquet", streaming=streaming)
        assert all(same_picture(items[i], i) for i in range(ROWS))


def shards(folder: Path, count: int) -> Path:
    """The 32 rows in `count` files, laid out as on the hub."""
    (folder / "data").mkdir()
    table, size = pa.Table.from_pylist([row(i) for i in range(ROWS)]), ROWS // count
    for shard in range(count):
        name = f"train-{shard:05d}-of-{count:05d}.parquet"
        pq.write_table(table.slice(size * shard, size), folder / "data" / name)
    return folder


def test_a_folder_of_parquet_shards_is_read_in_order(tmp_path: Path):
    items = opened(shards(tmp_path, 2))
    assert [item.prompt for item in items] == [f"a photo of {i} cats" for i in range(ROWS)]


@pytest.mark.parametrize("streaming", [0, 1])
@pytest.mark.parametrize("form", ["path", "struct"])
def test_a_folder_of_jsonl_and_images_is_read(streaming: int, form: str, tmp_path: Path):
    (tmp_path / "images").mkdir()
    lines = []
    for i in range(ROWS):
        picture(i).save(tmp_path / "images" / f"{i}.png")
        path = f"images/{i}.png"
        lines.append(json.dumps(row(i) | {"real_image": path if form == "path" else {"bytes": None, "path": path}}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    items = opened(tmp_path, streaming=streaming)
    assert all(same_picture(items[i], i) for i in range(ROWS))


# -- options -------------------------------------------------------------------------------------------------


def test_options_in_a_column_become_letters_and_the_answer_its_letter(tmp_path: Path):
    items = opened(parquet(tmp_path / "a.parquet", aokvqa), columns=AOKVQA, question_suffix="Think.")
    assert items[2].question == "What is number 2?\nA. cat\nB. dog\nC. bus\nD. tree\nThink."
    assert (items[2].answer, items[2].kind) == ("C", "multiple_choice")
    assert [item.answer for item in items] == list("ABCD") * 8
    for reply, right in (("C", True), ("bus", True), ("C. bus", True), ("D", False), ("tree", False)):
        assert is_right(f"<answer>{reply}</answer>", items[2]) is right


def test_rows_without_options_keep_their_plain_answer(tmp_path: Path):
    path = parquet(
        tmp_path / "a.parquet",
        lambda i: row(i) | {"choices": ["cat", "dog"] if i % 2 else None, "correct_choice_idx": 1 if i % 2 else None},
    )
    items = opened(path)
    assert (items[0].kind, items[0].answer, items[0].question) == ("open_ended", "0", "How many cats are there?")
    assert (items[1].kind, items[1].answer) == ("multiple_choice", "B")


def test_options_without_the_number_of_the_right_one_are_left_alone_unless_asked_for(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", lambda i: row(i) | {"choices": ["cat", "dog"]})
    assert opened(path)[0].answer == "0"
    with pytest.raises(ValueError, match=r"no column 'correct_choice_idx' \(field correct\)"):
        opened(path, columns={"choices": "choices"})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"correct_choice_idx": 4}, r"row 5, column 'correct_choice_idx' \(field correct\): 4 is not .* from 0 to 3"),
        ({"correct_choice_idx": -1}, r"row 5, column 'correct_choice_idx' .*: -1 is not the number"),
        ({"correct_choice_idx": None}, r"row 5, column 'correct_choice_idx' .*: None is not the number"),
        ({"choices": ["cat"]}, r"row 5, column 'choices' .*: \['cat'\] is not a list of 2 to 26 options"),
        ({"choices": ["cat", " "]}, r"row 5, column 'choices' \(field choices\): is empty"),
        ({"choices": None}, r"row 5, column 'choices' .*: is null, and there is no column with a plain answer"),
    ],
)
def test_bad_options_are_bad_rows(changed: dict[str, Any], message: str, tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", aokvqa, **{column: {5: value} for column, value in changed.items()})
    with pytest.raises(BadRow, match=message):
        opened(path, columns=AOKVQA)[5]


def test_an_open_question_with_options_is_a_bad_row(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", lambda i: aokvqa(i) | {"qa_type": "oe"})
    with pytest.raises(BadRow, match=r"row 0, column 'qa_type' .*'oe' is open-ended, but column 'choices' has options"):
        opened(path, columns=AOKVQA)[0]


# -- kinds and suffixes --------------------------------------------------------------------------------------


def test_unknown_kinds_can_be_named(tmp_path: Path):
    path = parquet(tmp_path / "x.parquet", qa_type={0: "Science/MC"})
    with pytest.raises(
        BadRow, match=r"'Science/MC' is not one of multiple_choice, .*say what it is with --data\.kinds"
    ):
        opened(path)[0]
    assert opened(path, kinds={"Science/MC": "multiple_choice"})[0].kind == "multiple_choice"


@pytest.mark.parametrize("source", ["world", "table"])
def test_each_kind_of_question_can_have_its_own_suffix(source: str, tmp_path: Path):
    settings = DataConfig(
        questions="mixed", question_suffix={"multiple_choice": "One letter.", "open_ended": "Answer."}
    )
    items = open_items(source if source == "world" else str(parquet(tmp_path / "x.parquet")), "train", settings, 0, 12)
    for i in range(12):
        item = items[i]
        assert item.question is not None
        assert item.question.endswith("\nOne letter." if item.kind == "multiple_choice" else "\nAnswer.")
    assert len({items[i].kind for i in range(12)}) == 2


# -- the whole table before a run ----------------------------------------------------------------------------


def dry_run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["unison", "train", "corl/tiny", "--dry-run", *words])
    cli.main()


@pytest.mark.usefixtures("unplanned")
def test_a_dry_run_names_the_row_and_column_that_would_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = parquet(tmp_path / "x.parquet", qa_solution={20: " ", 30: None}, qa_type={25: "essay"})
    with pytest.raises(SystemExit):
        dry_run(monkeypatch, "--data.train", str(path))
    shown = capsys.readouterr().err
    assert "3 of 32 rows are bad; the first: " in shown
    assert "x.parquet, row 20, column 'qa_solution' (field answer): is empty" in shown
    dry_run(monkeypatch, "--data.train", str(path), "--data.skip-bad-rows")
    assert "32 items, 3 bad rows" in " ".join(capsys.readouterr().out.split())


@pytest.mark.usefixtures("unplanned")
def test_the_remedies_that_messages_name_are_options_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = parquet(tmp_path / "x.parquet", lambda i: aokvqa(i) | {"qa_type": "Science/MC"})
    columns = ("--data.columns", "question", "question", "image", "image", "prompt", "question")
    dry_run(monkeypatch, "--data.train", str(path), *columns, "--data.kinds", "Science/MC", "multiple_choice")
    dry_run(monkeypatch, "--data.train", str(path), *columns, "--data.kinds", "Science/MC", "multiple_choice",
            "--data.streaming", "8", "--data.question-suffix", "multiple_choice", "One letter.")  # fmt: skip
    assert "streamed, first row readable" in " ".join(capsys.readouterr().out.split())


# -- streams -------------------------------------------------------------------------------------------------


def stream(path: Path, seed: int = 0, buffer: int = 8, **settings: Any) -> StreamItems:
    items = open_items(str(path), "train", DataConfig(streaming=buffer, **settings), seed, 0)
    assert isinstance(items, StreamItems)
    return items


def prompts(items: Items, start: int, stop: int) -> list[str | None]:
    return [items[i].prompt for i in range(start, stop)]


def test_a_stream_is_shuffled_within_its_buffer_and_every_epoch_takes_every_row_once(tmp_path: Path):
    path = parquet(tmp_path / "x.parquet")
    first, second = (prompts(stream(path), ROWS * epoch, ROWS * (epoch + 1)) for epoch in range(2))
    assert len(set(first)) == len(set(second)) == ROWS
    assert first != second
    assert first != prompts(stream(path, seed=1), 0, ROWS)
    numbers = [int((prompt or "").split()[3]) for prompt in first]
    assert all(number <= place + 8 for place, number in enumerate(numbers))  # a row cannot come before it is read
    assert numbers != sorted(numbers)
    assert prompts(stream(path, buffer=1), 0, ROWS) == [f"a photo of {i} cats" for i in range(ROWS)]


@pytest.mark.parametrize("count", [1, 4])
def test_a_resumed_stream_goes_on_where_it_stopped(count: int, tmp_path: Path):
    path = shards(tmp_path, count)
    whole, resumed = stream(path), stream(path)
    expected = [(whole[i].id, whole[i].prompt) for i in range(3 * ROWS)]
    assert [(resumed[i].id, resumed[i].prompt) for i in range(50, 3 * ROWS)] == expected[50:]
    assert resumed[10].prompt == expected[10][1]  # still held, or walked to again
    assert len({identity for identity, _ in expected}) == 3 * ROWS
    for epoch in range(3):
        assert len({prompt for _, prompt in expected[ROWS * epoch : ROWS * (epoch + 1)]}) == ROWS


def test_a_stream_starts_over_for_an_item_that_it_no_longer_holds(tmp_path: Path):
    items = stream(parquet(tmp_path / "x.parquet"))
    first = items[0].prompt
    assert items[KEPT + 40].prompt
    assert len(items._rows) == KEPT
    assert items[0].prompt == first
    assert items[KEPT + 40].prompt == stream(tmp_path / "x.parquet")[KEPT + 40].prompt


def test_steps_take_the_rows_of_a_stream_in_turn(tmp_path: Path):
    items = stream(parquet(tmp_path / "x.parquet"))
    assert [step_items(items, 4, step, 0) for step in (0, 7)] == [[0, 1, 2, 3], [28, 29, 30, 31]]
    table = opened(tmp_path / "x.parquet")
    assert sorted(i for step in range(8) for i in step_items(table, 4, step, 0)) == list(range(ROWS))


def test_held_out_items_of_a_stream_are_its_first_rows(tmp_path: Path):
    config = DataConfig(streaming=8)
    items = open_items(str(parquet(tmp_path / "x.parquet")), "eval", config, 0, 6)
    assert isinstance(items, TableItems)
    assert len(items) == 6
    assert prompts(items, 0, 6) == [f"a photo of {i} cats" for i in range(6)]
    assert all(same_picture(items[i], i) for i in range(6))


def test_bad_rows_of_a_stream_stop_it_or_are_replaced_and_counted(tmp_path: Path):
    path = parquet(tmp_path / "x.parquet", real_image={3: {"bytes": b"no picture", "path": None}}, prompt={4: " "})
    with pytest.raises(BadRow, match=r"row 3 of the stream, column 'real_image' \(field image\): cannot be read"):
        stream(path, buffer=1)[3]
    items = stream(path, buffer=1, skip_bad_rows=True)
    assert [prompt and prompt.split()[3] for prompt in prompts(items, 0, 7)] == ["0", "1", "2", "5", "5", "5", "6"]
    assert items.skipped == 2
    assert len({items[i].id for i in range(7)}) == 7
    pq.write_table(pa.Table.from_pylist([row(i) | {"prompt": ""} for i in range(ROWS)]), path)
    with pytest.raises(ValueError, match=f"{KEPT} bad rows one after another"):
        stream(path, skip_bad_rows=True)[0]


def test_a_stream_of_the_wrong_columns_of_nothing_or_broken_is_refused(tmp_path: Path):
    path = parquet(tmp_path / "x.parquet", aokvqa)
    with pytest.raises(ValueError, match=r"no column 'prompt' \(field prompt\) or 'qa_problem'"):
        stream(path)
    (tmp_path / "broken.jsonl").write_text('{"prompt": "a"}\n{oops\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl"):
        stream(tmp_path / "broken.jsonl")[0]
    empty = datasets.IterableDataset.from_generator(lambda: iter(()))
    with pytest.raises(ValueError, match=r"hub/empty has no rows"):
        columns_of(empty, "hub/empty")


def test_a_hub_data_set_is_streamed_from_the_split_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, asked = parquet(tmp_path / "x.parquet"), []

    def load(name: str, split: str, streaming: bool) -> Any:
        asked.append((name, split, streaming))
        return datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")).to_iterable_dataset()

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda _: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    items = open_items("mm-vl/x2x_rft_22k", "train", DataConfig(streaming=4), 0, 0)
    assert asked == [("mm-vl/x2x_rft_22k", "train", True)]
    assert items[3].id == "x2x_rft_22k-3"
