"""Every scenario, objective and algorithm, adapters, averages, evaluation and resuming on a second device."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from unison import recipes
from unison.objectives import OBJECTIVES
from unison.recipes.algorithms import ALGORITHMS, trained_by
from unison.scenarios import SCENARIOS

REPO = Path(__file__).resolve().parents[2]
ADAPTED = {"policy__lora_rank": 2, "optim__ema_decay": 0.5}
JOBS: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "janus": [
        ("corl/tiny-unified", "", {"objective__kl_beta": 0.1, "resumed": True}),
        ("corl/tiny-unified", "gspo", ADAPTED),
        ("corl/tiny-unified", "dapo", {}),
        ("corl/tiny-unified", "dr-grpo", {}),
        ("corl/tiny-draw", "rloo", {}),
        ("corl/tiny-multiple-choice", "grpo", {}),
        ("corl/tiny-cold-start", "", {}),
        ("unirl/tiny-janus-grpo", "", {}),
        ("unirl/tiny-janus-sft", "", {}),
    ],
    "showo": [
        ("unirl/tiny-showo-grpo", "", {"resumed": True}),
        ("unirl/tiny-showo-sft", "", {}),
        ("unirl/tiny-showo-sft-split", "", {}),
        (
            "unirl/tiny-showo-grpo",
            "online-dpo",
            {"scoring__rounds": 0, "policy__lora_targets": r".*self_attn\.(q|v)_proj", **ADAPTED},
        ),
    ],
    "metaquery": [
        ("unirl-zero/tiny-text", "", {"resumed": True}),
        ("unirl-zero/tiny-edit", "", ADAPTED),
        ("unirl-zero/tiny-think", "", {}),
        ("unirl-zero/tiny-reflect", "", {}),
        ("unirl-zero/tiny-draw", "mixgrpo", {}),
        ("unirl-zero/tiny-draw", "dancegrpo", {}),
        ("unirl-zero/tiny-draw", "diffusion-nft", {}),
        ("unirl-zero/tiny-draw", "diffusion-dpo", {}),
    ],
}


def on_both(family: str, saved: Callable[[str], str], folder: Path) -> list[tuple[Path, Path]]:
    """The jobs of a family, done; the folders of each run, on the CPU and on the second device."""
    jobs = [
        {"recipe": recipe, "checkpoint": saved(family), "out": str(folder / str(number)), "algorithm": algorithm}
        | {"resumed": changes.get("resumed", False)}
        | {"changes": {name: value for name, value in changes.items() if name != "resumed"}}
        for number, (recipe, algorithm, changes) in enumerate(JOBS[family])
    ]
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    done = subprocess.run(
        [sys.executable, "-m", "tests.devices.jobs", str(file)],
        cwd=REPO, capture_output=True, text=True, check=False, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [(path, path.with_name(path.name.replace("-cpu", "-second"))) for path in sorted(folder.glob("*/*-cpu"))]


def rows(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("family", JOBS)
def test_a_run_on_a_second_device_is_that_on_the_cpu(family: str, saved: Callable[[str], str], tmp_path: Path) -> None:
    pairs = on_both(family, saved, tmp_path)
    assert len(pairs) >= len(JOBS[family])
    for here, there in pairs:
        for one, two in zip(rows(here), rows(there), strict=True):
            assert one == pytest.approx(two, rel=1e-2, abs=1e-3), here
        for file in (here / "checkpoints" / "final").rglob("*.safetensors"):
            ours, theirs = (load_file(run / file.relative_to(here)) for run in (here, there))
            assert all((ours[name] - theirs[name]).abs().max() < 1e-3 for name in ours)


def test_the_runs_cover_every_scenario_objective_and_algorithm() -> None:
    seen: list[tuple[str, str]] = []
    for recipe, algorithm, _ in (job for jobs in JOBS.values() for job in jobs):
        made: Any = recipes.find(recipe)()
        made = trained_by(made, algorithm) if algorithm else made
        configs = [stage.config for stage in made] if isinstance(made, tuple) else [made]
        seen += [(config.scenario.name, config.objective.name) for config in configs]
    assert {scenario for scenario, _ in seen} == set(SCENARIOS)
    assert {objective for _, objective in seen} == set(OBJECTIVES)
    assert {algorithm for jobs in JOBS.values() for _, algorithm, _ in jobs} == {"", *ALGORITHMS}
