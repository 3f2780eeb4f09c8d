"""The command line's `train`: recipes, options, chains, resuming, dry runs."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from unison.cli.help import show_common
from unison.config import COLD_START, Chain, RunConfig, from_json


@dataclass(frozen=True)
class TrainArgs:
    """Train a recipe; every field of the run can be set."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    overwrite: bool = False
    """Replace the run folder if it exists."""
    dry_run: bool = False
    """Check configuration, data and memory, print the plan and stop; nothing is downloaded."""
    processes: int = 1
    """Processes that a dry run plans the memory of, under `distributed.strategy`; a run itself is launched on them by
    `accelerate launch`."""
    profile: int = 0
    """Steps after the first that torch's profiler traces into the run folder."""
    skip_cold_start: bool = False
    """Leave out a chain's cold start."""
    algorithm: str = ""
    """Train by this algorithm, one of those that `unison recipes` lists: it sets fields of the recipe before you do."""
    skip_bad_rows: bool = False
    """Count and skip data rows that cannot be read (short for --data.skip-bad-rows)."""
    data: tuple[str, ...] = ()
    """What to train on (short for --data.train). In a chain it holds for every stage, each of which takes all rows and
    reads the columns it needs; `stage=path` after it gives one stage its own, as in
    `--data rows.parquet multiple-choice=questions.parquet`."""


def train(words: Sequence[str]) -> None:
    """`train <recipe>`, `train --config <file>` or `train --resume <run>`."""
    from unison import recipes
    from unison.recipes.algorithms import trained_by

    if words and words[0] == "--resume":
        return _resume(words[1:])
    if words and words[0] == "--config":
        if len(words) < 2 or not Path(words[1]).is_file():
            raise ValueError(f"--config {' '.join(words[1:2])}: no such file; give a saved <run>/config.json")
        recipe, rest = from_json(Path(words[1]).read_text()), words[2:]
    elif words and not words[0].startswith("-"):
        recipe, rest = recipes.find(words[0])(), words[1:]
    elif {"--help", "-h", "--help-all"} & set(words):
        recipe, rest = recipes.find(recipes.DEFAULT)(), words
    else:
        raise ValueError(f"train needs a recipe, one of {', '.join(recipes.RECIPES)}, or --config or --resume")
    if algorithm := _option(rest, "--algorithm"):
        recipe = trained_by(recipe, algorithm)
    if {"--help", "-h"} & set(rest):
        return show_common(TrainArgs, recipe if isinstance(recipe, RunConfig) else recipe[0].config)
    rest = ["--help" if word == "--help-all" else word for word in rest]
    if isinstance(recipe, RunConfig):
        args = _parse(recipe, rest)
        if args.skip_cold_start:
            raise ValueError(f"--skip-cold-start: {args.run.recipe} is one run, without a cold start")
        return _train_run(args)
    return _train_chain(recipe, Path("runs") / words[0].replace("/", "-"), rest)


def _option(words: Sequence[str], name: str) -> str:
    """The value of an option that must be known before the others are read; nothing where it is not given."""
    for number, word in enumerate(words):
        option, given, value = word.partition("=")
        if option == name:
            return value if given else next(iter(words[number + 1 :]), "")
    return ""


def _parse(default: RunConfig, words: Sequence[str], stage: str = "", stages: Sequence[str] = ()) -> TrainArgs:
    """The recipe with the user's options; of those for other stages of a chain it takes none."""
    from unison import scenarios
    from unison.rewards import REWARDS

    known = dict.fromkeys([*REWARDS, *_with_checkpoints(words)], 0.0)
    default = dataclasses.replace(default, rewards=known | default.rewards)
    args = tyro.cli(TrainArgs, default=TrainArgs(default), args=list(words), prog="unison train <recipe>")
    if not args.dry_run and args.processes != 1:
        raise ValueError(
            f"--processes {args.processes}: is of --dry-run; a run on several processes is launched by "
            "`accelerate launch -m unison train ...`"
        )
    config = dataclasses.replace(args.run, rewards={name: w for name, w in args.run.rewards.items() if w})
    data = dataclasses.replace(
        config.data,
        skip_bad_rows=config.data.skip_bad_rows or args.skip_bad_rows,
        train=_source(args.data, stage, stages) or config.data.train,
    )
    run = dataclasses.replace(config, data=data)
    scenarios.check(run)  # before a run folder is replaced
    return dataclasses.replace(args, run=run)


