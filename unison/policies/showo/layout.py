"""Show-o's one vocabulary, and the prompt of a drawing.

Ids, in order: the words of the text tokenizer, ten special tokens, the codes of the image tokenizer, the mask token.
The policy never builds the published program's whole sequences (`benchmarks/speed/showo_published.py`): padding changes
nothing but the positions, the prompt of a drawing never sees the canvas, and an image never sees the question, so both
are computed once and kept (`masked.py`, `causal.py`).

Source: golden numbers of showlab/Show-o, commit 45a5a2d.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SPECIAL = ("[PAD]", "<|soi|>", "<|eoi|>", "<|sov|>", "<|eov|>", "<|t2i|>", "<|mmu|>", "<|t2v|>", "<|v2v|>", "<|lvg|>")
"""Special tokens in the order of their ids, which start after the words. Published comments list the pad last; it is
first."""

SYSTEM_PROMPT = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""Stands between mmu and soi where the image is read through CLIP (the LLaVA prompt that Show-o was tuned with)."""


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
    """End-of-text id; it also opens a text, as upstream."""

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

    def special(self, name: str) -> int:
        """Id of a special token."""
        return self.words + SPECIAL.index(name)

    def prompt(self, text: Sequence[int]) -> list[int]:
        """The text part of a drawing without padding, at most M + 1 ids. No text makes the unconditional prompt."""
        ids = [self.special("<|t2i|>"), *self.opened(text), self.eot]
        return ids if len(ids) <= self.text_tokens + 1 else [*ids[: self.text_tokens], self.eot]

    def opened(self, text: Sequence[int]) -> list[int]:
        """A text after the end-of-text that opens it, which it may have already."""
        return [*text] if text and text[0] == self.eot else [self.eot, *text]
