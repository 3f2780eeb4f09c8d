"""Show-o's one vocabulary, its sequences, and who may attend to whom.

Ids, in order: the words of the text tokenizer, ten special tokens, the codes of the image tokenizer, the mask token. In
the sequences below `image` is a list of ids (not of codes), and `eot` also opens a text, as upstream.

    drawing    [pad ... t2i eot text eot] soi image eoi        text part of M + 1 ids, padded on the left
    answering  mmu soi image eoi eot text                      the reply follows
    caption    mmu soi image eoi [eot text eot ... pad]        text part of M ids, padded on the right
    text       [eot text eot ... pad]                          padded on the right

Attention is causal but for the image of a drawing, whose positions (soi and eoi too) attend to one another and to the
prompt, and the image of a question, which every position may attend to. Masks are bool, True where a row may attend to
a column. The network is to be run with scaled dot-product attention: `transformers`' eager attention *adds* a bool mask
as zeros and ones.

The policy never builds the whole-sequence forms: padding changes nothing but the positions, the prompt of a drawing
never sees the canvas, and an image never sees the question, so both are computed once and kept (`masked.py`,
`causal.py`). The whole forms are here as the published network's own input, which those must agree with.

Source: golden numbers of showlab/Show-o, commit 45a5a2d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPECIAL = ("[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>")
"""Special tokens in the order of their ids, which start after the words. Published comments list the pad last; it is
first."""

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Stands between mmu and soi where the image is read through CLIP (the LLaVA prompt that Show-o was tuned with)."""

IGNORED = -100
"""Label of a position that is not predicted."""


@dataclass(frozen=True)
class Layout:
    """The ids and lengths of one checkpoint."""

    words: int
    """Entries of the text tokenizer."""
    codes: int
    """Codes of the image tokenizer."""
    image_tokens: int
    """Tokens of an image, N."""
    text_tokens: int
    """Longest text part, M."""
    eot: int
    """End-of-text id; it also opens a text."""

    @property
    def pad(self) -> int:
        return self.special("[PAD]")

    @property
    def soi(self) -> int:
        return self.special("<|soi|>")

    @property
    def eoi(self) -> int:
        return self.special("<|eoi|>")

    @property
    def first_image(self) -> int:
        """Id of image code 0."""
        return self.words + len(SPECIAL)

    @property
    def mask(self) -> int:
        """Id of a position of the canvas that is not decided: the one after the last code's."""
        return self.first_image + self.codes

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding and of the output head."""
        return self.mask + 1

    def special(self, name: str) -> int:
        """Id of a special token."""
        return self.words + SPECIAL.index(name)

    # -- sequences -----------------------------------------------------------------------------------------------

    def prompt(self, text: Sequence[int]) -> list[int]:
        """The text part of a drawing without padding, at most M + 1 ids. No text makes the unconditional prompt."""
        ids = [self.special("<|t2i|>"), *self._opened(text), self.eot]
        return ids if len(ids) <= self.text_tokens + 1 else [*ids[: self.text_tokens], self.eot]

    def drawing(self, text: Sequence[int], image: Sequence[int]) -> list[int]:
        """[M + N + 3]"""
        prompt = self.prompt(text)
        return [*[self.pad] * (self.text_tokens + 1 - len(prompt)), *prompt, self.soi, *image, self.eoi]

    def picture(self, image: Sequence[int]) -> list[int]:
        """What a question about an image starts with. [N + 3]"""
        return [self.special("<|mmu|>"), self.soi, *image, self.eoi]

    def answering(self, image: Sequence[int], text: Sequence[int]) -> list[int]:
        """A question about an image, up to where the reply starts."""
        return [*self.picture(image), *self._opened(text)]

    def caption(self, image: Sequence[int], text: Sequence[int]) -> list[int]:
        """An image and its description. [N + M + 3]"""
        ids = [*self._opened(text), self.eot]
        if len(ids) > self.text_tokens:
            ids = [*ids[: self.text_tokens - 1], self.eot]
        return [*self.picture(image), *self._padded(ids, self.text_tokens)]

    def text(self, text: Sequence[int], length: int) -> list[int]:
        """Text alone, cut (without an end-of-text) or padded to a length."""
        return self._padded([*self._opened(text), self.eot][:length], length)

    def _opened(self, text: Sequence[int]) -> list[int]:
        return [*text] if text and text[0] == self.eot else [self.eot, *text]

    def _padded(self, ids: Sequence[int], length: int) -> list[int]:
        return [*ids, *[self.pad] * (length - len(ids))]

    # -- attention -----------------------------------------------------------------------------------------------

    def drawing_mask(self, ids: Tensor) -> Tensor:
        """Who attends to whom in drawings. [B, S] -> [B, S, S]

        Pads are hidden from everything after them and see one another causally, so that no row is empty.
        """
        at = torch.arange(ids.shape[1], device=ids.device)
        image = (ids == self.soi).cumsum(1).bool()  # [B, S] from soi on; nothing follows eoi
        pads = ids == self.pad
        before = at < pads.sum(1, keepdim=True)  # pads are on the left
        allowed = (at[:, None] >= at) | image[:, :, None]
        return allowed & ~(pads[:, None, :] & ~before[:, :, None])

    def answering_mask(self, ids: Tensor) -> Tensor:
        """Who attends to whom in answers and captions: everyone sees the image. [B, S] -> [B, S, S]"""
        ends = (ids == self.eoi).int().argmax(1, keepdim=True)
        return causal_mask(torch.arange(ids.shape[1], device=ids.device) <= ends)


def causal_mask(open_to_all: Tensor) -> Tensor:
    """Causal attention with columns that every row may attend to. [..., S] bool -> [..., S, S]"""
    at = torch.arange(open_to_all.shape[-1], device=open_to_all.device)
    return (at[:, None] >= at) | open_to_all[..., None, :]
