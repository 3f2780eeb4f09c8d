"""The command line's smaller verbs: a function each, whose parameters are its options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional

from unison.config import JoinConfig, PolicyConfig, ServeConfig

Flat = tyro.conf.arg(name="")


def draw(
    checkpoint: Positional[str],
    prompt: Positional[str],
    count: int = 8,
    guidance: float = 2.0,
    temperature: float = 1.0,
    seed: int = 0,
    zoom: int = 4,
    out: Path = Path("drawing.png"),
) -> None:
    """Draw a prompt.

    Args:
        checkpoint: Checkpoint folder, hub id or assets/<name>.
        prompt: What to draw.
        count: Drawings.
        guidance: Guidance scale (the Janus-Pro authors use 5).
        temperature: Sampling temperature.
        seed: Seed of the first drawing; the others follow.
        zoom: Enlargement of the saved sheet.
        out: PNG file, drawings side by side.
    """
    from unison.policies import load_policy
    from unison.types import Context, Sampling

    policy, settings = load_policy(PolicyConfig(checkpoint)), Sampling(temperature=temperature, guidance=guidance)
    drawings = policy.draw([Context((prompt,))] * count, settings, range(seed, seed + count))
    _save_sheet(policy.decode(drawings), zoom, out)
    print(out)


def ask(
    checkpoint: Positional[str],
    image: Positional[Path],
    question: Positional[str],
    count: int = 1,
    temperature: float = 1.0,
    max_tokens: int = 256,
    seed: int = 0,
) -> None:
    """Ask a question about a picture.

    Args:
        checkpoint: Checkpoint folder, hub id or assets/<name>.
        image: Picture file.
        question: The question.
        count: Replies.
        temperature: Sampling temperature.
        max_tokens: Longest reply.
        seed: Seed of the first reply; the others follow.
    """
    from unison.data.rows import read_image
    from unison.policies import load_policy
    from unison.types import Context, Sampling

    policy, settings = load_policy(PolicyConfig(checkpoint)), Sampling(temperature=temperature, max_tokens=max_tokens)
    context = Context((read_image(str(image), Path(".")), question))
    print("\n".join(policy.decode(policy.write([context] * count, settings, range(seed, seed + count)))))


def _save_sheet(pictures: Sequence, zoom: int, out: Path) -> None:
    from PIL import Image

    width, height = (zoom * side for side in pictures[0].size)
    sheet = Image.new("RGB", (len(pictures) * (width + 8) - 8, height), "white")
    for i, picture in enumerate(pictures):
        sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (i * (width + 8), 0))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)


def merge(
    models: Positional[tuple[str, ...]],
    out: Path,
    method: Literal["gaussian", "linear", "slerp", "ties"],
    weights: tuple[float, ...] = (),
    base: str | None = None,
    density: float = 0.2,
) -> None:
    """Merge fine-tuned checkpoints of one base into a new checkpoint, tensor by tensor.

    Args:
        models: Checkpoint folders or hub ids, in transformers format.
        out: New folder for the merged checkpoint.
        method: gaussian and ties weigh changes to --base; linear is the weighted mean; slerp takes two models.
        weights: Share of each model, summing to 1; equal shares if not given.
        base: The checkpoint that the models were tuned from.
        density: Share of each model's changes that ties keeps.
    """
    from unison.policies.merge import merge as write

    print(write(models, out, method, weights, base, density))


def join(
    language_model: Positional[str],
    diffusion: Positional[str],
    out: Path,
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    bridge: Annotated[JoinConfig, Flat] = JoinConfig(),  # noqa: B008 (frozen)
) -> None:
    """Join a Qwen2.5-VL and a flow-matching diffusion model into a metaquery checkpoint by a new, untrained bridge.

    Args:
        language_model: Folder or hub id, such as Qwen/Qwen2.5-VL-3B-Instruct.
        diffusion: Folder or hub id in diffusers format, such as Efficient-Large-Model/Sana_1600M_1024px_diffusers.
        out: New folder for the joint checkpoint.
        dtype: Type of the weights; the autoencoder stays in float32.
    """
    from unison.policies.metaquery.network import write_joint

    print(write_joint(language_model, diffusion, bridge, dtype, out))


def serve_reward(
    rewards: Positional[tuple[str, ...]],
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    limits: Annotated[ServeConfig, Flat] = ServeConfig(),  # noqa: B008 (frozen)
) -> None:
    """Serve rewards over HTTP. The bearer token that clients must have is read from UNISON_REWARD_TOKEN.

    Args:
        rewards: Rewards by name, with a checkpoint after a colon where it is not the default.
        host: Address to listen on; 0.0.0.0 takes all, which needs a token.
        port: Port to listen on.
        workers: Processes, each with models of its own.
    """
    try:
        from unison.rewards.remote.server import serve
    except ModuleNotFoundError as error:
        raise ValueError(f"serve-reward needs {error.name}, not installed: pip install 'unison[serve]'") from error
    serve(rewards, limits, host, port, workers)


def export(
    folder: Positional[Path],
    split: Literal["train", "eval"] = "train",
    count: int = 1000,
    questions: Literal["open_ended", "multiple_choice", "mixed"] = "mixed",
    seed: int = 0,
) -> None:
    """Write the embedded world as JSONL and images with the column names of the CoRL data sets.

    Args:
        folder: Folder to write.
        split: Side of the split.
        count: Items.
        questions: Form of the questions.
        seed: Seed of the items.
    """
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
