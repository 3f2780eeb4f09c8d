"""The command line: train, eval, sample, merge, join, pretrain, serve-reward, recipes, report, export."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from unison.cli.evaluate import evaluate
from unison.cli.train import train
from unison.config import JoinConfig, ServeConfig

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
    from unison.data.rows import read_image

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
    from unison.policies.merge import merge as write

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
    from unison.policies.metaquery.network import write_joint

    print(write_joint(args.language_model, args.diffusion, args.bridge, args.dtype, args.out))


def pretrain(words: Sequence[str]) -> None:
    """`pretrain janus`, `pretrain showo` or `pretrain metaquery`"""
    from unison.pretrain import metaquery, showo
    from unison.pretrain.course import PretrainConfig
    from unison.pretrain.janus import pretrain_janus

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
        from unison.rewards.remote.server import serve
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
    from unison.reports.page import write_report

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
    from unison.data.tables import export as write
    from unison.data.world import WorldItems

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
