"""A whole run, and chains of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from unison.config.checks import check_together
from unison.config.data import DataConfig
from unison.config.evaluation import EvalConfig, RetentionConfig
from unison.config.fields import Section
from unison.config.learning import AdvantageConfig, ObjectiveConfig, OptimConfig, ScoringConfig, StepConfig
from unison.config.machines import DistributedConfig, RemoteConfig
from unison.config.policy import PolicyConfig
from unison.config.scenario import ScenarioConfig
from unison.types import Count


@dataclass(frozen=True)
class RunConfig(Section):
    """A whole run. `unison recipes` lists the functions that return one."""

    recipe: str
    """Name of the recipe this configuration started from."""
    policy: PolicyConfig
    data: DataConfig = DataConfig()
    scenario: ScenarioConfig = ScenarioConfig()
    rewards: dict[str, float] = field(default_factory=dict)
    """Coefficient of each reward by name; `name:checkpoint` gives it another model than its default, and
    `remote:http://host:port/name` is one that `unison serve-reward` serves."""
    remote: RemoteConfig = RemoteConfig()
    distributed: DistributedConfig = DistributedConfig()
    reward_normalisation: Literal["none", "group", "running"] = "none"
    """Standardise each reward within its group, or over the run so far, before the weighted sum."""
    abstain_on_error: tuple[str, ...] = ()
    """Rewards whose exceptions count as 'cannot judge' instead of stopping the run."""
    advantage: AdvantageConfig = AdvantageConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    step: StepConfig = StepConfig()
    scoring: ScoringConfig = ScoringConfig()
    optim: OptimConfig = OptimConfig()
    evaluation: EvalConfig = EvalConfig()
    retention: RetentionConfig = RetentionConfig()
    out: Path = Path("runs/unnamed")
    """Run folder."""
    seed: int = 0
    """Seed of data order and of every sample."""
    checkpoint_every: Count = 25
    """Steps between checkpoints."""
    trackers: tuple[str, ...] = ("tensorboard",)
    """`accelerate` trackers to log to; metrics.jsonl is always written."""

    def check(self) -> None:
        check_together(self)


COLD_START = "cold-start"
"""Name of the stage of a chain that may be left out."""


@dataclass(frozen=True)
class Stage:
    """One run of a chain."""

    name: str
    """Folder inside the chain's folder."""
    config: RunConfig
    start: str = ""
    """Earlier stage whose final checkpoint this one starts from; empty starts from its own `policy.path`."""


Chain: TypeAlias = tuple[Stage, ...]
