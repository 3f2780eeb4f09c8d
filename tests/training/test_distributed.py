"""Several processes take the steps of one, whichever way the weights lie; one that fails ends the run for all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env
from safetensors.torch import load_file

from tests.training.distributed_jobs import Job, run, write
from tests.training.test_train_latents import make
from unison.config import DistributedConfig, teams_of
from unison.recipes import corl
from unison.training.distributed import ARITHMETIC, FOREIGN, Processes, placed, start
from unison.training.log import RunLog
from unison.types import Context, Item, Sampling, Tokens, Trajectory, Turn

STRATEGIES = ("ddp", "fsdp2")
FAMILIES = ("janus", "showo", "metaquery")
CLOSE = 1e-5
PATIENCE = 240  # seconds within which a failed run must have ended, on a machine with little time for it
REPO = Path(__file__).resolve().parents[2]
LAUNCH = REPO / "launch"


def together(jobs: Sequence[Job], folder: Path, processes: int = 2) -> subprocess.CompletedProcess[str]:
    """Does the jobs on several processes."""
    file = write(jobs, folder / f"jobs-{time.monotonic_ns()}.json")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    paths = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    command = [*launch, str(Path(__file__).with_name("distributed_jobs.py")), str(file)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | paths, check=False, timeout=300)


def metrics(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def gradient(out: str, step: int) -> dict[str, torch.Tensor]:
    return torch.load(Path(out) / f"gradient-{step}.pt")


def assert_same_curve(one: str, other: str) -> None:
    """Losses and whole gradients agree to 1e-5 of their size; that of a loss is 1, for its summands are advantages."""
    for step, (a, b) in enumerate(zip(metrics(one), metrics(other), strict=True), start=1):
        assert a.keys() == b.keys()
        assert b["loss"] == pytest.approx(a["loss"], abs=CLOSE), step
        assert b["reward/mean"] == pytest.approx(a["reward/mean"], abs=CLOSE), step
        for name in ("grad_norm", "image/grad_norm", "text/grad_norm"):
            assert b[name] == pytest.approx(a[name], rel=CLOSE), (step, name)
        ours, theirs = gradient(one, step), gradient(other, step)
        assert ours.keys() == theirs.keys()
        apart = sum(float((ours[name] - theirs[name]).square().sum()) for name in ours) ** 0.5
        assert apart <= CLOSE * a["grad_norm"], step


def assert_same_export(one: str, other: str) -> None:
    """The final checkpoints hold the same files, with weights as close as three such steps leave them."""
    ours, theirs = (Path(out) / "checkpoints" / "final" for out in (one, other))
    files = sorted(path.relative_to(ours) for path in ours.rglob("*.safetensors"))
    assert files
    for file in files:
        a, b = load_file(ours / file), load_file(theirs / file)
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[name], b[name], atol=1e-6, rtol=0) for name in a)


# -- the same steps ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_take_the_steps_of_one(saved: Callable[[str], str], tmp_path: Path, family: str) -> None:
    one = Job(saved(family), str(tmp_path / "one"))
    run(one)
    two = [Job(saved(family), str(tmp_path / s), s) for s in STRATEGIES]
    done = together(two, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for job in two:
        assert_same_curve(one.out, job.out)
        assert_same_export(one.out, job.out)
    assert done.stdout.count("report:") == len(two), "one process speaks for all"
    shares = [json.loads((tmp_path / s / "held.json").read_text()) for s in STRATEGIES]
    assert shares == pytest.approx([1, 0.5], abs=0.03)


@pytest.mark.slow
def test_adapters_beside_frozen_weights_take_the_same_steps(saved: Callable[[str], str], tmp_path: Path) -> None:
    adapters = {
        "policy__lora_rank": 2,
        "policy__lora_targets": r".*layers\.\d+\.self_attn\.(q_proj|v_proj)",
        "optim__part_learning_rates": {"lora_B": 1e-4},
    }
    one = Job(saved("showo"), str(tmp_path / "one"), changes=adapters)
    run(one)
    two = [Job(saved("showo"), str(tmp_path / s), s, adapters) for s in STRATEGIES]
    done = together(two, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all("lora" in name for name in gradient(one.out, 1))
    for job in two:
        assert_same_curve(one.out, job.out)
        assert_same_export(one.out, job.out)


@pytest.mark.slow
def test_processes_with_unequal_work_wait_for_one_another(saved: Callable[[str], str], tmp_path: Path) -> None:
    uneven = {"step__updates": 2, "step__micro_batch_items": 1}
    one = Job(saved("showo"), str(tmp_path / "one"), changes=uneven, abstains=True)
    run(one)
    assert {row["reward/abstained"] for row in metrics(one.out)} != {0.0}
    two = [replace(one, out=str(tmp_path / s), strategy=s) for s in STRATEGIES]
    done = together(two, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for job in two:
        for a, b in zip(metrics(one.out), metrics(job.out), strict=True):
            assert b["loss"] == pytest.approx(a["loss"], abs=CLOSE)
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=CLOSE, abs=CLOSE)
            for name in [name for name in a if name.startswith(("reward/", "groups/")) or name.endswith("/length")]:
                assert b[name] == pytest.approx(a[name], abs=CLOSE), name


@pytest.mark.slow
def test_groups_shared_by_two_processes_take_the_steps_of_one(saved: Callable[[str], str], tmp_path: Path) -> None:
    groups = {"scenario__group_size": 4}
    one = Job(saved("showo"), str(tmp_path / "one"), changes=groups)
    run(one)
    split = groups | {"distributed__processes_per_group": 2}
    two = [Job(saved("showo"), str(tmp_path / s), s, split) for s in STRATEGIES]
    done = together(two, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for job in two:
        assert_same_curve(one.out, job.out)


# -- going on ---------------------------------------------------------------------------------------------------------

MOVING = {"objective__reference_decay": 0.5, "optim__learning_rate": 1e-4}
"""The reference follows so closely, and the weights move so far, that a resumed run without it would differ."""


@pytest.fixture(scope="module")
def whole(saved: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run of one process from start to end."""
    job = Job(saved("showo"), str(tmp_path_factory.mktemp("whole") / "run"), changes=MOVING)
    run(job)
    return job


