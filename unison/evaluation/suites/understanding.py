"""Questions of any VQA or multiple-choice data set: are the replies right, in the format, and how long are they.

An answer is right as training rewards it (`answers.is_right`): the letter or text of an option, or the same words.
Answers that can be worded in many ways are measured by a reward besides, such as `math` or `llm_judge`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from unison.answers import REPLY_FORMAT, is_formatted, is_right
from unison.config import DataConfig, ScenarioConfig
from unison.data import Items, open_items
from unison.data.rows import BadRow
from unison.data.tables import TableItems
from unison.evaluation.records import ALL, REWARD, Cuts, Evaluation, Record, cuts, means, measured
from unison.evaluation.suites.base import Job, Run, SuiteOptions, digest
from unison.rewards import judge, load_rewards
from unison.scenarios import SCENARIOS
from unison.scenarios.common import Seeds
from unison.scenarios.rollout import roll_out
from unison.types import AnswerKind, Item, RewardFn, Sampling, Trajectory

FIGURES = {"answer": "answer_correct", "format": "format_ok", "length": "length", "cut": "cut"}
"""Figures, and the record's field that each one averages: `length` in tokens, `cut` where that is the longest."""
POOLED = "answer_pooled"
GREEDY = 1e-4
"""Temperature that stands for 0: what is not the most probable token is out of reach but for ties."""
GALLERY = 9  # pictures asked about that are kept


@dataclass(frozen=True, kw_only=True)
class Options(SuiteOptions):
    """What is asked, and how replies are sampled."""

    data: str = "world"
    """Questions: a JSONL, Parquet or CSV file, a folder, a hub id, or `world`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column of the data set for each field of an item where it has another name: `question problem task topic`.
    Figures are given for each value of `task`."""
    kinds: dict[str, AnswerKind] = field(default_factory=dict)
    """What the values of the `kind` column mean, beyond the usual names."""
    suffix: str = ""
    """What every question ends with, on a line of its own; the world's ask for the format if nothing is given."""
    questions: Literal["open_ended", "multiple_choice", "mixed"] = "open_ended"
    """Form of the world's questions."""
    items: int = 0
    """The first so many questions; 0 takes all (of the world 600)."""
    temperature: float = 0.0
    """Sampling temperature; 0 takes the most probable token."""
    max_tokens: int = 512
    """Longest reply."""
    seed: int = 0
    """Seed of all replies."""
    rewards: tuple[str, ...] = ()
    """Rewards that measure each reply besides, such as `math` and `llm_judge:<checkpoint>`."""
    skip_bad_rows: bool = False
    """Leave out and count rows that cannot be read."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature or GREEDY, max_tokens=self.max_tokens)


def prepare(options: Options, job: Job) -> Callable[[], Evaluation | None]:
    """What evaluates; questions and rewards are there.

    Raises:
        ValueError: questions, rewards or a checkpoint that do not exist, columns that make no questions, bad rows.
    """
    options.check()
    items = _open(options)
    job.check()
    return Understanding(options, job, items, load_rewards(options.rewards))


def _open(options: Options) -> Items:
    if options.data == "prompts":
        raise ValueError(
            "data = 'prompts': its questions are about drawings; ask them with --suite world --data prompts"
        )
    suffix = options.suffix or (REPLY_FORMAT if options.data == "world" else "")
    config = DataConfig(
        eval=options.data,
        questions=options.questions,
        columns=options.columns,
        kinds=options.kinds,
        question_suffix=suffix,
    )
    items = open_items(options.data, "eval", config, 0, options.items or 600)
    if isinstance(items, TableItems) and not options.skip_bad_rows and (bad := items.complaints()):
        raise ValueError(f"{bad[0]} (here: --skip-bad-rows leaves them out; {len(bad)} of {len(items)} are bad)")
    return items


@dataclass(frozen=True)
class Understanding(Run):
    """Replies to questions, or why the row cannot be read."""

    name: ClassVar = "understanding"

    options: Options
    rewards: Mapping[str, RewardFn]

    def make(self, keys: Sequence[int]) -> list[Record]:
        items, bad = self._read(keys)
        config = ScenarioConfig(text=self.options.sampling, group_size=1)
        seeds = Seeds(self.options.seed, 0)
        asked = roll_out(self.job.policy, SCENARIOS["understanding"], list(items.values()), config, seeds, len(keys))
        if self.rewards and asked:
            judge(asked, self.rewards, self.job.policy)
        return [self._record(row, trajectory) for row, trajectory in zip(items, asked, strict=True)] + bad

    def _read(self, rows: Sequence[int]) -> tuple[dict[int, Item], list[Record]]:
        """The items of rows, and records of the rows that have none.

        Raises:
            ValueError: a bad row that is not to be left out, or one without a question.
        """
        items, bad = {}, []
        for row in rows:
            try:
                items[row] = self.items[row]
            except BadRow as error:
                if not self.options.skip_bad_rows:
                    raise ValueError(f"{error} (here: --skip-bad-rows leaves it out)") from error
                bad.append({"key": str(row), "id": str(row), "task": ALL, "bad_row": str(error)})
        for item in items.values():
            SCENARIOS["understanding"].require(self.job.policy, item)
        return items, bad

    def _record(self, row: int, asked: Trajectory) -> Record:
        item, reply, length = asked.item, asked.texts[-1], len(asked.turns[-1].action)
        shown = item.image if row < GALLERY else None
        return {
            "key": str(row),
            "id": item.id,
            "task": item.task,
            "question": item.question,
            "answer": item.answer,
            "kind": item.kind,
            "reply": reply,
            "question_image": self.pictures.keep(str(row), shown) if shown else None,
            "answer_correct": is_right(reply, item),
            "format_ok": is_formatted(reply),
            "length": length,
            "cut": length >= self.options.max_tokens,
        } | {f"{REWARD}{name}": value for name, value in asked.rewards.items()}

    def result(self, records: list[Record]) -> Evaluation:
        good = [record for record in records if "bad_row" not in record]
        fields = FIGURES | {name: name for name in measured(good)}
        return self.told(records, figures(good, fields), fields, notes(records))

    def protocol(self) -> dict[str, Any]:
        options, data = self.options, Path(self.options.data).expanduser()
        source = {"data": options.data, "data_digest": digest(data), "items": len(self.keys())}
        told = ("columns", "kinds", "suffix", "questions", "temperature", "max_tokens", "seed", "rewards")
        return self.job.protocol() | source | options.told(*told)


def figures(records: Sequence[Record], fields: Mapping[str, str]) -> dict[str, Cuts]:
    """Every figure over all categories and in each, and accuracy over all questions whatever their category."""
    found = means(records, fields)
    if records:
        found[POOLED] = {ALL: cuts({ALL: [float(record["answer_correct"]) for record in records]})[ALL]}
    return found


def notes(records: Sequence[Record]) -> list[str]:
    """What a reader of the figures must know."""
    told = []
    if bad := [record["bad_row"] for record in records if "bad_row" in record]:
        told.append(f"{len(bad)} of {len(records)} rows cannot be read and are left out; the first: {bad[0]}.")
    counts = Counter(record["task"] for record in records if "bad_row" not in record)
    if len(counts) > 1:
        told.append(
            f"`all` is the mean over the {len(counts)} categories, {min(counts.values())} to {max(counts.values())} "
            f"questions each; `{POOLED}` is the share of all questions."
        )
    return told
