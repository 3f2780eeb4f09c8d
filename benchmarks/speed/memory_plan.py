"""The dry run's memory against the peak of a run: `python -m benchmarks.speed.memory_plan`

A recipe of each family takes two steps on random weights of two widths, in a process of its own, which reports the
growth of its peak resident memory (Linux's VmHWM) over what libraries take: before, it has trained a step of the
bundled tiny model. Blocks that are freed go back to the system at once there (MALLOC_MMAP_THRESHOLD_), since the plan
is of what lives, not of what an allocator wastes.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro

from benchmarks.pages import publish_lines
from benchmarks.speed.memory import peak_megabytes
from unison import recipes
from unison.config import EvalConfig, PolicyConfig, RunConfig
from unison.planning.memory import estimate_memory
from unison.policies.base import Policy
from unison.policies.janus.policy import Janus
from unison.policies.metaquery.policy import MetaQuery
from unison.policies.showo.magvit import MagvitConfig
from unison.policies.showo.network import PhiSizes, ShowOConfig, ShowONetwork
from unison.policies.showo.policy import ShowO
from unison.pretrain.corpus import CorpusConfig
from unison.pretrain.janus import build_janus, build_processor, build_tokenizer
from unison.pretrain.metaquery import build_metaquery
from unison.training.trainer import Trainer
from unison.types import TextSampling

MEGABYTE = 2**20
HEADER = "| recipe | width | estimated MB | measured MB | estimated / measured |\n|---|---|---|---|---|"
GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "262144"}


@dataclass(frozen=True)
class Case:
    """A recipe on random weights."""

    recipe: str
    """One on a bundled tiny model."""
    width: int
    """Of the language model; that of the diffusion transformer is the same."""


@dataclass(frozen=True)
class Outcome:
    """What a process reports."""

    estimated: float
    """Megabytes at the peak by the dry run."""
    measured: float
    """Megabytes by which the peak has grown."""

    @property
    def ratio(self) -> float:
        return self.estimated / self.measured


CASES = [
    Case(recipe, width)
    for recipe in ("corl/tiny-unified", "unirl/tiny-showo-grpo", "unirl-zero/tiny-draw")
    for width in (320, 448)
]


def measure(case: Case) -> Outcome:
    """Runs a case in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.speed.memory_plan", "--case", case.recipe, str(case.width)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | GIVES_BACK,
    )
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def _run(case: Case, folder: Path) -> Outcome:
    torch.set_num_threads(1)
    run = recipes.find(case.recipe)()
    assert isinstance(run, RunConfig), f"{case.recipe} is a chain"
    Trainer(small(run, folder / "first", steps=1)).train()
    BUILDERS[Path(run.policy.path).name](case.width).save(folder / "checkpoint")
    config = small(replace(run, policy=replace(run.policy, path=str(folder / "checkpoint"))), folder / "run", steps=2)
    estimated = estimate_memory(config).peak / MEGABYTE
    gc.collect()
    before = peak_megabytes(anew=True)
    trainer = Trainer(config)
    peak_megabytes(anew=True)  # loading reads a file that is mapped, which counts as long as it lasts
    trainer.train()
    return Outcome(estimated, peak_megabytes() - before)


def small(run: RunConfig, out: Path, steps: int) -> RunConfig:
    """A recipe with a small batch and a reward that no two drawings share."""
    image = replace(run.scenario.image, steps=min(run.scenario.image.steps, 4), noisy_steps=())
    return replace(
        run,
        rewards={"jpeg_kilobytes": 1.0},
        scenario=replace(run.scenario, group_size=4, text=TextSampling(max_tokens=16), image=image),
        step=replace(run.step, items=2, micro_batch_items=1, rollout_items=2),
        scoring=replace(run.scoring, rounds=2),
        optim=replace(run.optim, steps=steps),
        evaluation=EvalConfig(items=2, batch_size=2),
        out=out,
        trackers=(),
        checkpoint_every=10,
    )


# -- random weights of the bundled models' shapes, wider ---------------------------------------------------------------

LAYERS = 4


def _janus(width: int) -> Policy:
    processor = build_processor(CorpusConfig())
    return Janus(build_janus(processor, width, LAYERS).eval(), processor, PolicyConfig("random"))


def _showo(width: int) -> Policy:
    tokenizer, levels = build_tokenizer(CorpusConfig()), (1, 1, 1, 1)
    phi = PhiSizes(width, 4 * width, LAYERS, width // 32)
    sizes = ShowOConfig(False, len(tokenizer), 256, 36, max_seq_length=64, phi=phi)
    network = ShowONetwork(sizes, MagvitConfig(32, 8, 8, levels, levels, levels, levels))
    return ShowO(network.eval(), tokenizer, PolicyConfig("random"))


def _metaquery(width: int) -> Policy:
    sizes = {"width": width, "layers": LAYERS, "transformer_width": width, "transformer_layers": LAYERS}
    parts = build_metaquery(CorpusConfig(), **sizes)
    return MetaQuery(parts.network, parts.tokenizer, parts.image_processor, PolicyConfig("random"))


BUILDERS: dict[str, Callable[[int], Policy]] = {
    "tiny-janus": _janus,
    "tiny-showo": _showo,
    "tiny-metaquery": _metaquery,
}
"""By the name of the bundled model."""


# -- the command -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What is measured."""

    case: tuple[str, int] | None = None
    """One recipe and width, in this process; all of the table if not given."""


def rows() -> Iterator[str]:
    """The lines of the table, one after another."""
    for case in CASES:
        found = measure(case)
        figures = f"{found.estimated:.0f} | {found.measured:.0f} | **{found.ratio:.2f}**"
        yield f"| `{case.recipe}` | {case.width} | {figures} |"


def main(options: Options) -> None:
    """Measures, prints, writes."""
    if options.case:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(_run(Case(*options.case), Path(folder)))))
        return
    torch.set_num_threads(1)
    model = f"models of {LAYERS} layers with random weights, two steps of 2 items x 4 trajectories each"
    publish_lines("benchmarks.speed.memory_plan", HEADER, rows(), "one run a figure", model, written=True)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
