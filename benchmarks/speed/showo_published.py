"""Show-o as the published program runs it: whole sequences, padding and all, in one pass. What Unison is measured by.

    drawing    [pad ... t2i eot text eot] soi image eoi        text part of M + 1 ids, padded on the left
    answering  mmu soi image eoi eot text                      the reply follows
    caption    mmu soi image eoi [eot text eot ... pad]        text part of M ids, padded on the right
    text       [eot text eot ... pad]                          padded on the right

Attention is causal but for the image of a drawing, whose positions (soi and eoi too) attend to one another and to the
prompt, and the image of a question, which every position may attend to. Masks are bool, True where a row may attend to
a column. In sequences `image` is a list of ids, not of codes.

Source: golden numbers of showlab/Show-o, commit 45a5a2d.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from unison.policies.showo.layout import Layout
from unison.policies.showo.network import ShowONetwork
from unison.policies.showo.policy import ShowO

IGNORED = -100
"""Label of a position that is not predicted."""


def drawing(layout: Layout, text: Sequence[int], image: Sequence[int]) -> list[int]:
    """[M + N + 3]"""
    prompt = layout.prompt(text)
    return [*[layout.pad] * (layout.text_tokens + 1 - len(prompt)), *prompt, layout.soi, *image, layout.eoi]


def answering(layout: Layout, image: Sequence[int], text: Sequence[int]) -> list[int]:
    """A question about an image, up to where the reply starts."""
    return [*_picture(layout, image), *layout.opened(text)]


def caption(layout: Layout, image: Sequence[int], text: Sequence[int]) -> list[int]:
    """An image and its description. [N + M + 3]"""
    ids = [*layout.opened(text), layout.eot]
    if len(ids) > layout.text_tokens:
        ids = [*ids[: layout.text_tokens - 1], layout.eot]
    return [*_picture(layout, image), *_padded(layout, ids, layout.text_tokens)]


def text_alone(layout: Layout, text: Sequence[int], length: int) -> list[int]:
    """Cut (without an end-of-text) or padded to a length."""
    return _padded(layout, [*layout.opened(text), layout.eot][:length], length)


def _picture(layout: Layout, image: Sequence[int]) -> list[int]:
    return [layout.special("<|mmu|>"), layout.soi, *image, layout.eoi]


def _padded(layout: Layout, ids: Sequence[int], length: int) -> list[int]:
    return [*ids, *[layout.pad] * (length - len(ids))]


# -- attention -------------------------------------------------------------------------------------------------------


def drawing_mask(layout: Layout, ids: Tensor) -> Tensor:
    """Who attends to whom in drawings. [B, S] -> [B, S, S]

    Pads are hidden from everything after them and see one another causally, so that no row is empty.
    """
    at = torch.arange(ids.shape[1], device=ids.device)
    image = (ids == layout.soi).cumsum(1).bool()  # [B, S] from soi on; nothing follows eoi
    pads = ids == layout.pad
    before = at < pads.sum(1, keepdim=True)  # pads are on the left
    allowed = (at[:, None] >= at) | image[:, :, None]
    return allowed & ~(pads[:, None, :] & ~before[:, :, None])


def answering_mask(layout: Layout, ids: Tensor) -> Tensor:
    """Who attends to whom in answers and captions: everyone sees the image. [B, S] -> [B, S, S]"""
    ends = (ids == layout.eoi).int().argmax(1, keepdim=True)
    return causal_mask(torch.arange(ids.shape[1], device=ids.device) <= ends)


def causal_mask(open_to_all: Tensor) -> Tensor:
    """Causal attention with columns that every row may attend to. [..., S] bool -> [..., S, S]"""
    at = torch.arange(open_to_all.shape[-1], device=open_to_all.device)
    return (at[:, None] >= at) | open_to_all[..., None, :]


# -- the network -----------------------------------------------------------------------------------------------------


def logits(network: ShowONetwork, ids: Tensor, mask: Tensor) -> Tensor:
    """The whole sequence at once. ids [B, S], bool mask [B, S, S] -> [B, S, V] float32"""
    assert network.showo.config._attn_implementation == "sdpa", "eager attention would add the bool mask"
    return network.showo(input_ids=ids, attention_mask=mask[:, None], use_cache=False).logits.float()


def canvas_logits(policy: ShowO, texts: Sequence[Sequence[int]], canvas: Tensor) -> Tensor:
    """Logits of the image codes over one canvas [N] of codes under every text. [B, N, K]"""
    layout = policy.layout
    ids = torch.tensor([drawing(layout, text, (canvas + layout.first_image).tolist()) for text in texts])
    found = logits(policy.network, ids, drawing_mask(layout, ids))
    return found[:, -layout.image_tokens - 1 : -1, layout.first_image : layout.mask]
