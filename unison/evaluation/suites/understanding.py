"""Questions of any VQA or multiple-choice data set: are the replies right, in the format, and how long are they.

An answer is right as training rewards it (`rewards.text.is_right`): the letter or text of an option, or the same words.
Answers that can be worded in many ways are measured by a reward besides, such as `math` or `llm_judge`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unison.answers import REPLY_FORMAT, is_formatted, is_right
from unison.config import DataConfig, ScenarioConfig, check_sampling
from unison.data import Items, open_items
from unison.data.rows import BadRow
from unison.data.tables import TableItems
from unison.evaluation.held_out import by_task, measured
from unison.evaluation.stats import task_mean
from unison.evaluation.suites.batches import finish_rows
from unison.evaluation.suites.common import ALL, Cuts, Job, Record, Result, cuts, digest
from unison.evaluation.suites.ledger import Ledger
from unison.rewards import judge, load_rewards
from unison.scenarios import SCENARIOS
from unison.scenarios.common import Seeds
from unison.scenarios.rollout import roll_out
from unison.types import AnswerKind, Item, RewardFn, Sampling, Trajectory

NAME = "understanding"
FIGURES = {"answer": "answer_correct", "format": "format_ok", "length": "length", "cut": "cut"}
"""Figures, and the record's field that each one averages: `length` in tokens, `cut` where that is the longest."""
POOLED = "answer_pooled"
GREEDY = 1e-4
"""Temperature that stands for 0: what is not the most probable token is out of reach but for ties."""
GALLERY = 9  # pictures asked about that are kept


@dataclass(frozen=True)
class Options:
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
    batch_size: int = 32
    """Questions asked at a time."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature or GREEDY, max_tokens=self.max_tokens)


def prepare(options: Options, job: Job) -> Callable[[], Result | None]:
    """What evaluates; questions and rewards are there.

    Raises:
        ValueError: questions, rewards or a checkpoint that do not exist, columns that make no questions, bad rows.
    """
    check_sampling(options.sampling)
    for name in ("batch_size", "max_tokens"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name} = {getattr(options, name)}: must be at least 1")
    items = _open(options)
    count = min(options.items or len(items), len(items))
    job.check()
    return _Run(options, job, items, range(count), load_rewards(options.rewards))


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
class _Run:
    """One evaluation, ready to be run or gone on with."""

    options: Options
    job: Job
    items: Items
    rows: range
    rewards: Mapping[str, RewardFn]

    def __call__(self) -> Result | None:
        job = self.job
        ledger = Ledger(job.file(NAME), self.protocol(), job)
        records = finish_rows(self.rows, self._make, self.options.batch_size, ledger, job, "questions")
        if records is None:
            return None
        good = [record for record in records if "bad_row" not in record]
        fields = FIGURES | {name: name for name in measured(good)}
        return Result(NAME, ledger.protocol, figures(good, fields), records, notes(records), fields=fields)

    def _make(self, rows: Sequence[int]) -> list[Record]:
        """The records of some rows: what was replied, or why the row cannot be read."""
        items, bad = self._read(rows)
        config = ScenarioConfig(text=self.options.sampling, group_size=1)
        seeds = Seeds(self.options.seed, 0)
        asked = roll_out(self.job.policy, SCENARIOS["understanding"], list(items.values()), config, seeds, len(rows))
        if self.rewards and asked:
            judge(asked, self.rewards, self.job.policy)
        made = [
            self._record(row, trajectory, self.options.max_tokens) for row, trajectory in zip(items, asked, strict=True)
        ]
        return made + bad

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

    def _record(self, row: int, asked: Trajectory, longest: int) -> Record:
        item, reply, length = asked.item, asked.texts[-1], len(asked.turns[-1].action)
        return {
            "key": str(row),
            "id": item.id,
            "task": item.task,
            "question": item.question,
            "answer": item.answer,
            "kind": item.kind,
            "reply": reply,
            "question_image": self._keep(row, item) if row < GALLERY else None,
            "answer_correct": is_right(reply, item),
            "format_ok": is_formatted(reply),
            "length": length,
            "cut": length >= longest,
        } | {f"reward/{name}": value for name, value in asked.rewards.items()}

    def _keep(self, row: int, item: Item) -> str | None:
        """Saves the picture asked about; returns its place seen from the suite's file."""
        if item.image is None:
            return None
        path = self.job.pictures(NAME) / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        item.image.save(path)
        return str(path.relative_to(path.parents[1]))

    def protocol(self) -> dict[str, Any]:
        """All that the figures depend on."""
        options, job = self.options, self.job
        told = {
            name: getattr(options, name)
            for name in ("columns", "kinds", "suffix", "questions", "temperature", "max_tokens", "seed", "rewards")
        }
        source = {"data": options.data, "data_digest": digest(Path(options.data).expanduser()), "items": len(self.rows)}
        return job.protocol() | source | told


def figures(records: Sequence[Record], fields: Mapping[str, str]) -> dict[str, Cuts]:
    """Every figure over all categories and in each, and accuracy over all questions whatever their category."""
    found: dict[str, Cuts] = {}
    for name, column in fields.items():
        if values := by_task(records, column):
            found[name] = cuts(values)
    if records:
        found[POOLED] = {ALL: task_mean({ALL: [float(record["answer_correct"]) for record in records]})}
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
