"""Recipes at published sizes: what must hold of all of them, shown on tiny policies with their settings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from unison import recipes
from unison.config import DataConfig, EvalConfig, RunConfig
from unison.data import open_items
from unison.data.objects import COCO, MORE
from unison.planning.dry_run import dry_run
from unison.rewards import require_judged, unjudged
from unison.scenarios import find
from unison.training.trainer import Trainer
from unison.types import TASKS, Split, Trajectory

NAMES = [name for name in recipes.RECIPES if "/tiny" not in name]
TINY = {"corl": "janus", "unirl/janus": "janus", "unirl/show": "showo", "unirl-zero": "metaquery"}


def stages() -> Iterator[tuple[str, RunConfig]]:
    """Every run of every published recipe, by a name of its own."""
    for name in NAMES:
        made = recipes.find(name)()
        for stage in [made] if isinstance(made, RunConfig) else [stage.config for stage in made]:
            yield f"{name} {stage.scenario.name} {stage.data.train.partition(':')[0]}", stage


RUNS = dict(stages())
COMPARED = {name: run for name, run in RUNS.items() if run.objective.name == "grpo"}


# -- ratios ----------------------------------------------------------------------------------------------------------


def tiny(name: str, run: RunConfig, out: Path) -> RunConfig:
    """The run's settings of learning and of types with the bundled model of its family, one item of the world."""
    family = next(tiny for start, tiny in TINY.items() if name.startswith(start))
    world = {"cycle_edit": "world:edits", "think_then_draw": "world:riddles"}.get(run.scenario.name, "world")
    rank = min(run.policy.lora_rank, 2)
    text, image = replace(run.scenario.text, max_tokens=6), replace(run.scenario.image, rounds=6)
    return replace(
        run,
        policy=replace(run.policy, path=f"assets/tiny-{family}", lora_rank=rank),
        data=replace(run.data, train=world, eval=world, columns={}),
        scenario=replace(run.scenario, group_size=2, text=text, image=image),
        scoring=replace(run.scoring, rounds=min(run.scoring.rounds, 3)),
        rewards={"format": 1.0} if "write" in find(run.scenario.name).verbs else {"jpeg_kilobytes": 1.0},
        step=replace(run.step, items=1, micro_batch_items=1),
        evaluation=EvalConfig(items=1),
        out=out,
        trackers=(),
    )


@pytest.mark.parametrize("name", COMPARED)
def test_the_one_update_of_a_rollout_is_to_what_scoring_says(name: str) -> None:
    run = COMPARED[name]
    assert (run.scoring.old_logp, run.step.updates, run.policy.compute_dtype) == ("recomputed", 1, "bfloat16")


@pytest.mark.parametrize("name", {repr((r.scenario.name, n.split("-")[0])): n for n, r in COMPARED.items()}.values())
def test_the_first_ratio_is_exactly_one_in_bfloat16(name: str, tmp_path: Path) -> None:
    """Whatever sampling gave."""
    trainer = Trainer(tiny(name, COMPARED[name], tmp_path))
    made = trainer.experience.sample(1)
    siblings: list[Trajectory] = [replace(t, reward=1.0) for t in made]
    update = trainer.update(siblings, [1.0, -1.0], 1)
    modalities = {turn.action.modality for t in siblings for turn in t.turns}
    assert modalities
    for modality in modalities:
        assert (update[f"{modality}/ratio"], update[f"{modality}/logp_difference"]) == (1, 0)
        assert update[f"{modality}/clip_fraction"] == 0
        assert update[f"{modality}/sampling_difference"] <= update[f"{modality}/sampling_difference_max"]


# -- data ------------------------------------------------------------------------------------------------------------

MADE = ("world", "prompts", "coco-prompts")
OWN = {name: run for name, run in RUNS.items() if run.data.train.partition(":")[0] in MADE}
DETECTED = ("geneval", "geneval_strict", "geneval_verdict", "geneval_improvement")


@pytest.mark.parametrize("name", OWN)
def test_rewards_judge_the_first_500_items(name: str) -> None:
    run = OWN[name]
    items = [*open_items(run.data.train, "train", run.data, run.seed, 500)]
    for spec in run.rewards:
        assert not unjudged(spec, items)
        for item in items if spec in DETECTED else ():
            assert item.wanted
            assert all(clause.noun in COCO for clause in (*item.wanted.include, *item.wanted.exclude))


def test_the_categories_of_prompts_for_a_detector_are_even_and_their_held_out_ones_new() -> None:
    splits: tuple[Split, ...] = ("train", "eval")
    train, held_out = ([*open_items("coco-prompts", split, DataConfig(), 0, 600)] for split in splits)
    assert Counter(item.task for item in train) == dict.fromkeys(TASKS, 100)
    assert not {str(item.wanted) for item in train} & {str(item.wanted) for item in held_out}
    assert all(item.question is None for item in train)


@pytest.mark.parametrize("name", ["unirl-zero/draw", "unirl-zero/think", "unirl-zero/reflect"])
def test_data_that_a_weighted_reward_cannot_judge_is_refused_with_a_count(name: str) -> None:
    run = next(run for one, run in COMPARED.items() if one.startswith(f"{name} "))
    run = replace(run, data=replace(run.data, train="prompts"))
    items = open_items("prompts", "train", run.data, run.seed, 240)
    lost = sum(any(noun in str(item.prompt) for noun in MORE) for item in items)
    with pytest.raises(ValueError, match=r"rewards = 'geneval' cannot judge \d+ of the first 240 items") as caught:
        dry_run(run)
    counted = int(str(caught.value).split(" cannot judge ")[1].split()[0])
    assert abs(counted - lost) <= 12  # a few names of ours stand within COCO's, and the other way round
    assert "coco-prompts" in str(caught.value)
    with pytest.raises(ValueError, match="cannot judge"):
        Trainer(run)


def test_a_reward_that_weighs_nothing_may_abstain() -> None:
    items = open_items("prompts", "train", DataConfig(), 0, 60)
    require_judged({"geneval": 0.0, "jpeg_kilobytes": 1.0, "remote:http://here/geneval": 1.0}, items, "prompts")
    assert 0.4 < len(unjudged("geneval_strict:folder", [*items])) / 60 < 0.9


# -- evaluations -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_published_sizes_are_evaluated_on_their_own_kind_of_data(name: str) -> None:
    run = RUNS[name]
    assert not run.data.held_out.startswith("world")
    if run.data.held_out in MADE:
        items = [*open_items(run.data.held_out, "eval", run.data, 0, 240)]
        judged = [len(items) - len(unjudged(spec, items)) for spec in run.evaluation.rewards]
        assert min(judged) >= 60
        assert run.evaluation.rewards


@pytest.mark.parametrize("name", RUNS)
def test_held_out_drawings_by_denoising_are_made_without_noise(name: str) -> None:
    assert RUNS[name].evaluation.noiseless is name.startswith("unirl-zero")


@pytest.mark.parametrize("name", NAMES)
def test_what_differs_from_the_released_code_is_told(name: str) -> None:
    told = {
        "corl": ("released code", "roberta-large", "bert-base-uncased", "linearly", "conditional branch", "bilinear"),
        "unirl-zero": ("released code", "SANA 1.0", "Bessel", "time shift"),
    }
    text = " ".join((recipes.find(name).__doc__ or "").split())
    for other in re.findall(r"as `([\w./-]+)`", text):
        text += " ".join((recipes.find(other).__doc__ or "").split())
    drawn = not name.endswith(("/text", "/reasoning"))
    for word in told.get(name.partition("/")[0], ()) if drawn else ():
        assert word in text
