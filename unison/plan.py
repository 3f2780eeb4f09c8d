"""The dry run: is the configuration sound, does the data have the columns, will it fit. Nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from unison import scenarios
from unison.config import PolicyConfig, RunConfig
from unison.data import StreamItems, TableItems, open_items
from unison.policies import family_of, locate
from unison.policies.tokens import LOGITS_PER_CHUNK
from unison.rewards import load_rewards
from unison.rows import COLUMNS

GIB = 2**30
FLOAT = {"float32": 4, "bfloat16": 2}


def dry_run(config: RunConfig) -> None:
    """Checks everything that can be checked without weights and prints the plan.

    Raises:
        ValueError: what would have stopped the run.
    """
    console = Console()
    scenario = scenarios.find(config.scenario.name)
    load_rewards([*config.rewards, *config.evaluation.rewards])
    console.print(f"recipe {config.recipe}: scenario {config.scenario.name} ({scenario.summary})")
    console.print(
        f"{config.optim.items_per_step} items x {config.scenario.group_size} trajectories a step, "
        f"{config.optim.steps} steps, rewards {config.rewards}"
    )
    console.print(f"training data: {_check_data(config, scenario.fields)}")
    table = Table("memory of one process", "GiB")
    for name, size in estimate_memory(config).items():
        table.add_row(name, f"{size / GIB:.2f}")
    console.print(table)


def _check_data(config: RunConfig, fields: tuple[str, ...]) -> str:
    source = config.data.train
    columns = {name: config.data.columns.get(name, COLUMNS[name]) for name in fields}
    if source != "world" and not Path(source).exists() and source.count("/") == 1 and not source.startswith("."):
        wanted = ", ".join(f"{column} ({name})" for name, column in columns.items())
        return f"{source} on the hub, not opened in a dry run; columns it must have: {wanted}"
    items = open_items(source, "train", config.data, config.seed, config.optim.items_per_step)
    first = items[0]
    missing = [name for name in fields if not getattr(first, name)]
    if missing:
        raise ValueError(
            f"data.train = {source!r}: items have no {', '.join(missing)}; columns read: "
            + ", ".join(f"{name} from {columns[name]!r}" for name in missing)
        )
    if isinstance(items, StreamItems):
        return f"{source}, streamed, first row readable"
    bad = items.complaints() if isinstance(items, TableItems) else []
    if bad and not config.data.skip_bad_rows:
        raise ValueError(f"{len(bad)} of {len(items):,} rows are bad; the first: {bad[0]}")
    return f"{source}, {len(items):,} items, {len(bad)} bad rows, first one readable"


def model_config(config: PolicyConfig) -> Any:
    """The checkpoint's `transformers` configuration: local, or a published shape.

    Raises:
        ValueError: neither is at hand.
    """
    from transformers import JanusConfig

    from unison.policies.shapes import PUBLISHED

    if config.path in PUBLISHED:
        return PUBLISHED[config.path].config()
    folder = Path(locate(config.path))
    if not folder.is_dir():
        raise ValueError(
            f"policy.path = {config.path!r}: a dry run downloads nothing; shapes are known of {', '.join(PUBLISHED)} "
            "and for local folders"
        )
    match family_of(str(folder)):
        case "janus":
            return JanusConfig.from_pretrained(folder)
        case "multi_modality":
            from unison.policies.janus_deepseek import read_config

            return read_config(folder)
        case other:
            raise ValueError(
                f"policy.path = {config.path!r}: a dry run knows the memory of the Janus family alone, not of "
                f"{other!r}; try the run itself with --optim.steps 1"
            )


def estimate_memory(config: RunConfig) -> dict[str, float]:
    """Bytes of one process by purpose, from the shapes alone.

    Activations count the layer inputs and inner states that the backward pass keeps for one micro-batch; the estimate
    leaves out allocator overhead.
    """
    from transformers import JanusForConditionalGeneration

    shape = model_config(config.policy)
    with torch.device("meta"):
        network = JanusForConditionalGeneration(shape)
    trained = frozen = 0
    for name, parameter in network.named_parameters():
        if any(re.search(pattern, name) for pattern in config.policy.frozen) or config.policy.lora_rank:
            frozen += parameter.numel()
        else:
            trained += parameter.numel()
    if config.policy.lora_rank:
        trained = _adapter_size(network, config.policy)
    size = FLOAT[config.policy.dtype]
    copy = trained * (FLOAT["float32"] if config.policy.lora_rank else size)  # adapters stay in float32
    sizes: dict[str, float] = {
        "weights": size * frozen + copy,
        "gradients (and their copy for per-modality norms)": copy * (2 if config.optim.modality_grad_norms else 1),
        "AdamW states": 2 * copy,
        "reference": copy if config.needs_reference and not config.policy.lora_rank else 0,
        "keys and values while drawing": _cache_size(config, shape),
        "activations of a micro-batch": _activation_size(config, shape),
        "drawings differentiated through": _relaxed_size(config, shape),
    }
    return sizes | {"sum": sum(sizes.values())}


def _adapter_size(network: torch.nn.Module, config: PolicyConfig) -> int:
    modules = [m for n, m in network.named_modules() if re.fullmatch(config.lora_targets, n)]
    return sum(config.lora_rank * sum(m.weight.shape) for m in modules)  # type: ignore[union-attr,arg-type]


def _rows(config: RunConfig, items: int, shape: Any) -> tuple[int, int]:
    """Rows of a drawing batch with its guidance branch, and their length."""
    branches = 2 if config.scenario.image.guidance != 1 else 1
    return items * config.scenario.group_size * branches, shape.vq_config.num_patches**2 + 64


def _cache_size(config: RunConfig, shape: Any) -> float:
    text = shape.text_config
    rows, length = _rows(config, config.optim.rollout_items or config.optim.items_per_step, shape)
    return 2.0 * rows * length * text.num_hidden_layers * text.hidden_size * FLOAT[config.policy.compute_dtype]


def _activation_size(config: RunConfig, shape: Any) -> float:
    text = shape.text_config
    rows, length = _rows(config, min(config.optim.micro_batch_items, config.optim.items_per_step), shape)
    per_token = text.num_hidden_layers * (10 * text.hidden_size + 3 * text.intermediate_size)
    return float(rows * length * per_token * FLOAT[config.policy.compute_dtype])


def _relaxed_size(config: RunConfig, shape: Any) -> float:
    """Bytes that the backward pass through a micro-batch's drawings keeps: another pass of the language model with its
    noise, the layers of VQ decoder and vision encoder, and a chunk of logits while it is recomputed."""
    if not scenarios.find(config.scenario.name).relaxes:
        return 0.0
    vq, vision, image = shape.vq_config, shape.vision_config, config.scenario.image
    count = min(config.optim.micro_batch_items, config.optim.items_per_step) * config.scenario.group_size
    branches = 2 if image.scores_guided else 1
    tokens = vq.num_patches**2
    noise = FLOAT["float32"] * count * tokens * vq.num_embeddings
    size = FLOAT[config.policy.compute_dtype]
    painted = sum(
        6.0 * (vq.num_res_blocks + 1) * vq.base_channels * factor * (tokens * 4**level)
        for level, factor in enumerate(reversed(vq.channel_multiplier))
    )  # a block keeps its two convolutions', norms' and activations' inputs
    seen = tokens * vision.num_hidden_layers * 10 * vision.hidden_size
    drawn = branches * tokens * shape.text_config.num_hidden_layers
    drawn *= 10 * shape.text_config.hidden_size + 3 * shape.text_config.intermediate_size
    return noise + count * size * (painted + seen + drawn) + 5 * FLOAT["float32"] * LOGITS_PER_CHUNK
