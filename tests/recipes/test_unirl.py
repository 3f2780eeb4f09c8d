"""UniRL's recipes: no judge and no picture in training, equal numbers of drawings."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unison.config import RunConfig
from unison.recipes import RECIPES
from unison.recipes.unirl import SCENARIOS as SCENARIO_NAMES
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


@pytest.mark.parametrize(("model", "drawings"), [("janus", 60 * 96), ("showo", 20 * 128)])
def test_the_tiny_variants_of_a_model_draw_equally_often_in_equal_steps(model: str, drawings: int) -> None:
    runs = [RUNS[f"unirl/tiny-{model}-{method}"] for method in SCENARIO_NAMES]
    assert {r.optim.steps * r.step.items * r.scenario.group_size for r in runs} == {drawings}
    assert len({r.optim.steps for r in runs}) == 1


@pytest.mark.parametrize("method", SCENARIO_NAMES)
def test_the_tiny_models_differ_in_model_drawing_question_and_batch_alone(method: str) -> None:
    janus, showo = (RUNS[f"unirl/tiny-{model}-{method}"] for model in ("janus", "showo"))
    assert showo.policy.path == "assets/tiny-showo"
    assert showo.data.train == showo.data.eval == "world:counts"
    assert showo.out != janus.out
    same = replace(
        janus,
        recipe=showo.recipe,
        policy=showo.policy,
        scenario=replace(janus.scenario, image=showo.scenario.image),
        data=replace(janus.data, train="world:counts", eval="world:counts"),
        step=replace(janus.step, items=showo.step.items, micro_batch_items=showo.step.micro_batch_items),
        scoring=replace(janus.scoring, rounds=showo.scoring.rounds),
        optim=replace(janus.optim, steps=showo.optim.steps),
        out=showo.out,
    )
    assert same == showo


@pytest.mark.parametrize("model", ["janus", "showo"])
def test_grpo_holds_answers_alone_to_the_model_before_training(model: str) -> None:
    objective = RUNS[f"unirl/tiny-{model}-grpo"].objective
    assert objective.of("text").kl_beta > 0 == objective.of("image").kl_beta


@pytest.mark.parametrize("size", [256, 512])
def test_show_o_has_the_papers_numbers(size: int) -> None:
    grpo, sft = (RUNS[f"unirl/show-o-{size}-{method}"] for method in ("grpo", "sft"))
    for run in (grpo, sft):
        assert run.policy.path == {256: "showlab/show-o", 512: "showlab/show-o-512x512"}[size]
        assert run.optim.learning_rate == 1e-5
        assert (run.scenario.image.guidance, run.scenario.image.rounds) == (6.0, 50)
        assert run.data.train == "prompts"
    assert 3 <= grpo.scenario.group_size <= 6
    assert 0 < grpo.scoring.rounds < 50
    assert sft.scenario.group_size == 1
    assert sft.step.items == grpo.step.items * grpo.scenario.group_size


def test_a_recipe_is_found_by_the_name_it_carries() -> None:
    assert all(run.recipe == name for name, run in RUNS.items())
