"""Configurations that earlier layouts wrote: renamed fields are moved, fields that are gone are refused unless they say
what holds now."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from unison.types import AnswerKind, ImageSampling

MOVED = {
    "policy.recompute": "policy.gradient_checkpointing",
    "optim.items_per_step": "step.items",
    "optim.micro_batch_items": "step.micro_batch_items",
    "optim.micro_batch_images": "step.micro_batch_images",
    "optim.rollout_items": "step.rollout_items",
    "optim.refills": "step.refills",
    "optim.updates_per_rollout": "step.updates",
    "optim.scoring": "scoring.drawings",
    "optim.scored_rounds": "scoring.rounds",
    "optim.least_masked": "scoring.least_masked",
    "optim.old_logp": "scoring.old_logp",
    "retention.data.question_suffix": "retention.question_suffix",
}
GONE: dict[str, Any] = {
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
    "retention.data.questions": "open_ended",
    "retention.data.columns": {},
    "retention.data.kinds": {},
    "retention.data.skip_bad_rows": False,
    "retention.data.streaming": 0,
    "retention.replay_rewards": {"accuracy": 1.0},
    "retention.fall": 0.05,
    "retention.kl_factor": 2.0,
    "peak_flops": 0.0,
    "profile": 0,
}
"""Fields that can no longer be set, and what holds now."""

Values = dict[str, Any]


def modern(values: Values) -> None:
    """Turns what an earlier layout wrote into the present layout, in place; what the present one wrote stays.

    Raises:
        ValueError: a field that is gone has another value than holds now.
    """
    for place in ("data", "retention.data"):
        _sources(_section(values, place))
    _questions(_section(values, "retention"))
    _window(_section(values, "scenario.window"))
    _advantage(_section(values, "advantage"))
    _aggregation(_section(values, "objective"))
    _adapters(_section(values, "policy"))
    _average(_section(values, "optim"))
    for old, new in MOVED.items():
        for value in _taken(values, old):
            place, _, name = new.rpartition(".")
            values.setdefault(place, {})[name] = value
    for old, kept in GONE.items():
        for value in _taken(values, old):
            _refuse_unless(value == kept, old, value, f"{kept!r} always holds now")
    if _section(values, "retention").get("data") == {}:
        del values["retention"]["data"]


def _sources(data: Values) -> None:
    """The kind of the world's items and the file of excluded prompts are parts of the source that they belong to."""
    kind, asked, file = data.pop("world", "scenes"), data.pop("asked", "task"), data.pop("excluded", "")
    kind = "counts" if (kind, asked) == ("scenes", "count") else kind
    own = {
        "world": f"world:{kind}" if kind != "scenes" else "world",
        "prompts": f"prompts:{file}" if file else "prompts",
    }
    for name in {"train", "eval"} & data.keys():
        data[name] = own.get(data[name], data[name])
    if suffixes := data.pop("suffixes", {}):
        common = data.get("question_suffix", "")
        data["question_suffix"] = {kind: suffixes.get(kind, common) for kind in get_args(AnswerKind)}


def _questions(retention: Values) -> None:
    data = _section(retention, "data")
    if not {"train", "eval"} <= data.keys():
        return
    train, held_out = data.pop("train"), data.pop("eval")
    replayed, probed = retention.get("replay_items", 0), retention.get("probe_items", 0)
    both = not (replayed and probed) or train == held_out
    remedy = "both kinds of questions are of retention.source now, a folder or data set with both splits"
    _refuse_unless(both, "retention.data.eval", held_out, remedy)
    retention["source"] = train if replayed else held_out


def _window(window: Values) -> None:
    kind, size = window.pop("kind", "given"), window.pop("size", 4)
    _refuse_unless(kind != "random", "scenario.window.kind", kind, "a window slides, or there is none")
    if kind == "sliding":
        window["width"] = size


def _advantage(advantage: Values) -> None:
    for divided in _taken(advantage, "divide_by_std"):
        rule = "'rloo' divides by nothing now"
        _refuse_unless(not divided or advantage.get("kind") != "rloo", "advantage.divide_by_std", divided, rule)
        if not divided and advantage.get("kind", "group") == "group":
            advantage["kind"] = "mean"


def _aggregation(objective: Values) -> None:
    length = objective.pop("constant_length", 512)
    if objective.get("aggregation") == "constant":
        objective["aggregation"] = length


def _adapters(policy: Values) -> None:
    rank = policy.get("lora_rank", 0)
    for alpha in _taken(policy, "lora_alpha"):
        _refuse_unless(not rank or alpha == 2 * rank, "policy.lora_alpha", alpha, "alpha is twice the rank now")


def _average(optim: Values) -> None:
    for exported in _taken(optim, "exported"):
        rule = "an average is what is evaluated and exported now, and optim.ema_decay = 0 keeps none"
        _refuse_unless(exported == "average" or not optim.get("ema_decay"), "optim.exported", exported, rule)


def _refuse_unless(holds: bool, name: str, value: Any, now: str) -> None:
    if not holds:
        raise ValueError(
            f"{name} = {value!r} is an option of earlier versions: {now}; take it out of the file to go on like that, "
            "or use the version that wrote it"
        )


def _section(values: Values, path: str) -> Values:
    """The section at that path; one of its own where there is none."""
    for name in path.split(".") if path else ():
        values = found if isinstance(found := values.get(name), dict) else {}
    return values


def _taken(values: Values, path: str) -> list[Any]:
    """The value of a field, which is taken out, if it is there."""
    place, _, name = path.rpartition(".")
    section = _section(values, place)
    return [section.pop(name)] if name in section else []
