"""The command line: train, eval, sample, merge, join, pretrain, serve-reward, recipes, report, export."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

import tyro

from unison.cli import tools
from unison.cli.evaluate import evaluate
from unison.cli.train import train
from unison.config import choose_device

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

Models and judges compute on the best device there is; `--device cpu`, or `--device cuda:1`, names another.
`unison <verb> --help` lists its options; `unison train <recipe> --help` the common ones of a run, `--help-all` all.
"""


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "pretrain": tools.pretrain,
    "recipes": tools.recipes,
    "report": tools.report,
}
"""Verbs that read their words themselves; those of `tools.TOOLS` are read by tyro."""


def main() -> None:
    """Entry point: one line for the user's mistakes, a traceback for ours."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(USAGE)
        return
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        _run(_placed(words))
    except ValueError as error:
        if os.environ.get("UNISON_DEBUG"):
            raise
        print(f"unison: error: {error}\n(UNISON_DEBUG=1 shows where it was raised)", file=sys.stderr)
        sys.exit(2)


def _placed(words: list[str]) -> list[str]:
    """The words without `--device <name>` or `--device=<name>`, which holds for every verb."""
    options = [word.partition("=")[0] for word in words]
    if "--device" not in options:
        return words
    place = options.index("--device")
    _, given, value = words[place].partition("=")
    end = place + (1 if given else 2)
    if not given and end > len(words):
        raise ValueError("--device: name one, as in --device cuda:1 or --device cpu")
    choose_device(value if given else words[end - 1])
    return words[:place] + words[end:]


def _run(words: Sequence[str]) -> None:
    verb, kind = words[0], " ".join(words[:2])
    if verb in VERBS:
        return VERBS[verb](words[1:])
    name = kind if kind in tools.TOOLS else verb
    if name in tools.TOOLS:
        return tyro.cli(tools.TOOLS[name], args=list(words[len(name.split()) :]), prog=f"unison {name}")
    if kinds := [tool.removeprefix(f"{verb} ") for tool in tools.TOOLS if tool.startswith(f"{verb} ")]:
        raise ValueError(f"{kind}: choose one of {', '.join(kinds)}")
    verbs = dict.fromkeys([*VERBS, *(tool.split()[0] for tool in tools.TOOLS)])
    raise ValueError(f"unknown verb {verb!r}; choices: {', '.join(verbs)}")
