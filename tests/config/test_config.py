"""Sections, the ranges of their fields, and how many fields there are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from unison.cli.help import sentences
from unison.config import (
    AdvantageConfig,
    DataConfig,
    DistributedConfig,
    EvalConfig,
    ObjectiveConfig,
    OptimConfig,
    PolicyConfig,
    RemoteConfig,
    RetentionConfig,
    RunConfig,
    ScenarioConfig,
    ScoringConfig,
    ServeConfig,
    StepConfig,
    WindowConfig,
)
from unison.types import ImageSampling, TextSampling

RUN = RunConfig("mine", PolicyConfig("assets/tiny-janus"), rewards={"accuracy": 1.0})


def fields(section: Any, place: str = "") -> Iterator[tuple[str, Any, str, Any]]:
    """Path, section, name and value of every field that holds no section."""
    for field in dataclasses.fields(section):
        value = vars(section)[field.name]
        if dataclasses.is_dataclass(value):
            yield from fields(value, f"{place}{field.name}.")
        else:
            yield f"{place}{field.name}", section, field.name, value


def test_a_run_has_at_most_a_hundred_options() -> None:
    assert len(list(fields(RUN))) <= 100


def test_every_option_has_a_sentence() -> None:
    for path, section, name, _ in fields(RUN):
        sentence = sentences(type(section)).get(name, "")
        assert sentence.endswith("."), f"{path} has no sentence"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_no_number_may_be_infinite_or_none_at_all(wrong: float) -> None:
    tried = 0
    for path, section, name, value in fields(RUN):
        changed: Any = {float: wrong, dict: {"a": wrong}, tuple: (wrong, wrong)}.get(type(value))
        floats = isinstance(value, float) or name in ("rewards", "betas", "part_learning_rates")
        if not floats:
            continue
        tried += 1
        if isinstance(section, RunConfig | TextSampling | ImageSampling):
            holder = RunConfig if isinstance(section, RunConfig) else ScenarioConfig
            part = path.split(".")[1] if holder is ScenarioConfig else ""
            whole: Any = RUN.scenario if part else RUN
            made = {part: dataclasses.replace(section, **{name: changed})} if part else {name: changed}
        else:
            whole, made = section, {name: changed}
        with pytest.raises(ValueError, match="must be a finite number") as caught:
            dataclasses.replace(whole, **made)
        assert str(caught.value).startswith(path), str(caught.value)
    assert tried > 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimConfig(learning_rate=0.0), "optim.learning_rate = 0.0: must be above 0"),
        (lambda: OptimConfig(steps=0), "optim.steps = 0: must be at least 1"),
        (lambda: OptimConfig(betas=(0.9, 2.0)), "optim.betas[1] = 2.0: must be between 0 and 1"),
        (lambda: OptimConfig(ema_decay=1.0), "optim.ema_decay = 1.0: must be at least 0 and below 1"),
        (lambda: OptimConfig(max_norm_ratio=0.5), "optim.max_norm_ratio = 0.5: must be above 1, or 0 (0 is off)"),
        (lambda: OptimConfig(schedule="cosin"), "optim.schedule = 'cosin': must be one of constant, linear, cosine"),  # type: ignore[arg-type]
        (lambda: ObjectiveConfig(image_clip=-1.0), "objective.image_clip = -1.0: must be at least 0, or None"),
        (lambda: ObjectiveConfig(aggregation=0), "objective.aggregation = 0: must be at least 1"),
        (lambda: ObjectiveConfig(aggregation="all"), "objective.aggregation = 'all': must be one of sequence, token"),  # type: ignore[arg-type]
        (lambda: AdvantageConfig(clamp=-1.0), "advantage.clamp = -1.0: must be at least 0"),
        (lambda: StepConfig(items=6, updates=4), "step.updates = 4: must be a divisor of step.items = 6"),
        (lambda: StepConfig(items=6, micro_batch_items=4), "step.micro_batch_items = 4: must be a divisor of the 6"),
        (lambda: ScoringConfig("whole_canvas", rounds=2), "scoring.rounds = 2: must be 0 with scoring.drawings"),
        (lambda: PolicyConfig("x", lora_rank=-1), "policy.lora_rank = -1: must be at least 0"),
        (lambda: DataConfig(train="world:riddle"), "data.train = 'world:riddle': the kind = 'riddle' is unknown"),
        (lambda: DataConfig(kinds={"a": "b"}), "data.kinds['a'] = 'b': must be one of multiple_choice, open_ended"),  # type: ignore[dict-item]
        (lambda: DataConfig(question_suffix={"mc": "x"}), "data.question_suffix: the name = 'mc': must be one of"),  # type: ignore[dict-item]
        (lambda: EvalConfig(items=0), "evaluation.items = 0: must be at least 1"),
        (lambda: RemoteConfig(timeout=0.0), "remote.timeout = 0.0: must be above 0"),
        (lambda: DistributedConfig("fsdp"), "distributed.strategy = 'fsdp': must be one of ddp, fsdp2"),  # type: ignore[arg-type]
        (lambda: RetentionConfig(replay_items=-1), "retention.replay_items = -1: must be at least 0"),
        (lambda: ServeConfig(batch=0), "batch = 0: must be at least 1"),
        (lambda: ScenarioConfig(group_size=0), "scenario.group_size = 0: must be at least 1"),
        (lambda: ScenarioConfig(window=WindowConfig(every=0)), "scenario.window.every = 0: must be at least 1"),
        (lambda: ScenarioConfig(text=TextSampling(max_tokens=0)), "scenario.text.max_tokens = 0: must be at least 1"),
        (
            lambda: ScenarioConfig(image=ImageSampling(guidance=0.5)),
            "scenario.image.guidance = 0.5: must be at least 1",
        ),
    ],
)
def test_a_section_names_the_field_that_is_wrong_as_soon_as_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=r"must be|is unknown") as caught:
        make()
    assert str(caught.value).startswith(message)
