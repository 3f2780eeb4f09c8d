"""Pictures as DeepSeek's own program takes them: the size they are read in, and the codes that they become.

`transformers`' classes differ in both: its image processor rounds sizes, its quantiser takes the nearest of raw rows.
"""

from __future__ import annotations

from typing import Any

from einops import rearrange
from torch import Tensor
from torch.nn import functional as F


def codes_of(vq: Any, pixels: Tensor) -> Tensor:
    """Codes of pictures [N, 3, H, W]: the codebook's row with the largest cosine to each latent. [N, L]

    As decoding normalises the rows, their norms mean nothing; cosines are taken in float32.

    Source: `VectorQuantizer` of deepseek-ai/Janus (janus/models/vq_model.py), `l2_norm`.
    """
    latents = rearrange(vq.quant_conv(vq.encoder(pixels)), "n e h w -> n (h w) e")
    rows = F.normalize(vq.quantize.embedding.weight.float(), dim=-1)  # [K, E]
    return (F.normalize(latents.float(), dim=-1) @ rows.T).argmax(-1)
