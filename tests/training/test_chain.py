"""Chains: where stages lie, what they start from, what is left to do."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from unison.config import RunConfig, Stage
from unison.recipes import corl
from unison.training import chain


def names(out: Path, configs: list[RunConfig]) -> list[str]:
    return [str(config.out.relative_to(out)) for config in configs]


def test_the_refinements_start_from_the_unified_stage(tmp_path: Path):
    configs = chain.placed(corl.tiny(), tmp_path)
    assert names(tmp_path, configs) == ["unified", "draw", "multiple-choice", "open-ended"]
    first, *others = configs
    assert first.policy.path == "assets/tiny-janus"
    assert {config.policy.path for config in others} == {str(tmp_path / "unified" / "checkpoints" / "final")}
    assert all(config.objective.kl_beta == 0.02 for config in others)


def test_the_tasks_of_a_cycle_take_turns_on_one_model(tmp_path: Path):
    configs = chain.placed(corl.tiny_cycle(), tmp_path)
    assert [config.scenario.name for config in configs] == ["t2i", "understanding"] * 4
    for before, after in pairwise(configs):
        assert after.policy.path == str(before.out / "checkpoints" / "final")
    unified = corl.tiny_unified().optim.steps
    assert sum(c.optim.steps for c in configs if c.scenario.name == "t2i") == unified
    assert len({(c.scenario.name, c.seed) for c in configs}) == len(configs)  # no turn sees another's items again


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([("a", ""), ("a", "")], "'a' comes twice"),
        ([("a", "b"), ("b", "")], "'a' starts from 'b', which is no earlier stage"),
    ],
)
def test_a_chain_that_cannot_be_placed_is_refused(stages: list[tuple[str, str]], message: str, tmp_path: Path):
    made = tuple(Stage(name, corl.tiny_unified(), start) for name, start in stages)
    with pytest.raises(ValueError, match=message):
        chain.placed(made, tmp_path)


def test_finished_stages_are_left_and_cut_ones_go_on(tmp_path: Path):
    configs = chain.placed(corl.tiny(), tmp_path)
    for folder, file in (("unified", "checkpoints/final/config.json"), ("draw", "checkpoints/last.old/state.json")):
        path = tmp_path / folder / file
        path.parent.mkdir(parents=True)
        path.write_text("")
    seen: list[tuple[str, bool]] = []
    chain.run(configs, lambda config, resume: seen.append((config.out.name, resume)))
    assert seen == [("draw", True), ("multiple-choice", False), ("open-ended", False)]


def test_a_saved_chain_is_read_back(tmp_path: Path):
    configs = chain.placed(corl.tiny(), tmp_path)
    chain.save(configs, tmp_path)
    assert chain.load(tmp_path) == configs
    (tmp_path / chain.FILE).write_text("[{")
    with pytest.raises(ValueError, match=r"chain\.json is not valid JSON"):
        chain.load(tmp_path)
