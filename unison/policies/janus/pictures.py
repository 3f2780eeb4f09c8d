"""Pictures as DeepSeek's own program takes them: the size they are read in, and the codes that they become.

`transformers`' classes differ in both: its image processor rounds sizes, its quantiser takes the nearest of raw rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from transformers.image_transforms import resize
from transformers.image_utils import ChannelDimension, PILImageResampling, SizeDict
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

FIRST = ChannelDimension.FIRST


class Pictures(JanusImageProcessorPil):
    """`transformers`' image processor, but sizes are cut to whole pixels; it is saved as that one.

    Source: `VLMImageProcessor.resize` of deepseek-ai/Janus (janus/models/image_processing_vlm.py).
    """

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        min_size: int,
        resample: PILImageResampling | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """The longest side becomes `size`, the other one follows, rounded down, and is at least `min_size`.
        [C, H, W] -> [C, h, w]"""
        assert size.height is not None
        assert size.height == size.width, f"pictures are padded to squares, got {size}"
        longest = max(image.shape[-2:])
        height, width = (max(int(side / longest * size.height), min_size) for side in image.shape[-2:])
        return resize(image, (height, width), resample or self.resample, data_format=FIRST, input_data_format=FIRST)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"image_processor_type": JanusImageProcessorPil.__name__}


def codes_of(vq: Any, pixels: Tensor) -> Tensor:
    """Codes of pictures [N, 3, H, W]: the codebook's row with the largest cosine to each latent. [N, L]

    As decoding normalises the rows, their norms mean nothing; cosines are taken in float32.

    Source: `VectorQuantizer` of deepseek-ai/Janus (janus/models/vq_model.py), `l2_norm`.
    """
    latents = rearrange(vq.quant_conv(vq.encoder(pixels)), "n e h w -> n (h w) e")
    rows = F.normalize(vq.quantize.embedding.weight.float(), dim=-1)  # [K, E]
    return (F.normalize(latents.float(), dim=-1) @ rows.T).argmax(-1)
