"""Drawing and answering on held-out items: of the embedded world, or of any data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from unison.answers import REPLY_FORMAT
from unison.config import DataConfig, EvalConfig, ScenarioConfig, is_prompts
from unison.data import open_items
from unison.evaluation.held_out import EVAL_SEED, Pictures, by_cut, evaluate_batch, fields
from unison.evaluation.suites.batches import finish_rows
from unison.evaluation.suites.common import Job, Record, Result
from unison.evaluation.suites.ledger import Ledger
from unison.rewards import load_rewards
from unison.types import ImageSampling, Item, RewardFn, Sampling

NAME = "world"
GALLERY = 24  # items that are kept as pictures
SAMPLED = {"samples_an_item": 1, "temperature": 1.0, "seed": EVAL_SEED}
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
        return self.own_drawings or is_prompts(self.data)

    @property
    def scenario(self) -> ScenarioConfig:
        """How texts and drawings are sampled."""
        image = ImageSampling(guidance=self.guidance, rounds=self.rounds, steps=self.steps)
        return ScenarioConfig(text=Sampling(max_tokens=self.max_tokens), image=image)


def prepare(options: Options, job: Job) -> Callable[[], Result | None]:
    """What evaluates; the items and the rewards are there.

    Raises:
        ValueError: a checkpoint, items or rewards that do not exist.
    """
    job.check()
    return _Run(options, job, _held_out(options), load_rewards(options.rewards))


def _held_out(options: Options) -> list[Item]:
    """The items to evaluate on; the world's as the tiny recipes ask about it."""
    if options.data == "world":
        data = DataConfig(questions=options.questions, question_suffix=REPLY_FORMAT)
    else:
        data = DataConfig()
    source = f"{options.data}:{options.excluded}" if options.excluded else options.data
    items = open_items(source, "eval", data, 0, options.items)
    return [items[i] for i in range(min(options.items, len(items)))]


@dataclass(frozen=True)
class _Run:
    """One evaluation, ready to be run or gone on with."""

    options: Options
    job: Job
    items: Sequence[Item]
    rewards: Mapping[str, RewardFn]

    def __call__(self) -> Result | None:
        ledger = Ledger(self.job.file(NAME), self.protocol(), self.job)
        rows = range(len(self.items))
        records = finish_rows(rows, self._make, self.options.batch_size, ledger, self.job, "items")
        if records is None:
            return None
        figures = by_cut(records, sorted({record["task"] for record in records}))
        unjudged = "drawing" not in figures and any(record["prompt"] for record in records)
        notes = (NOT_JUDGED,) if unjudged else ()
        return Result(NAME, ledger.protocol, figures, records, notes, fields=fields(records))

    def _make(self, rows: Sequence[int]) -> list[Record]:
        """Drawings, answers and measures."""
        options = self.options
        if options.asks_own:
            self.job.policy.require("draw", "asking about own drawings")
        config = EvalConfig(own_drawings=options.asks_own, noiseless=True)
        items = [self.items[row] for row in rows]
        return evaluate_rows(self.job, NAME, rows, items, options.scenario, config, self.rewards)

    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on."""
        told = {name: value for name, value in dataclasses.asdict(self.options).items() if name != "batch_size"}
        told |= {"items": len(self.items), "own_drawings": self.options.asks_own}
        return self.job.protocol() | told | SAMPLED


def evaluate_rows(
    job: Job,
    suite: str,
    rows: Sequence[int],
    items: Sequence[Item],
    scenario: ScenarioConfig,
    config: EvalConfig,
    rewards: Mapping[str, RewardFn] | None = None,
) -> list[Record]:
    """The records of the items of some rows, with their keys, and with pictures where the suite keeps those."""
    folder = job.pictures(suite)
    kept = sum(row < GALLERY for row in rows)  # rows ascend
    made = evaluate_batch(job.policy, items, scenario, config, Pictures(folder.parent, folder.name), kept, rewards)
    return [{"key": str(row)} | record for row, record in zip(rows, made, strict=True)]
