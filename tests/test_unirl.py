"""UniRL's recipes: no judge and no picture in training, equal numbers of drawings."""

from __future__ import annotations

import pytest

from unison.config import RunConfig
from unison.recipes import RECIPES
from unison.scenarios import SCENARIOS

RUNS = {
    name: run for name, make in RECIPES.items() if name.startswith("unirl/") and isinstance(run := make(), RunConfig)
}


@pytest.mark.parametrize("name", RUNS)
def test_training_sees_neither_judge_nor_picture(name: str) -> None:
    run = RUNS[name]
    assert {*run.rewards} <= {"accuracy", "accuracy_soft", "world_thought"}  # all of them read replies
    assert "image" not in SCENARIOS[run.scenario.name].fields
    assert run.evaluation.own_drawings


def test_the_tiny_variants_draw_equally_often() -> None:
    tiny = [run for name, run in RUNS.items() if "tiny" in name]
    drawings = {run.optim.steps * run.optim.items_per_step * run.scenario.group_size for run in tiny}
    assert len(tiny) == 3
    assert drawings == {80 * 96}


def test_a_recipe_is_found_by_the_name_it_carries() -> None:
    assert all(run.recipe == name for name, run in RUNS.items())
