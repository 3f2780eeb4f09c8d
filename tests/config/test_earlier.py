"""Configurations that earlier layouts wrote are read or refused, and never misread.

`earlier/defaults.json` has every field of a run of the layout of 145 options with its default; the others are of real
run folders.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unison import recipes
from unison.config import RunConfig, from_json, to_json
from unison.config.earlier import MOVED
from unison.training import chain

FILES = Path(__file__).parent / "earlier"
MAPPINGS = ("rewards", "columns", "question_suffix", "suffixes", "kinds", "part_learning_rates", "replay_rewards")
GONE = {
    *("policy.lora_alpha", "scenario.image.max_tokens", "scenario.window.stride", "scenario.relax_canvas"),
    *("remote.requests", "remote.rows", "advantage.epsilon", "objective.text_weight", "objective.image_weight"),
    *("optim.max_bad_steps", "evaluation.gallery", "retention.replay_rewards", "retention.fall", "retention.kl_factor"),
    *("retention.data.questions", "retention.data.columns", "retention.data.kinds", "retention.data.skip_bad_rows"),
    *("retention.data.streaming", "peak_flops", "profile"),
}
"""Fields that are refused wherever they say another thing than holds now; those of texts besides."""
OF_TEXTS = ("scenario.text.temperature", "scenario.text.max_tokens")
JOINED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "data.train": ({"data.train": "a.jsonl"}, {"data.train": "a.jsonl"}),
    "data.eval": ({"data.eval": "a.jsonl"}, {"data.eval": "a.jsonl"}),
    "data.world": (
        {"data.world": "riddles", "data.train": "a.jsonl"},
        {"data.train": "a.jsonl", "data.eval": "world:riddles"},
    ),
    "data.asked": ({"data.asked": "count"}, {"data.train": "world:counts", "data.eval": "world:counts"}),
    "data.excluded": ({"data.excluded": "f.jsonl", "data.train": "prompts"}, {"data.train": "prompts:f.jsonl"}),
    "data.suffixes": (
        {"data.suffixes": {"open_ended": "Say."}, "data.question_suffix": "Think."},
        {"data.question_suffix": {"multiple_choice": "Think.", "open_ended": "Say."}},
    ),
    "scenario.window.kind": ({"scenario.window.kind": "sliding"}, {"scenario.window.width": 4}),
    "scenario.window.size": (
        {"scenario.window.kind": "sliding", "scenario.window.size": 3},
        {"scenario.window.width": 3},
    ),
    "advantage.divide_by_std": ({"advantage.divide_by_std": False}, {"advantage.kind": "mean"}),
    "objective.aggregation": ({"objective.aggregation": "constant"}, {"objective.aggregation": 512}),
    "objective.constant_length": (
        {"objective.aggregation": "constant", "objective.constant_length": 7},
        {"objective.aggregation": 7},
    ),
    "policy.lora_rank": ({"policy.lora_rank": 8}, {"policy.lora_rank": 8}),  # whose alpha is 16 by default
    "optim.ema_decay": ({"optim.ema_decay": 0.9, "optim.exported": "average"}, {"optim.ema_decay": 0.9}),
    "optim.exported": ({"optim.ema_decay": 0.9, "optim.exported": "average"}, {"optim.ema_decay": 0.9}),
    "retention.data.train": (
        {"retention.data.train": "a", "retention.replay_items": 2},
        {"retention.source": "a", "retention.replay_items": 2},
    ),
    "retention.data.eval": (
        {"retention.data.eval": "a", "retention.probe_items": 2},
        {"retention.source": "a", "retention.probe_items": 2},
    ),
    "retention.data.world": ({"retention.data.world": "steps"}, {"retention.source": "world:steps"}),
    "retention.data.asked": ({"retention.data.asked": "count"}, {"retention.source": "world:counts"}),
    "retention.data.excluded": (
        {"retention.data.excluded": "f", "retention.data.eval": "prompts"},
        {"retention.source": "prompts:f"},
    ),
    "retention.data.suffixes": (
        {"retention.data.suffixes": {"open_ended": "Say."}},
        {"retention.question_suffix": {"multiple_choice": "", "open_ended": "Say."}},
    ),
}
"""Fields that make another together with others: old values, and what is to be read of them."""
OTHERS: dict[str, Any] = {
    "objective.name": "sft",
    "scenario.name": "self_improve",
    "optim.scoring": "noised",
    "optim.least_masked": None,  # goes with one kind of scoring alone, as do the next
    "scenario.answerer": None,
    "retention.watch": None,
    "retention.on_fall": "stop",
    "advantage.kind": "reward",
    "objective.reference_decay": None,
    "distributed.processes_per_group": 2,
    "optim.updates_per_rollout": 2,
    "optim.items_per_step": 32,
    "optim.micro_batch_items": 4,
    "optim.max_norm_ratio": 2.0,
    "reward_normalisation": "running",
}
"""Another value of a field where that is not plain; None where it cannot be alone, and `TOGETHER` has it."""
TOGETHER: dict[str, dict[str, Any]] = {
    "optim.least_masked": {"optim.scoring": "random_masks", "optim.least_masked": 0.5},
    "scenario.answerer": {"scenario.name": "self_improve", "scenario.answerer": "both"},
    "retention.watch": {"evaluation.every": 5, "retention.watch": ["probe"]},
    "objective.reference_decay": {"objective.kl_beta": 0.1, "objective.reference_decay": 0.5},
}
CHOICES = {
    "policy.dtype": "bfloat16",
    "policy.compute_dtype": "bfloat16",
    "policy.rollout_dtype": "bfloat16",
    "policy.attention": "flex",
    "policy.recompute": "never",
    "data.questions": "mixed",
    "data.kinds": {"essay": "open_ended"},
    "scenario.image.sde": "simple",
    "scenario.image.noisy_steps": [1, 2],
    "distributed.strategy": "fsdp2",
    "objective.level": "sequence",
    "optim.old_logp": "recomputed",
    "optim.schedule": "linear",
    "optim.betas": [0.5, 0.6],
    "optim.part_learning_rates": {"a": 0.5},
    "objective.image_clip": 0.1,
    "objective.image_kl_beta": 0.1,
}


def leaves(values: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict) and name not in MAPPINGS:
            yield from leaves(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def read(name: str) -> dict[str, Any]:
    return json.loads((FILES / f"{name}.json").read_text())


def with_fields(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    values = json.loads(json.dumps(values))
    for path, value in changes.items():
        *places, name = path.split(".")
        section = values
        for place in places:
            section = section[place]
        section[name] = value
    return values


def read_now(changes: dict[str, Any]) -> dict[str, Any]:
    """Every field of what is read of the defaults with some changes."""
    config = from_json(json.dumps(with_fields(read("defaults"), changes)))
    return dict(leaves(json.loads(to_json(config))))


OLD = dict(leaves(read("defaults")))
NOW = read_now({})


def another(path: str) -> Any:
    """A value that a field may have besides its default."""
    value = OTHERS.get(path, CHOICES.get(path))
    if value is not None:
        return value
    match OLD[path]:
        case bool(old):
            return not old
        case int(old):
            return old + 1
        case float(old):
            return old + 0.5 if old else 0.5
        case str():
            return "another"
        case dict():
            return {"another": 2.0} if "rewards" in path else {"another": "value"}
        case _:
            return ["another"]


def is_gone(path: str) -> bool:
    return path in GONE or (path.startswith("scenario.text.") and path not in OF_TEXTS)


def test_the_layout_that_is_read_has_145_fields_each_of_which_is_looked_at() -> None:
    assert len(OLD) == 145
    for path in OLD:
        known = is_gone(path) or path in MOVED or path in JOINED or path in NOW
        assert known, f"{path} is read by nothing"


def test_defaults_become_defaults() -> None:
    old = read("defaults")
    config = from_json(json.dumps(old))
    assert config == RunConfig(old["recipe"], dataclasses.replace(config.policy), rewards=old["rewards"])
    assert config.policy == type(config.policy)(old["policy"]["path"])


@pytest.mark.parametrize("path", [path for path in OLD if is_gone(path)])
def test_a_field_that_is_gone_is_refused_at_another_value_in_one_sentence(path: str) -> None:
    needed = {"policy.lora_rank": 8} if path == "policy.lora_alpha" else {}
    value = {"scenario.text.sde": "ode", "scenario.text.noisy_steps": [1]}.get(path, another(path))
    with pytest.raises(ValueError, match="in this version; take it out of the file") as caught:
        from_json(json.dumps(with_fields(read("defaults"), needed | {path: value})))
    assert str(caught.value).startswith(f"{path} = {value!r}: must be ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", [path for path in OLD if not is_gone(path) and path not in JOINED])
def test_a_field_that_stays_is_read_to_where_it_is_now(path: str) -> None:
    changes = TOGETHER.get(path, {path: another(path)})
    changed = {name: value for name, value in read_now(changes).items() if value != NOW[name]}
    assert changed == {MOVED.get(name, name): value for name, value in changes.items()}


@pytest.mark.parametrize("path", JOINED)
def test_fields_that_are_one_now_are_read_together(path: str) -> None:
    old, expected = JOINED[path]
    assert path in old
    assert {name: value for name, value in read_now(old).items() if value != NOW[name]} == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario.window.kind": "random"}, r"scenario\.window\.kind = 'random'.* in this version"),
        ({"advantage.kind": "rloo"}, r"advantage\.divide_by_std = True.* in this version"),
        ({"optim.ema_decay": 0.9}, r"optim\.exported = 'trained'.* in this version"),
        (
            {"retention.data.eval": "a", "retention.replay_items": 1, "retention.probe_items": 1},
            r"retention\.data\.eval = 'a': .*one retention\.source in this version",
        ),
    ],
)
def test_what_has_no_equal_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(with_fields(read("defaults"), changes)))


@pytest.mark.parametrize("recipe", ["corl/tiny-unified", "unirl/tiny-showo-grpo", "unirl-zero/tiny-edit"])
def test_a_run_folder_of_before_is_the_recipe_of_today(recipe: str) -> None:
    run = recipes.find(recipe)()
    assert isinstance(run, RunConfig)
    assert from_json(json.dumps(read(recipe.replace("/", "-")))) == dataclasses.replace(
        run,
        optim=dataclasses.replace(run.optim, steps=3),
        evaluation=dataclasses.replace(run.evaluation, items=24),
        seed=7,
        out=Path("runs/three"),
    )


def test_the_stages_of_a_chain_of_before_are_read_too(tmp_path: Path) -> None:
    (tmp_path / chain.FILE).write_text(json.dumps([read("corl-tiny-unified"), read("unirl-zero-tiny-edit")]))
    assert [config.recipe for config in chain.load(tmp_path)] == ["corl/tiny-unified", "unirl-zero/tiny-edit"]


def test_reading_leaves_what_is_written_today_as_it_is() -> None:
    for make in recipes.RECIPES.values():
        made = make()
        for config in [made] if isinstance(made, RunConfig) else [stage.config for stage in made]:
            assert from_json(to_json(config)) == config
