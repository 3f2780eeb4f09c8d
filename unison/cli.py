"""The command line: train, eval, sample, merge, join, pretrain, serve-reward, recipes, report, export."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, TypeVar

import tyro

from unison.config import Chain, JoinConfig, RunConfig, ServeConfig, from_json

if TYPE_CHECKING:
    from accelerate import PartialState
    from rich.console import Console

    from unison.suites import Suite
    from unison.suites.common import Job, Result

USAGE = """unison: reinforcement learning for unified multimodal models

  unison train <recipe> [--field value ...]    train, evaluate before and after, write a report
  unison train <recipe> --data <path>          the same on your rows: JSONL, Parquet, a folder or a hub id
  unison train <recipe> --algorithm <name>     the same by another algorithm: dapo, gspo, ...
  unison train --config <run>/config.json      repeat a run
  unison train --resume <run>                  go on after a crash, with a run or a chain of runs
  unison eval <checkpoint>                     score drawing and answering on held-out items
  unison eval <checkpoint> --suite geneval --prompts <file>
  unison eval --compare <A> <B>                two checkpoints on the same items, paired, with a page of drawings
  unison eval <checkpoint> --suite dpg --prompts <file> --judge <checkpoint or endpoint>
  unison eval <checkpoint> --suite understanding --data <file>
  unison eval <checkpoint> --data prompts      draw GenEval-style prompts, answer questions about the drawings
  unison sample draw <checkpoint> <prompt>     draw
  unison sample ask <checkpoint> <image> <question>
  unison merge <checkpoint> <checkpoint> ...   merge fine-tuned checkpoints of one base
  unison join <language-model> <diffusion>     join a Qwen2.5-VL and a diffusion model into one checkpoint
  unison pretrain janus                        make a bundled tiny model from scratch: janus, showo or metaquery
  unison serve-reward <reward> ...             judge for runs elsewhere: --rewards.remote:http://host:port/<reward> 1
  unison recipes                               list the recipes
  unison report <run>                          write <run>/report.html
  unison export <folder>                       write the embedded world as a data set

`unison <verb> --help` lists every option; `unison train <recipe> --help` every field of a run with its default.
"""


@dataclass(frozen=True)
class TrainArgs:
    """Train a recipe; every field of the run can be set."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]
    overwrite: bool = False
    """Replace the run folder if it exists."""
    dry_run: bool = False
    """Check configuration, data and memory, print the plan and stop; nothing is downloaded."""
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
    elif "--help" in words or "-h" in words:
        recipe, rest = recipes.find(recipes.DEFAULT)(), words
    else:
        raise ValueError(f"train needs a recipe, one of {', '.join(recipes.RECIPES)}, or --config or --resume")
    if algorithm := _option(rest, "--algorithm"):
        recipe = trained_by(recipe, algorithm)
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
    from unison.rewards import REWARDS

    known = dict.fromkeys([*REWARDS, *_with_checkpoints(words)], 0.0)
    default = dataclasses.replace(default, rewards=known | default.rewards)
    args = tyro.cli(TrainArgs, default=TrainArgs(default), args=list(words), prog="unison train <recipe>")
    config = dataclasses.replace(args.run, rewards={name: w for name, w in args.run.rewards.items() if w})
    data = dataclasses.replace(
        config.data,
        skip_bad_rows=config.data.skip_bad_rows or args.skip_bad_rows,
        train=_source(args.data, stage, stages) or config.data.train,
    )
    return dataclasses.replace(args, run=dataclasses.replace(config, data=data))


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
        from unison.plan import dry_run

        return dry_run(args.run)
    _make_room(Path(args.run.out), args.overwrite)
    return _train(args.run, resume=False, last=True)