def assert_goes_on(whole: Job, job: Job) -> None:
    """The metrics of a run in two parts are those of the whole run; 1e-3 is what rounding has become by then."""
    for a, b in zip(metrics(whole.out), metrics(job.out), strict=True):
        for name in ("loss", "grad_norm", "image/kl", "text/kl", "reward/mean"):
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=CLOSE), (a["step"], name)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(whole: Job, tmp_path: Path) -> None:
    to_one = [replace(whole, out=str(tmp_path / f"{s}-2-1"), strategy=s) for s in STRATEGIES]
    to_two = [replace(whole, out=str(tmp_path / f"{s}-1-2"), strategy=s) for s in STRATEGIES]
    for job in to_two:
        run(replace(job, stop=2))
    goes_on = [replace(job, resume=True) for job in to_two]
    done = together([*(replace(job, stop=2) for job in to_one), *goes_on], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for job in to_one:
        run(replace(job, resume=True))
    for job in (*to_one, *to_two):
        assert_goes_on(whole, job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "strategy", "shown"),
    [
        ("reward", "fsdp2", "stopped with process 1: reward 'world' failed: the oracle is silent"),
        ("reward", "ddp", "stopped with process 1: reward 'world' failed: the oracle is silent"),
        ("rollout", "fsdp2", "ArithmeticError: the oracle is silent"),
        ("killed", "ddp", "SIGKILL"),
    ],
)
def test_a_process_that_fails_ends_the_run_which_then_goes_on(
    whole: Job, tmp_path: Path, fault: str, strategy: str, shown: str
) -> None:
    job = replace(whole, out=str(tmp_path / "run"), strategy=strategy, fault=fault)
    begun = time.monotonic()
    done = together([job], tmp_path)
    assert done.returncode != 0
    assert time.monotonic() - begun < PATIENCE, "it has waited for a process that is gone"
    assert shown in done.stderr
    assert len(metrics(job.out)) == 1
    run(replace(job, fault="", resume=True))
    assert_goes_on(whole, job)


# -- what needs no second process -------------------------------------------------------------------------------------


def test_processes_of_a_team_have_the_same_items() -> None:
    alone = [SimpleNamespace(num_processes=4, process_index=i, is_main_process=not i) for i in range(4)]
    teams = [Processes(cast(Any, own), per_group=2) for own in alone]
    assert [team.share_of_items("abcd") for team in teams] == ["ac", "ac", "bd", "bd"]
    assert [team.place for team in teams] == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"processes_per_group": 0}, "at least 1"),
        ({"processes_per_group": 3}, r"a divisor of scenario\.group_size = 8"),
    ],
)
def test_groups_that_cannot_be_split_are_named(changes: dict[str, int], shown: str) -> None:
    with pytest.raises(ValueError, match=rf"distributed\.processes_per_group = \d: must be {shown}"):
        replace(corl.tiny_unified(), distributed=replace(DistributedConfig(), **changes))


