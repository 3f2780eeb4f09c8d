"""Configurations that earlier layouts wrote: what has moved is moved, what is gone must say what holds now."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from unison.config.fields import require
from unison.types import AnswerKind, ImageSampling

Values = dict[str, Any]
MOVED = {
    "policy.recompute": "policy.gradient_checkpointing",
    "optim.items_per_step": "step.items",
    "optim.updates_per_rollout": "step.updates",
    **{f"optim.micro_batch_{what}": f"step.micro_batch_{what}" for what in ("items", "images")},
    **{f"optim.{name}": f"step.{name}" for name in ("rollout_items", "refills")},
    "optim.scoring": "scoring.drawings",
    "optim.scored_rounds": "scoring.rounds",
    **{f"optim.{name}": f"scoring.{name}" for name in ("least_masked", "old_logp")},
    "retention.data.question_suffix": "retention.question_suffix",
}
GONE: Values = {
    **{f"scenario.text.{f.name}": f.default for f in dataclasses.fields(ImageSampling) if f.name != "temperature"},
    "scenario.text.noisy_steps": [],
    "scenario.image.max_tokens": 512,
    "scenario.window.stride": 1,
    "scenario.relax_canvas": "round",
    "remote.requests": 16,
    "remote.rows": 16,
    "advantage.epsilon": 1e-4,
    "objective.text_weight": 1.0,
    "objective.image_weight": 1.0,
    "optim.max_bad_steps": 3,
    "evaluation.gallery": 18,
    "peak_flops": 0.0,
    "profile": 0,
    "retention.replay_rewards": {"accuracy": 1.0},
    "retention.fall": 0.05,
    "retention.kl_factor": 2.0,
    "retention.data.questions": "open_ended",
    "retention.data.columns": {},
    "retention.data.kinds": {},
    "retention.data.skip_bad_rows": False,
    "retention.data.streaming": 0,
}
"""Options that are none any more, and what holds now."""
REMEDY = "in this version; take it out of the file to go on like that, or use the version that wrote it"


def modern(values: Values) -> None:
    """Turns what an earlier layout wrote into the present one, in place; what the present one wrote stays.

    Raises:
        ValueError: an option that is none any more has another value than holds now.
    """
    for place in ("data", "retention.data"):
        _sources(_section(values, place))
    _questions(_section(values, "retention"))
    _window(_section(values, "scenario.window"))
    _learning(*(_section(values, name) for name in ("advantage", "objective", "policy", "optim")))
    for old, new in MOVED.items():
        for value in _taken(values, old):
            place, _, name = new.rpartition(".")
            values.setdefault(place, {})[name] = value
    for old, kept in GONE.items():
        for value in _taken(values, old):
            require(value == kept, old, value, f"{kept!r} {REMEDY}")
    if _section(values, "retention").get("data") == {}:
        del values["retention"]["data"]


def _sources(data: Values) -> None:
    """The kind of the world's items and the file of excluded prompts are parts of the source that they belong to."""
    kind, asked, file = data.pop("world", "scenes"), data.pop("asked", "task"), data.pop("excluded", "")
    kind = "counts" if (kind, asked) == ("scenes", "count") else kind
    world, prompts = "world" if kind == "scenes" else f"world:{kind}", f"prompts:{file}" if file else "prompts"
    for name in {"train", "eval"} & data.keys():
        data[name] = {"world": world, "prompts": prompts}.get(data[name], data[name])
    if suffixes := data.pop("suffixes", {}):
        common = data.get("question_suffix", "")
        data["question_suffix"] = {kind: suffixes.get(kind, common) for kind in get_args(AnswerKind)}


def _questions(retention: Values) -> None:
    data = _section(retention, "data")
    if {"train", "eval"} <= data.keys():
        train, held_out, replayed = data.pop("train"), data.pop("eval"), retention.get("replay_items", 0)
        same = train == held_out or not (replayed and retention.get("probe_items", 0))
        rule = f"retention.data.train = {train!r}, for both are splits of one retention.source {REMEDY}"
        require(same, "retention.data.eval", held_out, rule)
        retention["source"] = train if replayed else held_out


def _window(window: Values) -> None:
    kind, size = window.pop("kind", "given"), window.pop("size", 4)
    require(kind != "random", "scenario.window.kind", kind, f"'given' or 'sliding' {REMEDY}")
    if kind == "sliding":
        window["width"] = size


def _learning(advantage: Values, objective: Values, policy: Values, optim: Values) -> None:
    """Fields that another one says now."""
    rank, kind = policy.get("lora_rank", 0), advantage.get("kind", "group")
    for divided in _taken(advantage, "divide_by_std"):
        require(not divided or kind != "rloo", "advantage.divide_by_std", divided, f"False with 'rloo' {REMEDY}")
        advantage["kind"] = "mean" if kind == "group" and not divided else kind
    for length in _taken(objective, "constant_length"):
        if objective.get("aggregation") == "constant":
            objective["aggregation"] = length
    for alpha in _taken(policy, "lora_alpha"):
        require(not rank or alpha == 2 * rank, "policy.lora_alpha", alpha, f"twice the rank {REMEDY}")
    for exported in _taken(optim, "exported"):
        average = exported == "average" or not optim.get("ema_decay")
        require(average, "optim.exported", exported, f"'average' with optim.ema_decay, or that 0, {REMEDY}")


def _section(values: Values, path: str) -> Values:
    """The section at that path; an empty one where there is none."""
    for name in filter(None, path.split(".")):
        values = found if isinstance(found := values.get(name), dict) else {}
    return values


def _taken(values: Values, path: str) -> list[Any]:
    """The value of a field, which is taken out, if it is there."""
    place, _, name = path.rpartition(".")
    section = _section(values, place)
    return [section.pop(name)] if name in section else []
