"""What the language model of a MetaQuery reads: a context as runs of ids and pictures, in Qwen's chat format.

A turn is `<|im_start|>role`, a line break, its text and `<|im_end|>`; an image in it is the vision tower's tokens
between `<|vision_start|>` and `<|vision_end|>`. Text counts its positions one by one; the tokens of an image share one
time and have its rows and columns as height and width, and what follows counts on from the largest of all
(arXiv 2409.12191).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from unison.policies.actions import is_reply
from unison.types import Context, Hides, Latents, Noised, Part, Relaxed, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "Image | Latents | Noised"
MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")

CHAT_TEMPLATE = """
{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' and default_system -%}
{{- '<|im_start|>system\\n' + default_system + '<|im_end|>\\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{{- '<|im_start|>assistant\\n' if add_generation_prompt else '' -}}
"""
"""The same format for other programs, for tokenizers that are made here."""


@dataclass(frozen=True)
class Seen:
    """An image as the vision tower takes it."""

    patches: Tensor  # [h w, 3 T P P]
    height: int
    """Rows of tokens, after merging."""
    width: int
    """Columns of tokens."""

    def __len__(self) -> int:
        return self.height * self.width


Piece: TypeAlias = "list[int] | Picture"
Run: TypeAlias = "list[int] | Seen"


class Chat:
    """Lays out contexts for one tokenizer."""

    def __init__(self, tokenizer: Any, system_prompt: str) -> None:
        """`system_prompt` starts every chat; "" for none.

        Raises:
            ValueError: the tokenizer lacks a special token of the format, or an end-of-sentence token.
        """
        lacking = [mark for mark in MARKS if mark not in tokenizer.get_vocab()]
        if lacking or tokenizer.eos_token_id is None:
            what = ", ".join(lacking) or "an eos_token"
            raise ValueError(f"the tokenizer lacks {what}: it is not that of a Qwen2.5-VL")
        self.tokenizer = tokenizer
        self.system_prompt = system_prompt

    def pieces(self, parts: Sequence[Part]) -> list[Piece]:
        """A context's parts up to where the policy goes on: runs of ids, and pictures between them.

        Texts next to each other are joined by a line break; an earlier reply is a turn of the assistant's.
        """
        pieces: list[Piece] = []
        ids: list[int] = []
        text = f"<|im_start|>system\n{self.system_prompt}<|im_end|>\n" if self.system_prompt else ""
        for role, members in turns(parts):
            text += f"<|im_start|>{role}\n"
            for part in members:
                if isinstance(part, str):
                    text += self._checked(part)
                    continue
                if isinstance(part, Tokens):
                    ids += self.ids(text) + self.own_ids(part)
                    text = ""
                    continue
                pieces += [[*ids, *self.ids(text + "<|vision_start|>")], part]
                ids, text = [], "<|vision_end|>"
            text += "<|im_end|>\n"
        return [*pieces, ids + self.ids(text + "<|im_start|>assistant\n")]

    def ids(self, text: str) -> list[int]:
        """Ids of a text, marks of the format included."""
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def own_ids(self, reply: Tokens) -> list[int]:
        """Ids of an earlier reply without the one that ended it."""
        return [i for i in reply.ids.tolist() if i != self.tokenizer.eos_token_id]

    def _checked(self, text: str) -> str:
        for mark in MARKS:
            if mark in text:
                raise ValueError(f"text {text!r} holds {mark!r}: give images and turns as parts of the context")
        return text


def turns(parts: Sequence[Part]) -> list[tuple[str, list[str | Tokens | Picture]]]:
    """Roles with the parts of their turns; at least the user has one, be it empty.

    Raises:
        ValueError: a drawing of another family.
    """
    found: list[tuple[str, list[Any]]] = []
    for part in parts:
        if isinstance(part, Tokens) and part.modality == "image":
            raise ValueError("a drawing in tokens is of another family: this one draws in latents")
        role = "assistant" if is_reply(part) else "user"
        if role == "assistant" or not found or found[-1][0] != role:
            found.append((role, []))
        members = found[-1][1]
        if isinstance(part, str) and members and isinstance(members[-1], str):
            members[-1] += f"\n{part}"
        else:
            members.append(part)
    return found or [("user", [""])]


def source_of(context: Context) -> Picture | None:
    """The last picture or earlier drawing of a context, from which an edit starts; None where it is to draw."""
    pictures = [part for part in context.parts if not isinstance(part, str | Tokens)]
    assert not any(isinstance(part, Relaxed) for part in pictures), "a scenario asks for the ability first"
    return cast(Picture, pictures[-1]) if pictures else None


def without(parts: Sequence[Part], hides: Hides) -> list[Part]:
    """The parts of a context that are left when something is hidden."""
    text, pictures = hides in ("text", "everything"), hides in ("source", "everything")
    return [part for part in parts if not (text if isinstance(part, str | Tokens) else pictures)]


def positions(runs: Sequence[Run], more: int = 0) -> Tensor:
    """Time, height and width of every token, and of `more` that follow. [3, S]"""
    parts: list[Tensor] = []
    start = 0
    for run in [*runs, [0] * more]:
        if isinstance(run, list):
            parts.append((start + torch.arange(len(run))).expand(3, -1))
            start += len(run)
            continue
        rows, columns = torch.meshgrid(torch.arange(run.height), torch.arange(run.width), indexing="ij")
        parts.append(start + torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1))
        start += max(run.height, run.width)
    return torch.cat(parts, 1)


# -- images ----------------------------------------------------------------------------------------------------------


def see_picture(picture: Image, processor: Any) -> Seen:
    """A picture through the checkpoint's own image processor."""
    found = processor(picture, return_tensors="pt")
    _, height, width = found["image_grid_thw"][0].tolist()
    merge = processor.merge_size
    return Seen(found["pixel_values"], height // merge, width // merge)


def see_pixels(pixels: Tensor, processor: Any) -> Seen:
    """An image that never left the model, processed alike but never rounded. [3, H, W] in [0, 1]"""
    patch, merge, limits = processor.patch_size, processor.merge_size, processor.size
    rows, columns = pixels.shape[-2:]
    size = smart_resize(rows, columns, patch * merge, limits["shortest_edge"], limits["longest_edge"])
    mean, std = torch.tensor([processor.image_mean, processor.image_std], device=pixels.device).view(2, 3, 1, 1)
    normal = (resized(pixels, size) - mean) / std
    tiles = rearrange(normal, "c (h m p) (w n q) -> (h w m n) c p q", m=merge, n=merge, p=patch, q=patch)
    patches = repeat(tiles, "n c p q -> n (c t p q)", t=processor.temporal_patch_size)
    return Seen(patches, size[0] // patch // merge, size[1] // patch // merge)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, H, W] in [0, 1] -> [3, *size]"""
    if pixels.shape[-2:] == size:
        return pixels
    scaled = F.interpolate(pixels[None], size, mode="bicubic", antialias=True, align_corners=False)
    return scaled[0].clamp(0, 1)


def square(picture: Image, side: int) -> Image:
    """The middle square of a picture, scaled."""
    from PIL.Image import Resampling

    picture = picture.convert("RGB")
    if picture.size == (side, side):
        return picture
    width, height = picture.size
    short = min(width, height)
    left, top = (width - short) // 2, (height - short) // 2
    return picture.resize((side, side), Resampling.BICUBIC, (left, top, left + short, top + short))
