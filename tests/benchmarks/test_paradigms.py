"""CoRL's comparisons: rows name what their recipes really leave, tables average as they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.learning.paradigms import FINAL, MERGED, TABLES, TASKS, Args, Row, Task, columns, scored, table
from benchmarks.learning.training import over_seeds
from benchmarks.pages import write_section
from unison import recipes
from unison.config import RunConfig
from unison.evaluation.records import Evaluation

ROWS = [pytest.param(row, id=f"{name}-{label}") for name, rows in TABLES.items() for label, row in rows.items()]


def left_by(recipe: str) -> set[str]:
    """Checkpoints below the folder of a recipe that is done."""
    made = recipes.find(recipe)()
    stages = {FINAL} if isinstance(made, RunConfig) else {f"{stage.name}/{FINAL}" for stage in made}
    return stages | ({"merged"} if recipe in MERGED else set())


@pytest.mark.parametrize("row", ROWS)
def test_every_checkpoint_of_a_row_is_one_that_its_recipe_leaves(row: Row) -> None:
    assert set(row.checkpoints) == set(TASKS)
    assert set(row.checkpoints.values()) <= left_by(row.recipe)


def test_every_paradigm_gives_each_task_as_many_updates() -> None:
    def steps(recipe: str, scenarios: set[str]) -> int:
        made = recipes.find(recipe)()
        configs = [made] if isinstance(made, RunConfig) else [stage.config for stage in made]
        return sum(config.optim.steps for config in configs if config.scenario.name in scenarios)

    unified = steps("corl/tiny-unified", {"unified"})
    for recipe in ("corl/tiny-separate", "corl/tiny-cycle"):
        assert steps(recipe, {"t2i"}) == steps(recipe, {"understanding"}) == unified
    assert steps("corl/tiny-cold-start", {"imitate"}) == unified


def test_rewards_differ_in_the_drawing_alone() -> None:
    weights = [recipes.find(f"corl/tiny-rewards-{name}")().rewards for name in ("cycle", "matching", "both")]  # type: ignore[union-attr]
    answered = {name: value for name, value in weights[0].items() if name in ("accuracy", "format")}
    assert answered == {"accuracy": 0.8, "format": 0.8}
    assert weights[0] | weights[1] == weights[2]
    assert weights[0].keys() & weights[1].keys() == answered.keys()


def record(task: str, drawn: bool | None, right: bool) -> dict[str, object]:
    return {"task": task, "drawing_correct": drawn, "answer_correct": right, "format_ok": True}


def test_columns_take_each_task_from_the_model_that_does_it() -> None:
    draws = Evaluation(0, [record("colors", True, False)])
    answers = Evaluation(0, [record("colors", False, True)])
    found: dict[Task, dict[str, Evaluation]] = {
        task: {"multiple_choice": answers, "open_ended": answers} for task in TASKS
    }
    found["drawing"] = {"multiple_choice": draws, "open_ended": draws}
    shown = columns(found)
    assert shown["drawing"] == {"colors": [1.0]}
    assert shown["multiple choice"] == shown["open ended"] == {"colors": [1.0]}
    assert shown["mixed"] == {"colors": [1.0, 1.0]}


def test_seeds_are_averaged_item_by_item() -> None:
    mean, seeds = over_seeds([{"colors": [1.0, 0.0]}, {"colors": [1.0, 1.0]}])
    assert mean.value == pytest.approx(0.75)
    assert 0.5 <= mean.low <= mean.high <= 1.0
    assert seeds == pytest.approx([0.5, 1.0])


def test_the_table_has_a_line_a_row_and_a_cell_a_column() -> None:
    runs = [{"drawing": {"colors": [1.0]}}, {"drawing": {"colors": [0.0]}}]
    lines = table({"baseline": runs[:1], "unified": runs}).splitlines()
    assert lines[0] == "| | drawing |"
    assert lines[2] == "| baseline | 1.000 [1.000, 1.000] |"
    assert lines[3] == "| unified | 0.500 [0.500, 0.500]; 0.000 to 1.000 |"


def test_kept_scores_are_not_computed_again(tmp_path: Path) -> None:
    args = Args(out=tmp_path)
    for kind in ("multiple_choice", "open_ended"):
        kept = tmp_path / "scores" / "corl-tiny-cold-start-7" / FINAL.replace("/", "-") / kind
        Evaluation(0, [record("colors", True, kind == "open_ended")]).save(kept)
    found = scored(TABLES["paradigms"]["cold-start SFT"], 7, args)  # there is no checkpoint that could be evaluated
    assert not found["mixed"]["multiple_choice"].records[0]["answer_correct"]
    assert found["mixed"]["open_ended"].records[0]["answer_correct"]


def test_a_section_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- a -->\nold\n<!-- end a -->\nafter\n")
    for _ in range(2):
        write_section(page, "a", "new")
    assert page.read_text() == "before\n<!-- a -->\n\nnew\n\n<!-- end a -->\nafter\n"
    with pytest.raises(AssertionError, match="no section <!-- b -->"):
        write_section(page, "b", "new")
