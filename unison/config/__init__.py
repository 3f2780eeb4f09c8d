"""What a run is made of: frozen dataclasses, one sentence per field. A recipe is a function returning a RunConfig.

    fields.py      a section, the ranges that types state, and the one checker that holds values to them
    policy.py      which weights are trained, and how they are run
    data.py        where items come from
    scenario.py    how the policy acts on an item
    learning.py    advantages, the objective, what a step is made of and scores, the optimiser
    evaluation.py  what is measured on the way, and what is not to be forgotten
    machines.py    other processes and other machines
    checks.py      rules between sections
    device.py      the device that models and judges compute on
    run.py         a whole run, and chains of them
    reading.py     configurations as files
    earlier.py     what earlier layouts wrote, read or refused

To add an option: give its section a field with a range and a sentence; a rule with another section goes to `checks.py`.
"""

from unison.config.checks import check_trained, teams_of
from unison.config.data import COCO_PROMPTS, HELD_OUT, DataConfig, Suffix, WorldKind, is_prompts, world_kind
from unison.config.device import best_device, choose_device, placement
from unison.config.evaluation import EvalConfig, RetentionConfig
from unison.config.fields import check_fields, pick, require
from unison.config.learning import AdvantageConfig, ObjectiveConfig, OptimConfig, Scoring, ScoringConfig, StepConfig
from unison.config.machines import DistributedConfig, RemoteConfig, ServeConfig, Strategy
from unison.config.policy import JoinConfig, PolicyConfig, Recompute
from unison.config.reading import from_json, to_json
from unison.config.run import COLD_START, Chain, RunConfig, Stage
from unison.config.scenario import ScenarioConfig, WindowConfig, check_sampling
