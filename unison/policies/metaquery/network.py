"""The parts of a MetaQuery and how they are joined: language model, bridge, diffusion transformer, autoencoder.

The language model reads a prompt and then a set of learnable queries; its last states there go through the bridge's
connector, a bidirectional transformer, and a linear layer, and are the context of the diffusion transformer. To edit,
the latent of the source, with some noise in it, is embedded by a copy of the transformer's own embedder and added
through a linear layer that starts at zero, so a joined model is the diffusion model that it was made from.

Sources: MetaQuery (arXiv 2504.06256); UniRL-Zero (arXiv 2510.17937), whose sizes are the defaults.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unison import hub
from unison.config import JoinConfig
from unison.policies.checkpoint_files import compare, read_fields, read_headers, read_state
from unison.policies.metaquery import diffusion

BRIDGE = "connector.safetensors"
SOURCE_NOISE = 0.2
"""Share of noise in the latent of an edit's source."""


@dataclass(frozen=True)
class MetaQueryConfig:
    """A checkpoint's own config.json; every other part has its own."""

    queries: int
    """Learnable queries of each set, one for drawing and one for editing."""
    side: int
    """Side of a drawing's latent."""
    source_side: int
    """Pixels of the square that the vision tower sees of an edit's source."""
    layers: int
    """Layers of the connector."""
    heads: int
    """Its attention heads."""
    feed_forward: int
    """Width of its feed-forward layers."""
    system_prompt: str = "You are a helpful assistant."
    """What every chat starts with; "" for nothing."""


# -- the bridge ------------------------------------------------------------------------------------------------------


class ConnectorLayer(nn.Module):
    """Attention of all to all, and a gated feed-forward layer, each after a norm."""

    def __init__(self, width: int, heads: int, feed_forward: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.gate = nn.Linear(width, feed_forward, bias=False)
        self.up = nn.Linear(width, feed_forward, bias=False)
        self.down = nn.Linear(feed_forward, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, Q, D] -> [B, Q, D]"""
        q, k, v = rearrange(self.qkv(self.attention_norm(x)), "b s (three h d) -> three b h s d", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(rearrange(mixed, "b h s d -> b s (h d)"))
        y = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Bridge(nn.Module):
    """What stands between the language model and the diffusion transformer; all that is neither's own."""

    def __init__(self, config: MetaQueryConfig, width: int, transformer: nn.Module) -> None:
        """`width` of the language model; the diffusion transformer says the others, and lends a copy of its embedder.

        Raises:
            ValueError: the connector's heads do not divide the width.
        """
        super().__init__()
        if width % config.heads:
            raise ValueError(f"connector heads = {config.heads}: must divide the language model's width {width}")
        self.queries = nn.ParameterDict(
            {kind: nn.Parameter(torch.randn(config.queries, width) * 0.02) for kind in ("draw", "edit")}
        )
        layers = (ConnectorLayer(width, config.heads, config.feed_forward) for _ in range(config.layers))
        self.connector = nn.Sequential(*layers, nn.RMSNorm(width, eps=1e-6))
        self.project = nn.Linear(width, diffusion.context_width(transformer))
        pooled = diffusion.pooled_width(transformer)
        self.pool = None if pooled is None else nn.Linear(width, pooled)
        self.source_embed = copy.deepcopy(diffusion.embedder(transformer))
        embedded = diffusion.embedding_width(transformer)
        self.source_out = nn.Linear(embedded, embedded)
        nn.init.zeros_(self.source_out.weight)
        nn.init.zeros_(self.source_out.bias)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor | None]:
        """States at the queries [B, Q, D] -> context [B, Q, W] and, where the transformer takes it, pooled [B, P]."""
        connected = self.connector(states)
        return self.project(connected), None if self.pool is None else self.pool(connected.mean(1))