def _train_chain(stages: Chain, out: Path, words: Sequence[str]) -> None:
    """Options hold for every stage; `--out` is the folder of them all."""
    from unison import chain

    names = [stage.name for stage in stages]
    parsed = [_parse(dataclasses.replace(s.config, out=out), words, s.name, names) for s in stages]
    if parsed[0].skip_cold_start:
        stages = chain.without_cold_start(stages)
        parsed = [args for args, name in zip(parsed, names, strict=True) if name != chain.COLD_START]
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
    chain.run(configs, _train)
    _leave()


def _train(config: RunConfig, resume: bool, last: bool = False) -> None:
    from unison.train import Trainer

    Trainer(config, resume).train()
    if last:
        _leave()


def _leave() -> None:
    from unison.distributed import leave

    leave()


def _with_checkpoints(words: Sequence[str]) -> list[str]:
    """Rewards that options name with a checkpoint of the user's, as in `--rewards.clip:folder 1`."""
    options = [word.removeprefix("--rewards.").partition("=")[0] for word in words if word.startswith("--rewards.")]
    parts = [option.partition(":") for option in options]
    return [f"{name.replace('-', '_')}:{checkpoint}" for name, _, checkpoint in parts if checkpoint]


def _resume(words: Sequence[str]) -> None:
    """Goes on with a run, or with every unfinished stage of a chain."""
    from unison import chain

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
    from unison.chain import FILE

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


Options = TypeVar("Options")


@dataclass(frozen=True)
class EvalArgs(Generic[Options]):
    """Score a checkpoint."""

    checkpoints: tyro.conf.Positional[tuple[str, ...]]
    """Checkpoint folder, hub id or assets/<name>; with --compare two of these, or of folders of results."""
    options: Annotated[Options, tyro.conf.arg(name="")]
    compare: bool = False
    """Put two checkpoints side by side, A and B, on the same items."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights."""
    out: Path | None = None
    """Folder for the results, or the JSON file of a single suite; runs/eval/<checkpoint> if not given."""
    overwrite: bool = False
    """Start over where an interrupted evaluation would be gone on with."""


def evaluate(words: Sequence[str]) -> None:
    """`eval <checkpoint> [--suite <name>,<name>]`, `eval --compare <A> <B>`"""
    from unison import suites
    from unison.suites import card
    from unison.suites.common import Job

    names, rest = _suite_names(words)
    chosen = [suites.find(name) for name in names]
    parsed = [_parse_suite(suite, names, rest) for suite in chosen]
    first = parsed[0]  # what is no suite's own option is the same for all
    if len(chosen) > 1 and first.out and first.out.suffix == ".json":
        raise ValueError(f"--out {first.out}: several suites write to a folder, not to one file")
    _check_sides(first)
    job = Job(first.checkpoints[0], first.dtype, first.out, first.overwrite, _processes())
    pairs = [(suite, args.options) for suite, args in zip(chosen, parsed, strict=True)]
    if first.compare:
        return _compare(pairs, job, first.checkpoints)
    ready = [suite.prepare(options, job) for suite, options in pairs]
    for suite, run in zip(chosen, ready, strict=True):
        if result := run():
            card.save(result, job)
            _print_result(result, job.file(suite.name))
    return None


def _check_sides(args: EvalArgs[Any]) -> None:
    wanted = 2 if args.compare else 1
    if len(args.checkpoints) != wanted:
        given = f"{len(args.checkpoints)} given: {' '.join(args.checkpoints)}" if args.checkpoints else "none given"
        raise ValueError(
            f"eval --compare takes two checkpoints or folders of results, {given}"
            if args.compare
            else f"eval takes one checkpoint, {given}; two are put side by side by --compare"
        )


def _compare(pairs: Sequence[tuple[Suite, Any]], job: Job, names: Sequence[str]) -> None:
    from unison import compare

    jobs, where = compare.place(job, names)
    ready = [[compare.prepare(suite, options, one) for one in jobs] for suite, options in pairs]
    for (suite, _), runs in zip(pairs, ready, strict=True):
        sides = [run() for run in runs]
        if sides[0] and sides[1] and job.processes.is_main_process:
            compared = compare.side_by_side(sides[0], sides[1])
            file = where if where.suffix == ".json" else where / f"{suite.name}.json"
            compared.save(file)
            _print_table(compared.heads, compared.rows())
            _print_lines(
                *compared.notes, f"{file} and, beside it, {file.stem}.md and {file.stem}.html hold the figures"
            )