def test_what_wants_a_group_in_one_place_is_named() -> None:
    split = replace(corl.tiny_unified(), distributed=DistributedConfig(processes_per_group=2))
    with pytest.raises(ValueError, match=r"must be 1 with step\.refills"):
        replace(split, step=replace(split.step, refills=1))
    with pytest.raises(ValueError, match=r"must be 1 with reward_normalisation = 'group'"):
        replace(split, reward_normalisation="group")


def test_processes_over_which_a_step_does_not_divide_are_named() -> None:
    config = corl.tiny_unified()
    with pytest.raises(ValueError, match=r"step\.items = \d+: must be a multiple of the 7 processes"):
        teams_of(config, 7)
    split = replace(config, distributed=DistributedConfig(processes_per_group=2))
    assert teams_of(split, 4) == 2
    with pytest.raises(ValueError, match="must be a divisor of the 3 processes"):
        teams_of(split, 3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_item_and_with_it_every_group_belongs_to_one_process(count: int) -> None:
    alone = [SimpleNamespace(num_processes=count, process_index=i, is_main_process=not i) for i in range(count)]
    shares = [Processes(cast(Any, own)).share(range(12)) for own in alone]
    assert sorted(item for share in shares for item in share) == list(range(12))
    assert {len(share) for share in shares} == {12 // count}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GRADIENT_ACCUMULATION_STEPS", "4"),
        ("MIXED_PRECISION", "bf16"),
        ("MIXED_PRECISION", "fp16"),
        ("DYNAMO_BACKEND", "INDUCTOR"),
        ("USE_PARALLELISM_CONFIG", "true"),
    ],
)
def test_what_would_change_numbers_behind_the_runs_back_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, value: str
) -> None:
    name = f"ACCELERATE_{variable}"
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"{name} = '{value}': must be '\w+' or unset: .*\w\.\w"):
        start(DistributedConfig(), (), tmp_path)
    monkeypatch.setenv(name, ARITHMETIC[name][0].upper())
    start(DistributedConfig(), (), tmp_path)


def test_lengths_are_means_over_the_actions_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path, start(DistributedConfig(), (), tmp_path), 1, cast(Any, None))
    others = [{}, {"text/length": (4.0, 3), "image/length": (9.0, 1)}]
    monkeypatch.setattr(log, "accelerator", SimpleNamespace(num_processes=3))
    monkeypatch.setattr("unison.training.log.gather_object", lambda own: [*own, *others])
    zeros = torch.zeros(8)
    action = Tokens("text", zeros, zeros, zeros, zeros == 0, Sampling())
    found = log._lengths([Trajectory(Item("x"), (Turn(Context(()), action),))])
    assert found == pytest.approx({"text/length": 5.0, "image/length": 9.0})


@pytest.mark.parametrize("variable", FOREIGN)
def test_what_would_take_the_model_from_the_trainer_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match=rf"{variable}.*fsdp2"):
        start(DistributedConfig(), (), tmp_path)


@pytest.mark.parametrize(("name", "value"), [("strategy", "zero3"), ("timeout", 0.0)])
def test_settings_that_cannot_work_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"distributed\.{name} = "):
        replace(corl.tiny_unified(), distributed=replace(DistributedConfig(), **{name: value}))


def test_a_checkpoint_of_another_strategy_is_named_as_such(tmp_path: Path) -> None:
    processes = Processes(start(DistributedConfig(), (), tmp_path))
    with pytest.raises(ValueError, match=r"distributed\.strategy"):
        placed(make(), "fsdp2", processes).load(tmp_path)


@pytest.mark.parametrize("file", sorted(LAUNCH.glob("*.yaml")), ids=lambda file: file.stem)
def test_accelerate_reads_every_launch_file(file: Path) -> None:
    config = load_config_from_file(str(file))
    assert isinstance(config, ClusterConfig)
    assert config.num_processes >= 2
    assert config.distributed_type == ("DEEPSPEED" if "deepspeed" in file.stem else "MULTI_GPU")
    assert (config.num_machines > 1) == ("nodes" in file.stem)


def test_the_deepspeed_file_is_zero_2_to_accelerate_and_refused_by_the_trainer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = str(LAUNCH / "deepspeed_zero2.yaml")
    words = launch_command_parser().parse_args(["--config_file", file, "-m", "unison", "train"])
    arguments, config, _ = _validate_launch_command(words)
    assert config is not None
    arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
    _, environment = prepare_deepspeed_cmd_env(arguments)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    assert DeepSpeedPlugin().deepspeed_config["zero_optimization"]["stage"] == 2
    with pytest.raises(ValueError, match=r"DEEPSPEED.*fsdp2"):
        start(DistributedConfig(), (), tmp_path)