class MetaQueryNetwork(nn.Module):
    """All parts. The names of weights start with `qwen`, `bridge`, `transformer` and `vae`."""

    def __init__(
        self,
        config: MetaQueryConfig,
        qwen: Qwen2_5_VLForConditionalGeneration,
        transformer: nn.Module,
        vae: nn.Module,
        scheduler: Any,
    ) -> None:
        """
        Raises:
            ValueError: the autoencoder's latents are not the transformer's, or either is of an unknown class.
        """
        super().__init__()
        self.config = config
        self.qwen = qwen
        self.transformer: Any = transformer
        self.vae: Any = vae
        self.scheduler = scheduler  # for other programs: the schedule of sampling is said with each sample
        kind = type(vae).__name__
        if kind not in diffusion.LATENT_OF:
            raise ValueError(f"the autoencoder is a {kind}; known classes: {', '.join(diffusion.LATENT_OF)}")
        wanted, given = diffusion.latent_channels(transformer), self.vae.config.latent_channels
        if wanted != given:
            raise ValueError(f"the diffusion transformer takes {wanted} latent channels, the autoencoder has {given}")
        width: int = qwen.config.text_config.hidden_size  # type: ignore[union-attr]
        self.bridge = Bridge(config, width, transformer)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """[C, h, w] of a drawing."""
        return diffusion.latent_channels(self.transformer), self.config.side, self.config.side

    @property
    def pixels(self) -> int:
        """Side of a drawing in pixels."""
        return self.config.side * diffusion.ratio(self.vae)

    def source_tokens(self, latents: Tensor, noise: Tensor) -> Tensor:
        """What an edit adds to the embedded latents. sources and noise [B, C, h, w] -> [B, positions, E]"""
        noisy = torch.lerp(latents, noise, SOURCE_NOISE).to(self.transformer.dtype)
        return self.bridge.source_out(diffusion.embed(self.transformer, self.bridge.source_embed, noisy))


# -- reading and writing ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parts:
    """A network with what turns text and pictures into its inputs."""

    network: MetaQueryNetwork
    tokenizer: Any
    image_processor: Qwen2VLImageProcessorPil


def read_parts(path: str, dtype: torch.dtype) -> Parts:
    """Reads a folder, or a hub id, that `write_parts` wrote; every weight accounted for.

    Raises:
        ValueError: a part is missing or unreadable, or its weights are not those of its configuration.
    """
    config = read_config(hub.file(path, "config.json"))
    qwen = read_language_model(path, "language_model", dtype)
    transformer, vae, scheduler = read_diffusion(path, dtype)
    network = MetaQueryNetwork(config, qwen, transformer, vae, scheduler)
    network.bridge.to(dtype)
    weights = [_read(path, BRIDGE, lambda: hub.file(path, BRIDGE))]
    report = compare(read_headers(weights), network.bridge.state_dict())
    if report:
        raise ValueError(f"the weights in {weights[0]} do not make the bridge of its config.json:\n{report}")
    network.bridge.load_state_dict({name: weight.to(dtype) for name, weight in read_state(weights).items()})
    return Parts(network.eval(), *read_processors(path, "language_model"))


def write_parts(parts: Parts, folder: Path) -> None:
    """Writes a folder whose parts `transformers` and `diffusers` load as well: language_model (with tokenizer and image
    processor), transformer, vae, scheduler."""
    network = parts.network
    folder.mkdir(parents=True, exist_ok=True)
    extra = {"model_type": "metaquery", "transformer": type(network.transformer).__name__}
    (folder / "config.json").write_text(json.dumps(extra | asdict(network.config), indent=2))
    network.qwen.save_pretrained(folder / "language_model")
    parts.tokenizer.save_pretrained(folder / "language_model")
    parts.image_processor.save_pretrained(folder / "language_model")
    network.transformer.save_pretrained(folder / "transformer")
    network.vae.save_pretrained(folder / "vae")
    network.scheduler.save_pretrained(folder / "scheduler")
    state = {name: weight.contiguous() for name, weight in network.bridge.state_dict().items()}
    save_file(state, folder / BRIDGE, {"format": "pt"})


def read_config(file: Path) -> MetaQueryConfig:
    """
    Raises:
        ValueError: a field is missing or of the wrong type.
    """
    return read_fields(MetaQueryConfig, json.loads(file.read_text()), file)


