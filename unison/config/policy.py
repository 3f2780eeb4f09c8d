"""Which weights are trained, and how they are run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unison.config.fields import CountOrNone, Section
from unison.types import Count

Recompute = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class PolicyConfig(Section, place="policy"):
    """Which checkpoint is trained, and which part of it."""

    path: str
    """Checkpoint folder, hub id, or `assets/<name>` for a bundled tiny model."""
    frozen: tuple[str, ...] = ()
    """Regular expressions of parameter names that are not trained."""
    lora_rank: CountOrNone = 0
    """Rank of LoRA adapters on the matrices named by `lora_targets`, whose alpha is twice the rank; 0 trains the
    weights themselves."""
    lora_targets: str = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    """Regular expression of module names that get adapters."""
    lora_beside: tuple[str, ...] = ()
    """Regular expressions of parameter names that are trained in full beside adapters, unless they are frozen."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in memory; LoRA adapters stay in float32, as all that is trained must be."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Autocast type of matrix products in sampling and scoring."""
    rollout_dtype: Literal["float32", "bfloat16"] | None = None
    """Another autocast type for sampling, from whose tokens' states logits are then computed in the weights' own type;
    None takes `compute_dtype`. What sampling and scoring then disagree by is in the log as `sampling_difference`."""
    compile_decode: bool = False
    """Sample tokens by a compiled step of static shapes, a CUDA graph on a GPU: pays where launching kernels takes
    longer than what they compute. On the CPU the step that is made for it is faster."""
    rows_writing: CountOrNone = 0
    """Texts that are written at a time: finished ones make room for those that wait. 0 takes all of a rollout, until
    the longest is finished; the texts are the same."""
    attention: Literal["sdpa", "flex"] = "sdpa"
    """What scores tokens: scaled dot-product attention over rows that each have a copy of their prefix's keys and
    values, or FlexAttention over one packed sequence with each prefix once (a GPU and Janus alone)."""
    gradient_checkpointing: Recompute = "auto"
    """Whether scoring of tokens keeps the inputs of the decoder's layers alone and computes the rest once more in the
    backward pass; "auto" does where the rest of one pass is 0.5 GiB or more."""
    states_per_pass: CountOrNone = 0
    """Noisy states that the diffusion transformer scores in one pass; those of several passes are computed once more in
    the backward pass, which bounds memory. 0 takes all at once."""


@dataclass(frozen=True)
class JoinConfig(Section):
    """What joins a language model and a diffusion model; the defaults are UniRL-Zero's."""

    queries: Count = 256
    """Learnable queries of each set."""
    layers: Count = 12
    """Layers of the connector."""
    heads: Count = 8
    """Its attention heads."""
    feed_forward: CountOrNone = 0
    """Width of its feed-forward layers; 0 takes the language model's."""
    side: CountOrNone = 0
    """Side of a drawing's latent; 0 takes the diffusion transformer's."""
    source_side: Count = 672
    """Pixels of the square that the vision tower sees of an edit's source."""
    seed: int = 0
    """Seed of the new weights."""
