"""Show-o's network: a Phi decoder over one vocabulary of words and image codes, and the image tokenizer beside it.

The decoder is `transformers`' own Phi with a norm on queries and keys, which computes exactly what the published one
does. Two things would change its numbers silently and are seen to here: attention must be scaled dot-product attention,
since bool masks mean something else to the eager one, and the rotary frequencies must stay in float32 when the weights
do not. Weights have the published names (`showo.*`, `mm_projector.*`).

Source: showlab/Show-o (arXiv 2408.12528), commit 45a5a2d.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PhiConfig, PhiForCausalLM
from transformers.models.phi.modeling_phi import PhiRotaryEmbedding

from unison.hub import fetch
from unison.policies.checkpoint_files import compare, find_files, read_fields, read_headers, read_state
from unison.policies.showo import magvit
from unison.policies.showo.layout import SPECIAL
from unison.policies.showo.magvit import Magvit, MagvitConfig

log = logging.getLogger(__name__)

IMAGE_TOKENIZER = "showlab/magvitv2"
"""Where a published checkpoint's image tokenizer is; one that Unison saved brings its own."""
CLIP = "openai/clip-vit-large-patch14-336"
"""The vision tower of the checkpoints that read images through CLIP."""
DROPPED = r"showo\..+\.rotary_emb\.(inv_freq|cos_cached|sin_cached)"
"""Constants that older `transformers` wrote into checkpoints."""


@dataclass(frozen=True)
class PhiSizes:
    """Sizes of the decoder, the defaults being those of microsoft/phi-1_5: published configurations only name it."""

    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 24
    num_attention_heads: int = 32
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02


@dataclass(frozen=True)
class ShowOConfig:
    """A checkpoint's config.json. The first fields are the published ones, the others say what those leave open."""

    w_clip_vit: bool
    """Images are read through CLIP and a projector, not as tokens."""
    llm_vocab_size: int
    """Entries of the text tokenizer."""
    codebook_size: int
    """Codes of the image tokenizer."""
    num_vq_tokens: int
    """Tokens of a drawing, a square."""
    llm_model_path: str = "microsoft/phi-1_5"
    """Where the text tokenizer is, if not beside the weights."""
    max_seq_length: int = 128
    """Longest text part of a drawing; published configurations keep it elsewhere."""
    phi: PhiSizes = PhiSizes()
    """Sizes of the decoder."""

    @property
    def vocab_size(self) -> int:
        """Words, special tokens, image codes and the mask token."""
        return self.llm_vocab_size + len(SPECIAL) + self.codebook_size + 1

    def phi_config(self) -> PhiConfig:
        """The decoder's `transformers` configuration."""
        config = PhiConfig(
            **asdict(self.phi),
            vocab_size=self.vocab_size,
            qk_layernorm=True,  # the published class forces it on, whatever its configuration says
            tie_word_embeddings=False,
        )
        config._attn_implementation = "sdpa"
        return config


def read_config(folder: Path) -> ShowOConfig:
    """The configuration in the folder's config.json, published or Unison's own.

    Raises:
        ValueError: a field is missing, or the vocabulary does not add up.
    """
    raw = json.loads((folder / "config.json").read_text())
    config = read_fields(
        ShowOConfig, {name: value for name, value in raw.items() if value not in (None, "")}, "config.json"
    )
    if raw.get("vocab_size", config.vocab_size) != config.vocab_size:
        raise ValueError(
            f"config.json vocab_size = {raw['vocab_size']}: {config.llm_vocab_size} words, {len(SPECIAL)} special "
            f"tokens, {config.codebook_size} codes and a mask token make {config.vocab_size}"
        )
    return config


class ShowONetwork(nn.Module):
    """The decoder, the image tokenizer, and where images are read through CLIP its tower and the projector."""

    def __init__(
        self, config: ShowOConfig, image_tokenizer: MagvitConfig, vision: CLIPVisionConfig | None = None
    ) -> None:
        super().__init__()
        if config.w_clip_vit != (vision is not None):
            raise ValueError(f"w_clip_vit = {config.w_clip_vit}: a CLIP tower is given if and only if it is true")
        if image_tokenizer.codes != config.codebook_size:
            raise ValueError(f"codebook_size = {config.codebook_size}: the image tokenizer has {image_tokenizer.codes}")
        self.config = config
        self.showo = PhiForCausalLM(config.phi_config())
        self.image_tokenizer = Magvit(image_tokenizer)
        self.vision = None if vision is None else CLIPVisionModel(vision)
        self.mm_projector = None if vision is None else projector(vision.hidden_size, config.phi.hidden_size)

    @property
    def first_image(self) -> int:
        """Id of image code 0."""
        return self.config.llm_vocab_size + len(SPECIAL)

    def embed_image(self, codes: Tensor) -> Tensor:
        """[..., N] codes, or the number after the last for a masked position -> [..., N, D]"""
        return self.showo.model.embed_tokens(codes + self.first_image)

    def image_head(self, states: Tensor) -> Tensor:
        """Logits of the image codes alone. [..., D] -> [..., K]"""
        head, codes = self.showo.lm_head, slice(self.first_image, self.first_image + self.config.codebook_size)
        if type(head) is not nn.Linear:  # wrapped by adapters
            return head(states)[..., codes]
        return F.linear(states, head.weight[codes], head.bias[codes])

    def clip_features(self, pixels: Tensor) -> Tensor:
        """Images as the decoder reads them through CLIP. [B, 3, H, W] -> [B, patches, D]

        The states before the tower's last layer, without the class token.
        """
        assert self.vision is not None
        assert self.mm_projector is not None
        states = self.vision(pixels, output_hidden_states=True).hidden_states[-2]
        return self.mm_projector(states[:, 1:])