def _suite_names(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The names that `--suite` gives, and the other words."""
    names, rest, left = "world", [], iter(words)
    for word in left:
        option, given, value = word.partition("=")
        if option == "--suite":
            names = value if given else next(left, "")
        else:
            rest.append(word)
    return names.split(","), rest


def _parse_suite(suite: Suite, names: Sequence[str], words: Sequence[str]) -> EvalArgs[Any]:
    """The command as one of its suites reads it: `--<suite>.<option>` is for that suite alone."""
    from unison.suites import SUITES

    own, keep = [], True
    for word in words:
        if word.startswith("--"):
            owner, dot, option = word[2:].partition(".")
            known = bool(dot) and owner in names
            keep = not known or owner == suite.name
            word = f"--{option}" if known else word
        if keep:
            own.append(word)
    others = ", ".join(f"{s.name} ({s.summary})" for s in SUITES.values())
    about = f"Score a checkpoint with the suite `{suite.name}`: {suite.summary}. --suite takes another: {others}."
    return tyro.cli(EvalArgs[suite.options], args=own, prog=f"unison eval --suite {suite.name}", description=about)


def _processes() -> PartialState:
    """The processes of this launch; they may wait for one another for days."""
    from datetime import timedelta

    import torch
    from accelerate import PartialState

    patience = {"timeout": timedelta(days=7)} if int(os.environ.get("WORLD_SIZE", "1")) > 1 else {}
    # without a GPU it must be told so, or every process of a launch takes itself for the only one
    return PartialState(cpu=not torch.cuda.is_available(), **patience)


def _print_result(result: Result, file: Path) -> None:
    """The table of all figures by task, with the protocol that they hold for."""
    from unison.suites.common import counted, one_line

    heads = ["figure", "all tasks [95% interval]", *result.tasks]
    _print_table(heads, [[name, *row] for name, row in result.rows().items()])
    _print_lines(
        *([f"counts: {counted(result.counts)}"] if result.counts else []),
        *result.notes,
        ", ".join(f"{name}={one_line(value)}" for name, value in result.protocol.items()),
        f"{file} and {file.with_suffix('.md').name} hold the figures",
    )


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.table import Column, Table

    table = Table(Column(heads[0], no_wrap=True), *heads[1:])
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def _print_lines(*lines: str) -> None:
    for line in lines:
        _console().print(line, highlight=False, markup=False)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a file is as wide as its lines
        console.width = max(console.width, 160)
    return console


@dataclass(frozen=True)
class DrawArgs:
    """Draw a prompt."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint folder, hub id or assets/<name>."""
    prompt: tyro.conf.Positional[str]
    """What to draw."""
    count: int = 8
    """Drawings."""
    guidance: float = 2.0
    """Guidance scale (the Janus-Pro authors use 5)."""
    temperature: float = 1.0
    """Sampling temperature."""
    seed: int = 0
    """Seed of the first drawing; the others follow."""
    zoom: int = 4
    """Enlargement of the saved sheet."""
    out: Path = Path("drawing.png")
    """PNG file, drawings side by side."""


@dataclass(frozen=True)
class AskArgs:
    """Ask a question about a picture."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint folder, hub id or assets/<name>."""
    image: tyro.conf.Positional[Path]
    """Picture file."""
    question: tyro.conf.Positional[str]
    """The question."""
    count: int = 1
    """Replies."""
    temperature: float = 1.0
    """Sampling temperature."""
    max_tokens: int = 256
    """Longest reply."""
    seed: int = 0
    """Seed of the first reply; the others follow."""


def sample(words: Sequence[str]) -> None:
    """`sample draw ...` or `sample ask ...`"""
    kinds: dict[str, type[DrawArgs] | type[AskArgs]] = {"draw": DrawArgs, "ask": AskArgs}
    if not words or words[0] not in kinds:
        raise ValueError(f"sample {' '.join(words[:1])}: choose one of {', '.join(kinds)}")
    args = tyro.cli(kinds[words[0]], args=list(words[1:]), prog=f"unison sample {words[0]}")
    from unison.config import PolicyConfig
    from unison.policies import load_policy
    from unison.types import Context, Sampling

    policy = load_policy(PolicyConfig(args.checkpoint))
    seeds = list(range(args.seed, args.seed + args.count))
    if isinstance(args, DrawArgs):
        context = Context((args.prompt,))
        settings = Sampling(temperature=args.temperature, guidance=args.guidance)
        _save_sheet(policy.decode(policy.draw([context] * args.count, settings, seeds)), args.zoom, args.out)
        print(args.out)
        return
    from unison.rows import read_image

    context = Context((read_image(str(args.image), Path(".")), args.question))
    settings = Sampling(temperature=args.temperature, max_tokens=args.max_tokens)
    print("\n".join(policy.decode(policy.write([context] * args.count, settings, seeds))))


def _save_sheet(pictures: Sequence, zoom: int, out: Path) -> None:
    from PIL import Image

    width, height = (zoom * side for side in pictures[0].size)
    sheet = Image.new("RGB", (len(pictures) * (width + 8) - 8, height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (i * (width + 8), 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


@dataclass(frozen=True)
class MergeArgs:
    """Merge fine-tuned checkpoints of one base into a new checkpoint, tensor by tensor."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """Checkpoint folders or hub ids, in transformers format."""
    out: Path
    """New folder for the merged checkpoint."""
    method: Literal["gaussian", "linear", "slerp", "ties"]
    """gaussian and ties weigh changes to --base; linear is the weighted mean; slerp takes two models."""
    weights: tuple[float, ...] = ()
    """Share of each model, summing to 1; equal shares if not given."""
    base: str | None = None
    """The checkpoint that the models were tuned from."""
    density: float = 0.2
    """Share of each model's changes that ties keeps."""


def merge(words: Sequence[str]) -> None:
    """`merge <checkpoint> <checkpoint> ... --out <folder> --method <name>`"""
    args = tyro.cli(MergeArgs, args=list(words), prog="unison merge")
    from unison.merge import merge as write

    print(write(args.models, args.out, args.method, args.weights, args.base, args.density))


@dataclass(frozen=True)
class JoinArgs:
    """Join a Qwen2.5-VL and a flow-matching diffusion model into a metaquery checkpoint by a new, untrained bridge."""

    language_model: tyro.conf.Positional[str]
    """Folder or hub id, such as Qwen/Qwen2.5-VL-3B-Instruct."""
    diffusion: tyro.conf.Positional[str]
    """Folder or hub id in diffusers format, such as Efficient-Large-Model/Sana_1600M_1024px_diffusers."""
    out: Path
    """New folder for the joint checkpoint."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Type of the weights; the autoencoder stays in float32."""
    bridge: Annotated[JoinConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=JoinConfig)


def join(words: Sequence[str]) -> None:
    """`join <language-model> <diffusion> --out <folder>`"""
    args = tyro.cli(JoinArgs, args=list(words), prog="unison join")
    from unison.policies.metaquery_net import write_joint

    print(write_joint(args.language_model, args.diffusion, args.bridge, args.dtype, args.out))


def pretrain(words: Sequence[str]) -> None:
    """`pretrain janus`, `pretrain showo` or `pretrain metaquery`"""
    from unison.world import pretrain_metaquery as metaquery
    from unison.world import pretrain_showo as showo
    from unison.world.pretrain import PretrainConfig, pretrain_janus

    families = {
        "janus": (PretrainConfig(), pretrain_janus),
        "showo": (showo.DEFAULT, showo.pretrain_showo),
        "metaquery": (metaquery.MetaQueryPretrainConfig(), metaquery.pretrain_metaquery),
    }
    if not words or words[0] not in families:
        raise ValueError(f"pretrain {' '.join(words[:1])}: choose a family, one of {', '.join(families)}")
    default, run = families[words[0]]
    print(run(tyro.cli(type(default), args=list(words[1:]), prog=f"unison pretrain {words[0]}", default=default)))


@dataclass(frozen=True)
class ServeArgs:
    """Serve rewards over HTTP. The bearer token that clients must have is read from UNISON_REWARD_TOKEN."""

    rewards: tyro.conf.Positional[tuple[str, ...]]
    """Rewards by name, with a checkpoint after a colon where it is not the default."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 takes all, which needs a token."""
    port: int = 8000
    """Port to listen on."""
    workers: int = 1
    """Processes, each with models of its own."""
    limits: Annotated[ServeConfig, tyro.conf.arg(name="")] = dataclasses.field(default_factory=ServeConfig)


def serve_reward(words: Sequence[str]) -> None:
    """`serve-reward <reward> <reward> ...`"""
    args = tyro.cli(ServeArgs, args=list(words), prog="unison serve-reward")
    try:
        from unison.serve import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"serve-reward needs {error.name}, not installed: pip install 'unison[serve]'") from error
    serve(args.rewards, args.limits, args.host, args.port, args.workers)


def recipes(words: Sequence[str]) -> None:
    """`recipes`"""
    from rich.console import Console
    from rich.table import Table

    from unison.recipes import RECIPES, algorithms, summary
    from unison.rewards import REWARDS
    from unison.scenarios import SCENARIOS

    table = Table("recipe", "what it does")
    for name in RECIPES:
        table.add_row(name, summary(name))
    named = Table("algorithm", "what it does")
    for name in algorithms.ALGORITHMS:
        named.add_row(name, algorithms.summary(name))
    console = Console()
    console.print(table)
    console.print(named)
    console.print("scenarios: " + "; ".join(f"{name} ({s.summary})" for name, s in SCENARIOS.items()))
    console.print(f"rewards: {', '.join(REWARDS)}; any of them on a server: remote:http://host:port/<reward>")


def report(words: Sequence[str]) -> None:
    """`report <run>`"""
    if len(words) != 1:
        raise ValueError("report takes one run folder: unison report <run>")
    from unison.report import write_report

    print(write_report(Path(words[0])))


@dataclass(frozen=True)
class ExportArgs:
    """Write the embedded world as JSONL and images with the column names of the CoRL data sets."""

    folder: tyro.conf.Positional[Path]
    """Folder to write."""
    split: Literal["train", "eval"] = "train"
    """Side of the split."""
    count: int = 1000
    """Items."""
    questions: Literal["open_ended", "multiple_choice", "mixed"] = "mixed"
    """Form of the questions."""
    seed: int = 0
    """Seed of the items."""


def export(words: Sequence[str]) -> None:
    """`export <folder>`"""
    args = tyro.cli(ExportArgs, args=list(words), prog="unison export")
    from unison.data import WorldItems
    from unison.data import export as write

    print(write(WorldItems(args.split, args.questions, "", args.seed, args.count), args.folder, args.count))


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "merge": merge,
    "join": join,
    "pretrain": pretrain,
    "serve-reward": serve_reward,
    "recipes": recipes,
    "report": report,
    "export": export,
}


def main() -> None:
    """Entry point: one line for the user's mistakes, a traceback for ours."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return
    try:
        if words[0] not in VERBS:
            raise ValueError(f"unknown verb {words[0]!r}; choices: {', '.join(VERBS)}")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        VERBS[words[0]](words[1:])
    except ValueError as error:
        if os.environ.get("UNISON_DEBUG"):
            raise
        print(f"unison: error: {error}\n(UNISON_DEBUG=1 shows where it was raised)", file=sys.stderr)
        sys.exit(2)
