"""The dry run: is the configuration sound, does the data have the columns, will it fit. Nothing is downloaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from unison import scenarios
from unison.config import PolicyConfig, RunConfig
from unison.data import StreamItems, TableItems, open_items
from unison.objectives import require_states
from unison.policies import family_of, locate
from unison.policies.diffusion import at_once
from unison.policies.masked import POSITIONS_PER_CHUNK
from unison.policies.tokens import LOGITS_PER_CHUNK
from unison.rewards import load_rewards
from unison.rows import COLUMNS

if TYPE_CHECKING:
    from unison.policies.shapes import Denoising, Sizes

GIB = 2**30
FLOAT = {"float32": 4, "bfloat16": 2}


def dry_run(config: RunConfig) -> None:
    """Checks everything that can be checked without weights and prints the plan.

    Raises:
        ValueError: what would have stopped the run.
    """
    console = Console()
    scenario = scenarios.find(config.scenario.name)
    require_states(config, scenario.verbs)
    load_rewards([*config.rewards, *config.evaluation.rewards], config.remote)
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


def sizes_of(config: PolicyConfig) -> Sizes:
    """Sizes of the checkpoint: of a local folder, or of a published shape.

    Raises:
        ValueError: neither is at hand.
    """
    from unison.policies.shapes import LOCAL, PUBLISHED

    if config.path in PUBLISHED:
        return PUBLISHED[config.path].sizes()
    folder = Path(locate(config.path)).expanduser()
    if not folder.is_dir():
        raise ValueError(
            f"policy.path = {config.path!r}: a dry run downloads nothing; shapes are known of {', '.join(PUBLISHED)} "
            "and for local folders"
        )
    family = family_of(str(folder))
    if family not in LOCAL:
        raise ValueError(
            f"policy.path = {config.path!r}: a dry run knows the memory of {', '.join(LOCAL)}, not of {family!r}; try "
            "the run itself with --optim.steps 1"
        )
    return LOCAL[family](folder)


def estimate_memory(config: RunConfig) -> dict[str, float]:
    """Bytes of one process by purpose, from the shapes alone.

    Activations count the layer inputs and inner states that the backward pass keeps for one micro-batch; the estimate
    leaves out allocator overhead.
    """
    model = sizes_of(config.policy)
    weights, copy = _weights(config.policy, model)
    kept = config.needs_reference and (not config.policy.lora_rank or config.objective.reference_decay < 1)
    sizes: dict[str, float] = {
        "weights": weights,
        "gradients (and their copy for per-modality norms)": copy * (2 if config.optim.modality_grad_norms else 1),
        "AdamW states": 2 * copy,
        "reference": copy if kept else 0,
        "keys and values of a rollout": _cache_size(config, model),
        "activations of a micro-batch": _activation_size(config, model),
        "drawings differentiated through": _relaxed_size(config, model),
        "drawings in the autoencoder": _painted_size(config, model),
    }
    return sizes | {"sum": sum(sizes.values())}


def _weights(config: PolicyConfig, model: Sizes) -> tuple[float, float]:
    """Bytes of all weights, and of those that are trained."""
    frozen = trained = 0.0
    for name, parameter in model.network.named_parameters():
        size = FLOAT["float32" if _matches(model.exact, name) else config.dtype] * parameter.numel()
        if config.lora_rank or _matches((*config.frozen, *model.fixed), name):
            frozen += size
        else:
            trained += size
    if config.lora_rank:
        trained = float(FLOAT["float32"] * _adapter_size(model.network, config))  # whatever the other weights' type
    return frozen + trained, trained


def _matches(patterns: tuple[str, ...], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _adapter_size(network: torch.nn.Module, config: PolicyConfig) -> int:
    modules = [m for n, m in network.named_modules() if re.fullmatch(config.lora_targets, n)]
    if not modules:
        raise ValueError(f"policy.lora_targets = {config.lora_targets!r} matches no module of {config.path}")
    return sum(config.lora_rank * sum(m.weight.shape) for m in modules)  # type: ignore[union-attr,arg-type]


PROMPT = 64
"""Positions allowed for a prompt or a question."""


def _trajectories(config: RunConfig, items: int) -> int:
    return min(items, config.optim.items_per_step) * config.scenario.group_size


def _branches(guided: bool) -> int:
    return 2 if guided else 1


def _answering(config: RunConfig, model: Sizes) -> int:
    """Positions of a question, about a picture if it may be, and its reply."""
    seen = model.image_tokens if scenarios.find(config.scenario.name).reads else 0
    return seen + PROMPT + config.scenario.text.max_tokens


def _cache_size(config: RunConfig, model: Sizes) -> float:
    """Keys and values of what is rolled out at once: of drawings token by token, or of replies about drawings where
    drawing keeps those of prompts alone."""
    rows = _trajectories(config, config.optim.rollout_items or config.optim.items_per_step)
    if model.masked or model.denoising:
        positions = rows * _answering(config, model)
    else:
        positions = rows * _branches(config.scenario.image.guidance != 1) * (model.image_tokens + PROMPT)
    return 2.0 * positions * model.layers * model.width * FLOAT[config.policy.compute_dtype]


def _activation_size(config: RunConfig, model: Sizes) -> float:
    rows = _trajectories(config, config.optim.micro_batch_items)
    if model.denoising:
        return max(_replies_size(config, model, rows), _denoised_size(config, model, model.denoising, rows))
    if model.masked:
        positions = max(_canvas_positions(config, model, rows), rows * _answering(config, model))
    else:
        positions = rows * _branches(config.scenario.image.guidance != 1) * (model.image_tokens + PROMPT)
    return float(positions * model.layers * model.kept * FLOAT[config.policy.compute_dtype])


def _replies_size(config: RunConfig, model: Sizes, rows: int) -> float:
    """Bytes that scoring replies keeps; none where no reply is scored."""
    if "write" not in scenarios.find(config.scenario.name).verbs:
        return 0.0
    return float(rows * _answering(config, model) * model.layers * model.kept * FLOAT[config.policy.compute_dtype])


def _denoised_size(config: RunConfig, model: Sizes, expert: Denoising, rows: int) -> float:
    """Bytes that scoring drawings by denoising keeps: what language model and connector say of each prompt, which
    siblings share at first and not after turns of their own, and the states of one pass."""
    verbs = scenarios.find(config.scenario.name).verbs
    if "draw" not in verbs and "edit" not in verbs:
        return 0.0
    guided = config.scenario.image.scores_guided and config.objective.name != "sft"
    edits, thought = "edit" in verbs, config.scenario.text.max_tokens if "write" in verbs else 0
    prompts = rows // config.scenario.group_size + (0 if config.scenario.name == "t2i" else rows)
    # the branch that sees the source alone is each prompt's own; that which sees nothing is there once
    asked = prompts * (1 + (edits and guided)) + (guided and not edits)
    read = (PROMPT + thought + edits * expert.source_tokens + expert.queries) * model.layers * model.kept
    kept = asked * (read + expert.connected) + _states(config, rows, guided, edits) * expert.state
    return float(kept * FLOAT[config.policy.compute_dtype])


def _states(config: RunConfig, rows: int, guided: bool, edits: bool) -> int:
    """Noisy states, of all branches of guidance, that go through a diffusion transformer in one pass."""
    image = config.scenario.image
    if config.objective.name == "sft":  # a given drawing is one state of itself, without guidance
        return rows * (1 + edits)
    steps = len(image.noisy_steps) or min(config.optim.scored_rounds or image.steps, image.steps)
    return min(rows * steps, config.policy.states_per_pass or rows * steps) * (
        _branches(guided) + (edits and image.source_guidance != 1)
    )


def _painted_size(config: RunConfig, model: Sizes) -> float:
    """Bytes of the widest layers of an autoencoder, in float32, for the drawings that it paints at once."""
    if model.denoising is None:
        return 0.0
    rows = _trajectories(config, config.optim.rollout_items or config.optim.items_per_step)
    count = min(rows, at_once(model.denoising.pixels))
    return float(count * model.denoising.pixels * model.denoising.pixel * FLOAT["float32"])


def _canvas_positions(config: RunConfig, model: Sizes, rows: int) -> int:
    """Positions that are scored at once of a drawing's rounds; none where drawings are not scored."""
    if scenarios.find(config.scenario.name).relaxes:
        return 0
    image, optim = config.scenario.image, config.optim
    rounds = min(optim.scored_rounds or image.rounds, image.rounds) if optim.scoring == "rounds" else 1
    whole = rows * rounds * _branches(image.scores_guided) * model.image_tokens
    return min(whole, max(POSITIONS_PER_CHUNK, model.image_tokens))


def _relaxed_size(config: RunConfig, model: Sizes) -> float:
    """Bytes that the backward pass through a micro-batch's drawings keeps: another pass of the decoder with its noise,
    what paints the drawings and sees them, and a chunk of logits while it is recomputed."""
    if not scenarios.find(config.scenario.name).relaxes:
        return 0.0
    count = _trajectories(config, config.optim.micro_batch_items)
    tokens, branches = model.image_tokens, _branches(config.scenario.image.scores_guided)
    noise = FLOAT["float32"] * count * tokens * model.codes
    drawn = branches * tokens * model.layers * model.kept
    size = FLOAT[config.policy.compute_dtype]
    return noise + count * size * (model.painted + drawn) + 5 * FLOAT["float32"] * LOGITS_PER_CHUNK
