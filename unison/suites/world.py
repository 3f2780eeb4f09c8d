"""Drawing and answering on held-out items: of the embedded world, or of any data set, in one process."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from unison.config import DataConfig, EvalConfig, ScenarioConfig
from unison.data import open_items
from unison.evaluate import EVAL_SEED, Pictures, by_cut, evaluate, fields
from unison.rewards import load_rewards
from unison.suites.common import Job, Result
from unison.types import Item, RewardFn, Sampling
from unison.world.scene import REPLY_FORMAT

NOT_JUDGED = (
    "Whether the drawings are right was not judged: the world's judge reads the world's prompts alone. "
    "Rewards that look at a drawing measure it: --rewards clip image_reward:<folder>"
)


@dataclass(frozen=True)
class Options:
    """What is asked, and how it is sampled."""

    data: str = "world"
    """Held-out items: `world`, `prompts` (GenEval-style, with questions about the drawings), a path or a hub id."""
    excluded: str = ""
    """GenEval's evaluation_metadata.jsonl: `prompts` then asks for nothing that a test prompt asks for."""
    items: int = 600
    """Held-out items."""
    questions: Literal["open_ended", "multiple_choice", "mixed"] = "open_ended"
    """Form of the world's questions."""
    guidance: float = 1.75
    """Guidance scale of drawings."""
    rounds: int = 18
    """Rounds of masked decoding, in models that draw by it."""
    steps: int = 10
    """Denoising steps without noise, in models that draw by flow matching."""
    max_tokens: int = 48
    """Longest reply."""
    own_drawings: bool = False
    """Also ask about each drawing, and show how far drawing and answering are apart; always so with `prompts`."""
    rewards: tuple[str, ...] = ()
    """Rewards that measure each drawing and the answer about it, such as `clip` and `llm_judge:<checkpoint>`."""
    batch_size: int = 120
    """Items drawn at a time."""

    @property
    def asks_own(self) -> bool:
        return self.own_drawings or self.data == "prompts"


def prepare(options: Options, job: Job) -> Callable[[], Result | None]:
    """What evaluates; the items and the rewards are there.

    Raises:
        ValueError: a checkpoint, items or rewards that do not exist.
    """
    job.check()
    return partial(_run, options, job, _held_out(options), load_rewards(options.rewards))


def _held_out(options: Options) -> list[Item]:
    """The items to evaluate on; the world's as the tiny recipes ask about it."""
    if options.data == "world":
        data = DataConfig(questions=options.questions, question_suffix=REPLY_FORMAT)
    else:
        data = DataConfig(eval=options.data, excluded=options.excluded)
    items = open_items(options.data, "eval", data, 0, options.items)
    return [items[i] for i in range(min(options.items, len(items)))]


def _run(options: Options, job: Job, items: Sequence[Item], rewards: dict[str, RewardFn]) -> Result | None:
    if not job.processes.is_main_process:
        return None
    policy = job.policy
    if options.asks_own:
        policy.require("draw", "asking about own drawings")
    image = Sampling(guidance=options.guidance, rounds=options.rounds, steps=options.steps)
    scenario = ScenarioConfig(text=Sampling(max_tokens=options.max_tokens), image=image)
    config = EvalConfig(items=len(items), own_drawings=options.asks_own, batch_size=options.batch_size, noiseless=True)
    folder = job.pictures("world")
    pictures = Pictures(folder.parent, folder.name)
    records = evaluate(policy, items, scenario, config, pictures=pictures, rewards=rewards).records
    figures = by_cut(records, sorted({record["task"] for record in records}))
    unjudged = "drawing" not in figures and any(record["prompt"] for record in records)
    notes = (NOT_JUDGED,) if unjudged else ()
    return Result("world", _protocol(options, job, len(items)), figures, records, notes, fields=fields(records))


def _protocol(options: Options, job: Job, items: int) -> dict[str, Any]:
    sampled = {"samples_an_item": 1, "temperature": 1.0, "seed": EVAL_SEED}
    told = {name: value for name, value in dataclasses.asdict(options).items() if name != "batch_size"}
    told |= {"items": items, "own_drawings": options.asks_own}
    return job.protocol() | told | sampled
