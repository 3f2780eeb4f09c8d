"""UniRL's recipes: no judge and no picture in training, equal numbers of drawings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unison.config import RunConfig
from unison.recipes import RECIPES
from unison.recipes.unirl import SCENARIOS as SCENARIO_NAMES
from unison.scenarios import SCENARIOS
from unison.world.pretrain_showo import SAMPLED

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
    assert len(tiny) == 6
    assert drawings == {80 * 96}


@pytest.mark.parametrize("method", SCENARIO_NAMES)
def test_the_tiny_models_differ_in_model_and_drawing_alone(method: str) -> None:
    janus, showo = (RUNS[f"unirl/tiny-{model}-{method}"] for model in ("janus", "showo"))
    assert showo.policy.path == "assets/tiny-showo"
    assert showo.scenario.image == SAMPLED
    assert showo.out != janus.out
    same = replace(
        janus,
        recipe=showo.recipe,
        policy=showo.policy,
        scenario=replace(janus.scenario, image=SAMPLED),
        optim=replace(janus.optim, scored_rounds=showo.optim.scored_rounds),
        out=showo.out,
    )
    assert same == showo


@pytest.mark.parametrize("size", [256, 512])
def test_show_o_has_the_papers_numbers(size: int) -> None:
    grpo, sft = (RUNS[f"unirl/show-o-{size}-{method}"] for method in ("grpo", "sft"))
    for run in (grpo, sft):
        assert run.policy.path == {256: "showlab/show-o", 512: "showlab/show-o-512x512"}[size]
        assert run.optim.learning_rate == 1e-5
        assert (run.scenario.image.guidance, run.scenario.image.rounds) == (6.0, 50)
        assert run.data.train == "prompts"
    assert 3 <= grpo.scenario.group_size <= 6
    assert 0 < grpo.optim.scored_rounds < 50
    assert sft.scenario.group_size == 1
    assert sft.optim.items_per_step == grpo.optim.items_per_step * grpo.scenario.group_size


def test_a_recipe_is_found_by_the_name_it_carries() -> None:
    assert all(run.recipe == name for name, run in RUNS.items())