def _source(given: Sequence[str], stage: str, stages: Sequence[str]) -> str:
    """What `--data` says of a stage; nothing where it is silent.

    Raises:
        ValueError: more than one source for a run.
    """
    own = {name: path for name, mark, path in (word.partition("=") for word in given) if mark and name in stages}
    common = [word for word in given if word.partition("=")[0] not in own]
    if len(common) > 1:
        named = f"`stage=path` with a stage of {', '.join(stages)}" if stages else "one file, folder or hub id"
        raise ValueError(f"--data {' '.join(given)}: {common[1]!r} is one too many; besides the first, give {named}")
    return own.get(stage, common[0] if common else "")


def _train_run(args: TrainArgs) -> None:
    if args.dry_run:
        from unison.planning.dry_run import dry_run
        from unison.planning.memory import Layout

        return dry_run(args.run, Layout(args.processes, args.run.distributed.strategy))
    _make_room(Path(args.run.out), args.overwrite)
    return _train(args.run, resume=False, last=True, profile=args.profile)


def _train_chain(stages: Chain, out: Path, words: Sequence[str]) -> None:
    """Options hold for every stage; `--out` is the folder of them all."""
    from unison.training import chain

    names = [stage.name for stage in stages]
    parsed = [_parse(dataclasses.replace(s.config, out=out), words, s.name, names) for s in stages]
    if parsed[0].skip_cold_start:
        stages = chain.without_cold_start(stages)
        parsed = [args for args, name in zip(parsed, names, strict=True) if name != COLD_START]
    if parsed[0].dry_run:
        for stage, args in zip(stages, parsed, strict=True):
            print(f"stage {stage.name}")
            _train_run(args)
        return
    out = Path(parsed[0].run.out)
    _make_room(out, parsed[0].overwrite)
    chosen = tuple(dataclasses.replace(s, config=args.run) for s, args in zip(stages, parsed, strict=True))
    configs = chain.placed(chosen, out)
    chain.save(configs, out)
    chain.run(configs, partial(_train, profile=parsed[0].profile))
    _leave()


def _train(config: RunConfig, resume: bool, last: bool = False, profile: int = 0) -> None:
    from unison.training.trainer import Trainer

    Trainer(config, resume, profile).train()
    if last:
        _leave()


def _leave() -> None:
    from unison.training.distributed import leave

    leave()


def _with_checkpoints(words: Sequence[str]) -> list[str]:
    """Rewards that options name with a checkpoint of the user's, as in `--rewards.clip:folder 1`."""
    options = [word.removeprefix("--rewards.").partition("=")[0] for word in words if word.startswith("--rewards.")]
    parts = [option.partition(":") for option in options]
    return [f"{name.replace('-', '_')}:{checkpoint}" for name, _, checkpoint in parts if checkpoint]


def _resume(words: Sequence[str]) -> None:
    """Goes on with a run, or with every unfinished stage of a chain."""
    from unison.training import chain

    run = Path(words[0]) if len(words) == 1 else None
    if run and (run / chain.FILE).is_file():
        chain.run(chain.load(run), _train)
        return _leave()
    if not run or not (run / "config.json").is_file():
        raise ValueError(f"--resume {' '.join(words)}: no run folder with a config.json or {chain.FILE} there")
    if chain.is_finished(run):
        final = run / "checkpoints" / "final"
        return print(f"{run} is finished: nothing to do (to train on, start another run from {final})")
    return _train(dataclasses.replace(from_json((run / "config.json").read_text()), out=run), resume=True, last=True)


def _make_room(out: Path, overwrite: bool) -> None:
    from unison.training.chain import FILE

    if int(os.environ.get("RANK", "0")):
        return  # the first process of a launch looks; by now the folder may hold its files
    if out.exists() and any(out.iterdir()):
        if not overwrite:
            raise ValueError(
                f"out = {str(out)!r} exists: resume it with `unison train --resume {out}`, choose another --out, "
                "or replace it with --overwrite"
            )
        if not any((out / name).is_file() for name in ("config.json", FILE)):
            raise ValueError(f"out = {str(out)!r} is not a run folder: --overwrite will not delete it")
        shutil.rmtree(out)