def read_language_model(path: str, part: str, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """
    Raises:
        ValueError: it is of another kind, or its weights are not those of its configuration.
    """
    kind = _json(path, f"{part}/config.json" if part else "config.json").get("model_type")
    if kind != "qwen2_5_vl":
        raise ValueError(f"{_name(path, part)}: model_type {kind!r} is not qwen2_5_vl; give a Qwen2.5-VL checkpoint")
    load: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained
    options: dict[str, Any] = {"subfolder": part, "dtype": dtype, "use_safetensors": True, "output_loading_info": True}
    return hub.whole(_name(path, part), lambda: load(path, **options))


def read_processors(path: str, part: str) -> tuple[Any, Qwen2VLImageProcessorPil]:
    """The tokenizer and the image processor of a Qwen2.5-VL checkpoint.

    Raises:
        ValueError: there are none.
    """
    tokenizer = _read(path, part, lambda: AutoTokenizer.from_pretrained(path, subfolder=part))
    return tokenizer, _read(path, part, lambda: Qwen2VLImageProcessorPil.from_pretrained(path, subfolder=part))


def read_diffusion(path: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Any]:
    """Transformer, autoencoder (in float32) and scheduler of a `diffusers` folder.

    Raises:
        ValueError: a part is missing, of an unknown class, or its weights are not those of its configuration.
    """
    transformer = _read_model(path, "transformer", diffusion.EXPERTS, dtype)
    vae = _read_model(path, "vae", diffusion.LATENT_OF, torch.float32)
    return transformer, vae, read_scheduler(path)


def read_scheduler(path: str) -> Any:
    """The flow-matching Euler scheduler with the shift that the folder's scheduler has, whichever class that is."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler as Euler

    raw = _json(path, "scheduler/scheduler_config.json")
    return Euler(shift=float(raw.get("flow_shift") or raw.get("shift") or 1.0))


def _read_model(path: str, part: str, known: Any, dtype: torch.dtype) -> nn.Module:
    import diffusers

    kind = str(_json(path, f"{part}/config.json").get("_class_name"))
    if kind not in known:
        raise ValueError(f"{_name(path, part)}: class {kind!r} is not one of {', '.join(known)}")
    options: dict[str, Any] = {"subfolder": part, "torch_dtype": dtype, "use_safetensors": True}
    options["output_loading_info"] = True
    return hub.whole(_name(path, part), lambda: getattr(diffusers, kind).from_pretrained(path, **options))


def _read(path: str, part: str, load: Callable[[], Any]) -> Any:
    return hub.read(f"{_name(path, part)}: cannot read it", load)


def _name(path: str, part: str) -> str:
    return f"{path}/{part}" if part else path


def _json(path: str, name: str) -> dict[str, Any]:
    return _read(path, name, lambda: hub.read_json(path, name))


# -- joining ---------------------------------------------------------------------------------------------------------


def join(language_model: str, diffusion_model: str, joint: JoinConfig, dtype: torch.dtype) -> Parts:
    """Joins a Qwen2.5-VL checkpoint and the folder of a flow-matching `diffusers` pipeline by a new bridge.

    Until the bridge is trained the drawings mean nothing; texts are the language model's own.

    Args:
        language_model: folder or hub id, such as Qwen/Qwen2.5-VL-3B-Instruct.
        diffusion_model: folder or hub id with transformer, vae and scheduler, such as
            Efficient-Large-Model/Sana_1600M_1024px_diffusers.

    Raises:
        ValueError: a part is missing, unreadable or of another kind, or a size does not fit.
    """
    language_model, diffusion_model = hub.locate(language_model), hub.locate(diffusion_model)
    qwen = read_language_model(language_model, "", dtype)
    tokenizer, processor = read_processors(language_model, "")
    transformer, vae, scheduler = read_diffusion(diffusion_model, dtype)
    token = processor.patch_size * processor.merge_size
    if joint.source_side % token:
        raise ValueError(f"source_side = {joint.source_side}: must be a multiple of {token}, what a vision token spans")
    torch.manual_seed(joint.seed)
    config = MetaQueryConfig(
        queries=joint.queries,
        side=joint.side or _side(transformer),
        source_side=joint.source_side,
        layers=joint.layers,
        heads=joint.heads,
        feed_forward=joint.feed_forward or qwen.config.text_config.intermediate_size,  # type: ignore[union-attr]
    )
    network = MetaQueryNetwork(config, qwen, transformer, vae, scheduler)
    network.bridge.to(dtype)
    return Parts(network.eval(), tokenizer, processor)


def _side(transformer: Any) -> int:
    side = transformer.config.get("sample_size")
    if not side:
        raise ValueError(f"side: a {type(transformer).__name__} does not say how large its latents are; give --side")
    return side


def write_joint(language_model: str, diffusion_model: str, joint: JoinConfig, dtype: str, folder: Path) -> Path:
    """Joins two checkpoints, see `join`, into a new folder.

    Raises:
        ValueError: as `join`, or the folder exists.
    """
    if folder.exists():
        raise ValueError(f"out = {str(folder)!r} exists: choose another folder")
    write_parts(join(language_model, diffusion_model, joint, getattr(torch, dtype)), folder)
    return folder
