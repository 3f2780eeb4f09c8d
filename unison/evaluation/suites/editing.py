"""Editing: pictures are changed as told, then changed back, and CLIP or the world's judge looks at both.

The figures are those that UniRL-Zero plots: how far the edit still resembles the picture, whether it moved in the
direction of its caption, and how far the edit that is taken back resembles the picture again. On the world's edits the
exact judge says besides whether every object is as told, in the edit and in the picture that comes back.

Source: UniRL-Zero, arXiv 2510.17937; the direction is Gal et al. 2021, arXiv 2108.00946, eq. 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from unison.config import DataConfig, ScenarioConfig
from unison.data import Items, open_items
from unison.data.tables import TableItems
from unison.evaluation.records import Evaluation, Record, means
from unison.evaluation.suites.base import Job, Run, SuiteOptions, digest
from unison.hub import locate
from unison.policies.base import Policy
from unison.rewards import REWARDS
from unison.rewards.clip import clip_direction, clip_reconstruction
from unison.rewards.world import first_drawings, world, world_cycle, world_strict
from unison.scenarios import cycle_edit
from unison.scenarios.common import Seeds, begin, then_draw
from unison.scenarios.cycle_edit import edit_context
from unison.types import Item, RewardFn, Sampling, Trajectory

WORLD = {"edit": "drawing_correct", "edit_partial": "drawing_score", "taken_back": "returned_score"}
"""Figures of the world's judge, and the record's field that each one averages: is the edit exactly as told, its partial
credit, and that of the picture that comes back. Those of CLIP are fields of their own names."""
(CLIP,) = REWARDS["clip_direction"].models
NONE = "none"
WORLD_ITEMS = 300
GALLERY = 24  # edits that are kept as pictures


@dataclass(frozen=True, kw_only=True)
class Options(SuiteOptions):
    """What is edited, how, and what looks at it."""

    data: str = "world"
    """Edits: `world`, a JSONL or Parquet file, a folder, or a hub id, with a picture and a prompt in every row;
    `reverse`, the instruction back, for the reconstruction; `source_caption` and `target_caption` for the direction."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column of the data set for each field of an item where it has another name: `image before prompt instruction`.
    Figures are given for each value of `task`."""
    items: int = 0
    """The first so many edits; 0 takes all (of the world 300)."""
    clip: str = ""
    """A CLIP: a folder or hub id, or `none`; by default openai/clip-vit-base-patch32, and none for the world's edits,
    on which its judge is exact."""
    guidance: float = 3.0
    """Scale of the guidance by the instruction."""
    source_guidance: float = 1.0
    """Scale of the guidance by the picture that is edited; 1 is off."""
    steps: int = 10
    """Denoising steps, without noise."""
    shift: float = 3.0
    """Time shift of the noise schedule."""
    seed: int = 0
    """Seed of all edits."""

    @property
    def sampling(self) -> Sampling:
        return Sampling(**self.told("guidance", "source_guidance", "steps", "shift"), sde="ode")

    @property
    def judge(self) -> str:
        """The CLIP as named or by default; empty for none."""
        default = NONE if self.data == "world" else CLIP
        return "" if (self.clip or default) == NONE else self.clip or default


def prepare(options: Options, job: Job) -> Callable[[], Evaluation | None]:
    """What evaluates; edits and judge are there, and the family edits.

    Raises:
        ValueError: edits, a CLIP or a checkpoint that do not exist, a family that cannot edit, bad numbers or rows.
    """
    options.check()
    items = _open(options)
    _require_edit(items[0])
    measures = _measures(options)
    job.check()
    return Editing(options, job, items, measures)


def _open(options: Options) -> Items:
    config, source = DataConfig(columns=options.columns), "world:edits" if options.data == "world" else options.data
    items = open_items(source, "eval", config, 0, options.items or WORLD_ITEMS)
    if isinstance(items, TableItems) and (bad := items.complaints()):
        raise ValueError(bad[0])
    return items


def _require_edit(item: Item) -> None:
    for name in ("image", "prompt"):
        if not getattr(item, name):
            raise ValueError(f"data: {item.id!r} has no {name} to edit: name its column with --columns {name} <column>")


def _measures(options: Options) -> dict[str, RewardFn]:
    """What is measured of every edit, by the record's field."""
    found: dict[str, RewardFn] = {}
    if options.data == "world":
        found |= {
            WORLD["edit"]: lambda edits, policy: world_strict(first_drawings(edits), policy),
            WORLD["edit_partial"]: lambda edits, policy: world(first_drawings(edits), policy),
            WORLD["taken_back"]: lambda edits, policy: world_cycle(_returned(edits), policy),
        }
    if options.judge:
        clip = locate(options.judge, "clip")
        found |= {
            "clip_image": lambda edits, policy: clip_reconstruction(first_drawings(edits), policy, clip),
            "clip_direction": lambda edits, policy: clip_direction(edits, policy, clip),
            "clip_reconstruction": lambda edits, policy: clip_reconstruction(_returned(edits), policy, clip),
        }
    if not found:
        raise ValueError("clip = 'none': nothing else can look at edits of pictures that are not the world's; name one")
    return found


