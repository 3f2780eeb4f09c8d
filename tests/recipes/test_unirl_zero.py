"""UniRL-Zero's recipes: the paper's numbers, what is trained in which, and that each runs on a small random model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from unison import recipes
from unison.config import Chain, EvalConfig, RunConfig, Stage
from unison.planning.memory import estimate_memory
from unison.policies.metaquery.policy import MetaQuery
from unison.policies.sizes import shape_of
from unison.recipes.unirl_zero import JOINT, tiny_draw, tiny_think
from unison.rewards import load_rewards
from unison.scenarios import SCENARIOS
from unison.training import chain
from unison.training.trainer import Trainer
from unison.types import Sampling

NAMES = [name for name in recipes.RECIPES if name.startswith("unirl-zero/")]
TINY = [name for name in NAMES if "/tiny-" in name]


def stages(name: str) -> list[RunConfig]:
    made = recipes.find(name)()
    return [made] if isinstance(made, RunConfig) else [stage.config for stage in made]


def every() -> Iterator[tuple[str, RunConfig]]:
    for name in NAMES:
        for run in stages(name):
            yield name, run


def rl(name: str) -> RunConfig:
    return stages(f"unirl-zero/{name}")[-1]


# -- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["draw", "edit", "think", "reflect", "text", "reasoning"])
def test_published_sizes_have_the_papers_numbers(name: str) -> None:
    run = rl(name)
    assert run.policy.path == JOINT
    assert (run.scenario.group_size, run.optim.items_per_step, run.advantage.clamp) == (8, 8, 5.0)
    image = run.scenario.image
    assert (image.steps, image.shift, image.noise_level, image.sde) == (10, 3.0, 0.7, "flow_grpo")
    assert (image.guidance, image.source_guidance) == ((3.0, 1.0) if name == "edit" else (3.5, 1.0))
    objective = run.objective
    assert (objective.kl_beta, objective.image_clip) == (0.01, 1e-4)
    assert objective.image_kl_beta == (3e-4 if name == "edit" else 4e-3)


def test_published_rates_and_weights_are_the_papers() -> None:
    assert rl("draw").optim.learning_rate == rl("edit").optim.learning_rate == 1e-5
    think = rl("think")
    assert (think.optim.learning_rate, think.optim.part_learning_rates) == (3e-6, {"^qwen": 5e-7})
    assert think.scenario.text.max_tokens == 512
    assert {*think.rewards} == {"geneval", "format"}
    assert rl("edit").rewards.items() >= {"clip_direction": 4.0, "clip_reconstruction": 1.0}.items()
    assert rl("jpeg-compressible").rewards == {"jpeg_kilobytes": -1 / 500}
    assert rl("jpeg-incompressible").rewards == {"jpeg_kilobytes": 1.0}
    start = stages("unirl-zero/think")[0]
    assert start.optim.steps * start.optim.items_per_step == pytest.approx(10_000, rel=0.01)


def test_a_recipe_is_found_by_the_name_it_carries() -> None:
    assert all(run.recipe == name for name, run in every())


@pytest.mark.parametrize("name", NAMES)
def test_rewards_exist_and_the_two_sizes_run_one_scenario(name: str) -> None:
    for run in stages(name):
        load_rewards([*run.rewards, *run.evaluation.rewards])
    other = name.replace("/tiny-", "/") if "/tiny-" in name else name.replace("/", "/tiny-")
    assert [run.scenario.name for run in stages(name)] == [run.scenario.name for run in stages(other)]


# -- what is trained -------------------------------------------------------------------------------------------------


def trained(network: nn.Module, run: RunConfig) -> set[str]:
    """The parts that have a weight that is trained."""
    found = set()
    for name, _ in network.named_parameters():
        if not name.startswith("vae") and not any(re.search(pattern, name) for pattern in run.policy.frozen):
            found.add("eyes" if ".visual." in name else ".".join(name.split(".")[: 3 if "queries" in name else 1]))
    return found


WHOLE = {"bridge", "transformer", "bridge.queries.draw", "bridge.queries.edit"}


@pytest.mark.parametrize("size", ["", "tiny-"])
def test_each_scenario_trains_the_parts_that_the_paper_says(metaquery: MetaQuery, size: str) -> None:
    parts = {name: trained(metaquery.network, rl(size + name)) for name in ("text", "reasoning", "draw", "edit")}
    assert parts["text"] == parts["reasoning"] == {"qwen"}
    assert parts["draw"] == WHOLE - {"bridge.queries.edit"}
    assert parts["edit"] == WHOLE - {"bridge.queries.draw"}
    assert trained(metaquery.network, rl(f"{size}think")) == {"qwen", *WHOLE} - {"bridge.queries.edit"}
    assert trained(metaquery.network, rl(f"{size}reflect")) == {"qwen", *WHOLE}


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith(("think", "reflect"))])
def test_cold_starts_imitate_with_the_language_model_frozen(metaquery: MetaQuery, name: str) -> None:
    start, run = stages(name)
    assert trained(metaquery.network, start) == trained(metaquery.network, run) - {"qwen"}
    assert (start.objective.name, start.advantage.kind, start.rewards) == ("sft", "constant", {})
    assert SCENARIOS[start.scenario.name].held_out == run.scenario.name  # both stages are evaluated alike


# -- leaving out the cold start --------------------------------------------------------------------------------------


def test_without_its_cold_start_a_chain_begins_with_the_checkpoint_itself(tmp_path: Path) -> None:
    made = recipes.find("unirl-zero/tiny-think")()
    assert not isinstance(made, RunConfig)
    (run,) = chain.placed(chain.without_cold_start(made), tmp_path)
    assert run.policy == made[1].config.policy
    assert chain.placed(made, tmp_path)[1].policy.path == str(tmp_path / "cold-start" / "checkpoints" / "final")
    later = Stage("more", run, start="rl")
    assert [stage.start for stage in chain.without_cold_start((*made, later))] == ["", "rl"]


def test_a_chain_without_a_cold_start_says_so() -> None:
    made = recipes.find("corl/tiny")()
    assert not isinstance(made, RunConfig)
    with pytest.raises(ValueError, match="no cold start, a stage named 'cold-start'"):
        chain.without_cold_start(made)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_the_joined_checkpoint_has_the_published_sizes() -> None:
    sizes: dict[str, int] = {}
    for name, parameter in shape_of(rl("draw").policy).policy.network.named_parameters():
        part = name.split(".")[0]
        sizes[part] = sizes.get(part, 0) + parameter.numel()
    assert sizes["qwen"] == 3_754_622_976
    assert sizes["transformer"] == pytest.approx(1.6e9, rel=0.01)
    assert sizes["vae"] == pytest.approx(3.12e8, rel=0.01)


def test_memory_grows_with_what_is_trained_and_with_states_in_one_pass() -> None:
    draw, think = tiny_draw(), tiny_think()[-1].config
    name = "optimiser (AdamW)"
    assert estimate_memory(draw).lasting[name] < estimate_memory(think).lasting[name]
    two, four = (
        estimate_memory(replace(draw, policy=replace(draw.policy, states_per_pass=count))).lines() for count in (2, 4)
    )
    assert two["activations of a micro-batch"] < four["activations of a micro-batch"]
    assert all(two[name] == four[name] for name in two if name not in ("activations of a micro-batch", "peak"))


# -- running ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(metaquery: MetaQuery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "metaquery"
    metaquery.save(path)
    return path


def small(run: RunConfig, folder: Path) -> RunConfig:
    """Two steps on two items, on the small random model."""
    scenario = replace(
        run.scenario,
        group_size=min(run.scenario.group_size, 2),
        text=Sampling(max_tokens=6),
        image=replace(run.scenario.image, steps=2, noisy_steps=()),
    )
    return replace(
        run,
        policy=replace(run.policy, path=str(folder)),
        scenario=scenario,
        optim=replace(run.optim, steps=2, items_per_step=2, micro_batch_items=2, warmup_steps=0),
        evaluation=EvalConfig(items=3, gallery=1, rewards=run.evaluation.rewards),
        trackers=(),
    )


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def evaluated(run: Path) -> dict[str, Any]:
    return json.loads((run / "eval" / "000002.json").read_text())["records"][0]


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_trains_evaluates_and_saves(name: str, folder: Path, tmp_path: Path) -> None:
    made = recipes.find(name)()
    found: Chain = (Stage("rl", made),) if isinstance(made, RunConfig) else made
    placed = chain.placed(tuple(replace(s, config=small(s.config, folder)) for s in found), tmp_path)
    chain.run(placed, lambda config, resume: Trainer(config, resume).train())
    for config in placed:
        assert (config.out / "checkpoints" / "final" / "config.json").is_file()
        for row in rows(config.out):
            assert row["skipped_step"] == 0
            assert row["grad_norm"] > 0 or row["constant_step"] == 1
    record = evaluated(placed[-1].out)
    assert (record["drawing_correct"] is None) is (placed[-1].data.world in ("puzzles", "steps"))
    assert all(record[f"reward/{reward}"] is not None for reward in placed[-1].evaluation.rewards)


def test_all_turns_of_a_reflection_are_trained_with_ratio_one(folder: Path, tmp_path: Path) -> None:
    run = small(rl("tiny-reflect"), folder)
    run = replace(run, out=tmp_path / "run", optim=replace(run.optim, steps=1), evaluation=EvalConfig(items=1))
    (row,) = rows(Trainer(run).train())
    for modality in ("text", "image"):
        assert row[f"{modality}/ratio"] == pytest.approx(1, abs=1e-4)
        assert row[f"{modality}/grad_norm"] > 0 or row["constant_step"] == 1


def test_words_of_a_frozen_language_model_are_logged_and_not_trained(folder: Path, tmp_path: Path) -> None:
    run = small(rl("tiny-think"), folder)
    policy = replace(run.policy, frozen=("^qwen",))
    optim = replace(run.optim, steps=1, part_learning_rates={})
    run = replace(run, policy=policy, optim=optim, out=tmp_path / "run", evaluation=EvalConfig(items=1))
    trainer = Trainer(replace(run, rewards={"world_clean": 1.0}))
    before = {name: p.detach().clone() for name, p in trainer.policy.network.named_parameters()}
    (row,) = rows(trainer.train())
    assert row["text/ratio"] == pytest.approx(1, abs=1e-4)
    assert row["text/grad_norm"] == 0
    assert row["image/grad_norm"] > 0
    moved = {n.split(".")[0] for n, p in trainer.policy.network.named_parameters() if not p.equal(before[n])}
    assert moved == {"bridge", "transformer"}


def test_held_out_items_are_drawn_by_the_scenario_itself(folder: Path, tmp_path: Path) -> None:
    run = small(rl("tiny-edit"), folder)
    run = replace(run, out=tmp_path / "run", optim=replace(run.optim, steps=1))
    trainer = Trainer(run)
    record = trainer.evaluate(3).records[0]
    assert record["image"] is not None
    assert record["own_reply"] is None
    assert record["drawing_score"] is not None  # of the edit, by the target
    assert {"reward/world_cycle", "reward/world_clean"} <= {*record}