def projector(vision_width: int, width: int) -> nn.Sequential:
    """From CLIP's states to the decoder's embeddings."""
    return nn.Sequential(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, width))


# -- reading and writing ---------------------------------------------------------------------------------------------


def read_network(path: str, dtype: torch.dtype) -> ShowONetwork:
    """Reads a checkpoint, published or Unison's own, with every weight accounted for before any is read.

    A published one consists of three: the decoder in `path`, and the image tokenizer and the CLIP tower under their own
    ids. One that Unison saved has them in the folders `image_tokenizer` and `vision`; so may a local copy.

    Raises:
        ValueError: pickled weights; weights missing, unexpected or of the wrong shape, every one named; a
            configuration that does not fit.
    """
    folder = fetch(path)
    config = read_config(folder)
    tokenizer_folder = _part(folder, "image_tokenizer", IMAGE_TOKENIZER)
    tower = _part(folder, "vision", CLIP) if config.w_clip_vit else None
    vision = None if tower is None else CLIPVisionConfig.from_pretrained(tower)
    with torch.device("meta"):
        network = ShowONetwork(config, read_magvit_config(tokenizer_folder), vision)
    _fill(network, {"showo.", "mm_projector."}, folder, dtype)
    _fill(network.image_tokenizer, {""}, tokenizer_folder, torch.float32)  # rounding would flip signs
    if tower is not None:
        network.vision = CLIPVisionModel.from_pretrained(tower, dtype=dtype)
    # constants that no checkpoint holds; in float32, for rounded frequencies turn far positions by visibly other angles
    network.showo.model.rotary_emb = PhiRotaryEmbedding(network.showo.config)
    return network.eval()


def read_magvit_config(folder: Path) -> MagvitConfig:
    """Sizes of an image tokenizer that Unison saved; the published ones otherwise."""
    file = folder / "config.json"
    raw = json.loads(file.read_text()) if file.is_file() else {}
    if "encoder_multipliers" not in raw:
        return magvit.PUBLISHED
    return read_fields(MagvitConfig, raw, "config.json")


def write_network(network: ShowONetwork, folder: Path) -> None:
    """Writes what `read_network` reads; the decoder's file is one that the published code can load as well."""
    folder.mkdir(parents=True, exist_ok=True)
    config = network.config
    extra = {"model_type": "showo", "vocab_size": config.vocab_size, "mask_token_id": config.vocab_size - 1}
    (folder / "config.json").write_text(json.dumps(extra | asdict(config), indent=2))
    state = network.state_dict()
    own = {name: weight for name, weight in state.items() if name.startswith(("showo.", "mm_projector."))}
    save_file(_contiguous(own), folder / "model.safetensors", {"format": "pt"})
    part = folder / "image_tokenizer"
    part.mkdir(exist_ok=True)
    sizes = {"model_type": "magvitv2"} | asdict(network.image_tokenizer.config)
    (part / "config.json").write_text(json.dumps(sizes, indent=2))
    save_file(_contiguous(network.image_tokenizer.state_dict()), part / "model.safetensors", {"format": "pt"})
    if network.vision is not None:
        network.vision.save_pretrained(folder / "vision")


def _part(folder: Path, name: str, elsewhere: str) -> Path:
    return folder / name if (folder / name).is_dir() else fetch(elsewhere)


def _fill(network: nn.Module, prefixes: set[str], folder: Path, dtype: torch.dtype) -> None:
    """Gives the network's weights of these prefixes the values in the folder."""
    wanted = {name: weight for name, weight in network.state_dict().items() if name.startswith(tuple(prefixes))}
    files = find_files(folder)
    report = compare(read_headers(files), wanted, DROPPED)
    if report:
        raise ValueError(f"the weights in {folder} do not make a Show-o of its config.json:\n{report}")
    if report.dropped:
        log.info("%s: weights that Show-o does not use were dropped: %s", folder, ", ".join(report.dropped))
    state = read_state(files, report.dropped)
    state = {name: x.to(dtype) if x.is_floating_point() else x for name, x in state.items()}
    network.load_state_dict(state, strict=False, assign=True)


def _contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.contiguous() for name, weight in state.items()}