def _returned(edits: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories, without drawings where the edit was not taken back."""
    return [t if len(t.images) > 1 else Trajectory(t.item, t.turns) for t in edits]


@torch.no_grad()
def edit(policy: Policy, items: Sequence[Item], sampling: Sampling, seeds: Seeds) -> list[Trajectory]:
    """An edit of every item's picture, and where the item says how, that edit taken back.

    Raises:
        ValueError: the family cannot edit.
    """
    policy.require("edit", "the suite `editing`")
    config = ScenarioConfig(image=sampling, group_size=1)
    both = [item for item in items if item.reverse]
    once = [item for item in items if not item.reverse]
    made = cycle_edit.rollout(policy, both, config, seeds) if both else []
    made += _edit_once(policy, once, config, seeds) if once else []
    found = {t.item.id: t for t in made}
    return [found[item.id] for item in items]


def _edit_once(policy: Policy, items: Sequence[Item], config: ScenarioConfig, seeds: Seeds) -> list[Trajectory]:
    contexts = [edit_context(item) for item in items]
    return then_draw(policy, begin(items, 1), contexts, config, seeds.of(items, 1, "edit"))


@dataclass(frozen=True)
class Editing(Run):
    """Edits and measures of them."""

    name: ClassVar = "editing"

    options: Options
    measures: Mapping[str, RewardFn]

    def make(self, keys: Sequence[int]) -> list[Record]:
        policy, seeds = self.job.policy, Seeds(self.options.seed, 0)
        made = edit(policy, [self.items[row] for row in keys], self.options.sampling, seeds)
        values = {name: measure(made, policy) for name, measure in self.measures.items()}
        return [
            {"key": str(row), "id": t.item.id, "task": t.item.task, "prompt": t.item.prompt, "reverse": t.item.reverse}
            | (self._kept(row, t) if row < GALLERY else {})
            | {name: column[n] for name, column in values.items()}
            for n, (row, t) in enumerate(zip(keys, made, strict=True))
        ]

    def _kept(self, row: int, made: Trajectory) -> dict[str, str]:
        """Where the picture, its edit and what came back are kept."""
        assert made.item.image is not None, "there is no edit without a picture"
        images = zip(("source_image", "image", "returned_image"), (made.item.image, *made.images), strict=False)
        return {name: self.pictures.keep(f"{row}.{name}", image) for name, image in images}

    def result(self, records: list[Record]) -> Evaluation:
        names = {column: name for name, column in WORLD.items()}
        figures = means(records, {names.get(column, column): column for column in self.measures})
        once = sum(record["reverse"] is None for record in records)
        note = f"{once} of {len(records)} edits have no `reverse` and were not taken back."
        return self.told(records, figures, WORLD, [note] if once else [])

    def protocol(self) -> dict[str, Any]:
        options = self.options
        source = {"data": options.data, "data_digest": digest(Path(options.data).expanduser())}
        told = options.told("columns", "guidance", "source_guidance", "steps", "shift", "seed")
        return self.job.protocol() | source | {"items": len(self.keys()), "clip": options.judge or NONE} | told
