"""Drawing and answering on held-out items: of the embedded world, or of any data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from unison.answers import REPLY_FORMAT
from unison.config import DataConfig, EvalConfig, ScenarioConfig, is_prompts
from unison.data import open_items
from unison.evaluation.held_out import EVAL_SEED, evaluate_batch
from unison.evaluation.records import ALL, Cuts, Evaluation, Record, fields, means, shares
from unison.evaluation.stats import Estimate
from unison.evaluation.suites.base import DrawOptions, Job, Run
from unison.rewards import load_rewards
from unison.types import Item, RewardFn, Sampling

GALLERY = 24  # items that are kept as pictures
SAMPLED = {"samples_an_item": 1, "temperature": 1.0, "seed": EVAL_SEED}
NOT_JUDGED = (
    "Whether the drawings are right was not judged: the world's judge reads the world's prompts alone. "
    "Rewards that look at a drawing measure it: --rewards clip image_reward:<folder>"
)


@dataclass(frozen=True, kw_only=True)
class BothOptions(DrawOptions):
    """What is drawn and asked, and how it is sampled."""

    least: ClassVar = {**DrawOptions.least, "items": 1}

    items: int = 600
    """Held-out items."""
    guidance: float = 1.75
    max_tokens: int = 48
    """Longest reply, or thought."""
    batch_size: int = 120

    def scenario(self, name: str = "unified") -> ScenarioConfig:
        """How texts and drawings are sampled."""
        return ScenarioConfig(name, text=Sampling(max_tokens=self.max_tokens), image=self.sampling)


@dataclass(frozen=True, kw_only=True)
class Options(BothOptions):
    """Whose items they are, and what measures the drawings."""

    data: str = "world"
    """Held-out items: `world`, `prompts` (GenEval-style, with questions about the drawings), a path or a hub id."""
    excluded: str = ""
    """GenEval's evaluation_metadata.jsonl: `prompts` then asks for nothing that a test prompt asks for."""
    questions: Literal["open_ended", "multiple_choice", "mixed"] = "open_ended"
    """Form of the world's questions."""
    own_drawings: bool = False
    """Also ask about each drawing, and show how far drawing and answering are apart; always so with `prompts`."""
    rewards: tuple[str, ...] = ()
    """Rewards that measure each drawing and the answer about it, such as `clip` and `llm_judge:<checkpoint>`."""

    @property
    def asks_own(self) -> bool:
        return self.own_drawings or is_prompts(self.data)


def prepare(options: Options, job: Job) -> Callable[[], Evaluation | None]:
    """What evaluates; the items and the rewards are there.

    Raises:
        ValueError: a checkpoint, items or rewards that do not exist, bad numbers.
    """
    options.check()
    job.check()
    return World(options, job, _held_out(options), load_rewards(options.rewards))


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
class World(Run):
    """Drawings, answers and measures of every item."""

    name: ClassVar = "world"

    options: Options
    rewards: Mapping[str, RewardFn]

    def make(self, keys: Sequence[int]) -> list[Record]:
        if self.options.asks_own:
            self.job.policy.require("draw", "asking about own drawings")
        config = EvalConfig(own_drawings=self.options.asks_own, noiseless=True)
        return evaluate_rows(self, keys, self.options.scenario(), config, self.rewards)

    def result(self, records: list[Record]) -> Evaluation:
        found = figures(records)
        unjudged = "drawing" not in found and any(record["prompt"] for record in records)
        return self.told(records, found, fields(records), [NOT_JUDGED] if unjudged else [])

    def protocol(self) -> dict[str, Any]:
        options = self.options
        told = {"data": options.data, "excluded": options.excluded, "items": len(self.items)}
        told |= options.told("questions", "guidance", "rounds", "steps", "max_tokens")
        return self.job.protocol() | told | {"own_drawings": options.asks_own, "rewards": options.rewards} | SAMPLED


def figures(records: Sequence[Record]) -> dict[str, Cuts]:
    """Every figure and conditional share, which has its gap to 1 beside it, tasks in the order of their names."""
    found: dict[str, Cuts] = means(records, fields(records))
    for name, share in shares(records).items():
        gaps = {cut: Estimate(1 - e.value, 1 - e.high, 1 - e.low) for cut, e in share.items()}
        found |= {name: share, f"1 - {name}": gaps}
    return {
        name: {cut: cuts[cut] for cut in sorted(cuts, key=lambda cut: (cut != ALL, cut))}
        for name, cuts in found.items()
    }


def evaluate_rows(
    run: Run,
    rows: Sequence[int],
    scenario: ScenarioConfig,
    config: EvalConfig,
    rewards: Mapping[str, RewardFn] | None = None,
) -> list[Record]:
    """The records of a suite's items of some rows, with their keys, and the pictures of the first rows."""
    items, kept = [run.items[row] for row in rows], sum(row < GALLERY for row in rows)  # rows ascend
    made = evaluate_batch(run.job.policy, items, scenario, config, run.pictures, kept, rewards)
    return [{"key": str(row)} | record for row, record in zip(rows, made, strict=True)]
