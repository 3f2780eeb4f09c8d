"""The command line's smaller verbs: a function each, whose parameters are its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from unison.config import JoinConfig, PolicyConfig, ServeConfig

if TYPE_CHECKING:
    from unison.policies.base import Policy

Flat = arg(name="")
Checkpoint = Positional[Annotated[str, arg(help="Checkpoint folder, hub id or assets/<name>.")]]
Dtype = Annotated[
    Literal["auto", "float32", "bfloat16"], arg(help="Type of the weights; auto is float32 on a CPU, else bfloat16.")
]


def draw(
    checkpoint: Checkpoint,
    prompt: Positional[Annotated[str, arg(help="What to draw.")]],
    count: Annotated[int, arg(help="Drawings.")] = 8,
    guidance: Annotated[float, arg(help="Guidance scale (the Janus-Pro authors use 5).")] = 2.0,
    temperature: Annotated[float, arg(help="Sampling temperature.")] = 1.0,
    seed: Annotated[int, arg(help="Seed of the first drawing; the others follow.")] = 0,
    dtype: Dtype = "auto",
    zoom: Annotated[int, arg(help="Enlargement of the saved sheet.")] = 4,
    out: Annotated[Path, arg(help="PNG file, drawings side by side.")] = Path("drawing.png"),
) -> None:
    """Draw a prompt."""
    from unison.types import Context, Sampling

    policy, settings = _loaded(checkpoint, dtype), Sampling(temperature=temperature, guidance=guidance)
    drawings = policy.draw([Context((prompt,))] * count, settings, range(seed, seed + count))
    _save_sheet(policy.decode(drawings), zoom, out)
    print(out)


def ask(
    checkpoint: Checkpoint,
    image: Positional[Annotated[Path, arg(help="Picture file.")]],
    question: Positional[Annotated[str, arg(help="The question.")]],
    count: Annotated[int, arg(help="Replies.")] = 1,
    temperature: Annotated[float, arg(help="Sampling temperature.")] = 1.0,
    max_tokens: Annotated[int, arg(help="Longest reply.")] = 256,
    seed: Annotated[int, arg(help="Seed of the first reply; the others follow.")] = 0,
    dtype: Dtype = "auto",
) -> None:
    """Ask a question about a picture."""
    from unison.data.rows import read_image
    from unison.types import Context, Sampling

    policy, settings = _loaded(checkpoint, dtype), Sampling(temperature=temperature, max_tokens=max_tokens)
    context = Context((read_image(str(image), Path(".")), question))
    print("\n".join(policy.decode(policy.write([context] * count, settings, range(seed, seed + count)))))


def _loaded(checkpoint: str, dtype: str) -> Policy:
    """The checkpoint as a policy on the best device."""
    from unison.config import best_device
    from unison.policies import load_policy

    device = best_device()
    kind: Any = dtype if dtype != "auto" else "float32" if device.type == "cpu" else "bfloat16"
    return load_policy(PolicyConfig(checkpoint, dtype=kind, compute_dtype=kind)).to(device)


def _save_sheet(pictures: Sequence, zoom: int, out: Path) -> None:
    from PIL import Image

    width, height = (zoom * side for side in pictures[0].size)
    sheet = Image.new("RGB", (len(pictures) * (width + 8) - 8, height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (i * (width + 8), 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


def merge(
    models: Positional[Annotated[tuple[str, ...], arg(help="Checkpoint folders or hub ids, in transformers format.")]],
    out: Annotated[Path, arg(help="New folder for the merged checkpoint.")],
    method: Annotated[
        Literal["gaussian", "linear", "slerp", "ties"],
        arg(help="gaussian and ties weigh changes to --base; linear is the weighted mean; slerp takes two models."),
    ],
    weights: Annotated[
        tuple[float, ...], arg(help="Share of each model, summing to 1; equal shares if not given.")
    ] = (),
    base: Annotated[str | None, arg(help="The checkpoint that the models were tuned from.")] = None,
    density: Annotated[float, arg(help="Share of each model's changes that ties keeps.")] = 0.2,
) -> None:
    """Merge fine-tuned checkpoints of one base into a new checkpoint, tensor by tensor."""
    from unison.policies.merge import merge as write

    print(write(models, out, method, weights, base, density))


def join(
    language_model: Positional[Annotated[str, arg(help="Folder or hub id, such as Qwen/Qwen2.5-VL-3B-Instruct.")]],
    diffusion: Positional[Annotated[str, arg(help="Folder or hub id in diffusers format, such as one of SANA's.")]],
    out: Annotated[Path, arg(help="New folder for the joint checkpoint.")],
    dtype: Annotated[
        Literal["bfloat16", "float32"], arg(help="Type of the weights; the autoencoder stays in float32.")
    ] = "bfloat16",
    bridge: Annotated[JoinConfig, Flat] = JoinConfig(),  # noqa: B008 (frozen)
) -> None:
    """Join a Qwen2.5-VL and a flow-matching diffusion model into a metaquery checkpoint by a new, untrained bridge."""
    from unison.policies.metaquery.network import write_joint

    print(write_joint(language_model, diffusion, bridge, dtype, out))


def serve_reward(
    rewards: Positional[
        Annotated[tuple[str, ...], arg(help="Rewards by name, with a checkpoint after a colon if not the default.")]
    ],
    host: Annotated[str, arg(help="Address to listen on; 0.0.0.0 takes all, which needs a token.")] = "127.0.0.1",
    port: Annotated[int, arg(help="Port to listen on.")] = 8000,
    workers: Annotated[int, arg(help="Processes, each with models of its own.")] = 1,
    limits: Annotated[ServeConfig, Flat] = ServeConfig(),  # noqa: B008 (frozen)
) -> None:
    """Serve rewards over HTTP. The bearer token that clients must have is read from UNISON_REWARD_TOKEN."""
    try:
        from unison.rewards.remote.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"serve-reward needs {error.name}, not installed: pip install 'unison[serve]'") from error
    serve(rewards, limits, host, port, workers)


def export(
    folder: Positional[Annotated[Path, arg(help="Folder to write.")]],
    split: Annotated[Literal["train", "eval"], arg(help="Side of the split.")] = "train",
    count: Annotated[int, arg(help="Items.")] = 1000,
    questions: Annotated[
        Literal["open_ended", "multiple_choice", "mixed"], arg(help="Form of the questions.")
    ] = "mixed",
    seed: Annotated[int, arg(help="Seed of the items.")] = 0,
) -> None:
    """Write the embedded world as JSONL and images with the column names of the CoRL data sets."""
    from unison.data.tables import export as write
    from unison.data.world import WorldItems

    print(write(WorldItems(split, questions, "", seed, count), folder, count))


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


def recipes(words: Sequence[str]) -> None:
    """`recipes`"""
    from rich.console import Console
    from rich.table import Table

    from unison.recipes import RECIPES, algorithms, summary
    from unison.rewards import REWARDS
    from unison.scenarios import SCENARIOS

    console = Console()
    listed = (("recipe", RECIPES, summary), ("algorithm", algorithms.ALGORITHMS, algorithms.summary))
    for head, names, told in listed:
        table = Table(head, "what it does")
        for name in names:
            table.add_row(name, told(name))
        console.print(table)
    console.print("scenarios: " + "; ".join(f"{name} ({s.summary})" for name, s in SCENARIOS.items()))
    console.print(f"rewards: {', '.join(REWARDS)}; any of them on a server: remote:http://host:port/<reward>")


def report(words: Sequence[str]) -> None:
    """`report <run>`"""
    if len(words) != 1:
        raise ValueError("report takes one run folder: unison report <run>")
    from unison.reports.page import write_report

    print(write_report(Path(words[0])))


TOOLS: dict[str, Callable[..., Any]] = {
    "sample draw": draw,
    "sample ask": ask,
    "merge": merge,
    "join": join,
    "serve-reward": serve_reward,
    "export": export,
}
"""Verbs whose options are the parameters of a function."""
