"""Show-o: autoregressive text and masked decoding of images in one transformer over one vocabulary.

What is sampled and scored is the guided distribution u + w (c - u); Show-o's own guidance scale g, in
(1 + g) c - g u, is w - 1, so its g = 5 is `guidance=6`. A reply may hold any id of the vocabulary, image codes and
special tokens among them, as in the published program; only words are decoded.

A drawing's action is defined in `masked.py`. Drawings are kept as codes, and a drawing in a context is read as those
codes, never through pixels (unless the checkpoint reads images through CLIP). A relaxed drawing is read so too; its
gradient is that of one more pass over a canvas of it, taken through the embeddings of the codes, or through CLIP, the
resizing and the painting by straight-through rounding. Contexts are laid out so:

- drawing: the texts and earlier replies in order, as one prompt. Images are refused, for Show-o cannot edit.
- answering: the images first, wherever in the context they stand, since the part of a sequence that everyone attends to
  is at its start; then `USER: \\n... ASSISTANT:` (through CLIP without the line break) with the texts between two
  replies joined by line breaks, each earlier reply closed by end-of-text. The published program knows one image and
  one question; the rest follows from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from unison.config import PolicyConfig, ScoringConfig
from unison.hub import fetch, read
from unison.policies.actions import Sources, decode_each, encode_each, given, is_reply, tokens_of
from unison.policies.base import Policy, Target
from unison.policies.decisions import selection
from unison.policies.decisions.tokens import beside_divergence, exponentials
from unison.policies.decoding import causal, masked, refill
from unison.policies.decoding.prompts import embedded, own_states, own_tokens
from unison.policies.grouping import Kind, distinct, in_kinds, kind_of, pick, relax_alike
from unison.policies.showo import magvit
from unison.policies.showo.layout import SYSTEM_PROMPT, Layout
from unison.policies.showo.network import ShowONetwork, read_network, write_network
from unison.types import Action, Context, Latents, Noised, Relaxed, Sampling, Selected, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

Picture: TypeAlias = "Image | Tokens | Relaxed"


@dataclass(frozen=True)
class Piece:
    """A run of ids, or an image, of an answering sequence."""

    content: list[int] | Picture
    open: bool
    """Everyone may attend to it."""


class ShowO(Policy):
    """The Show-o family (arXiv 2408.12528)."""

    family = "showo"
    abilities = frozenset({"write", "draw", "relax drawings", "mask drawings anew"})
    plain_parts: ClassVar = {"showo": "", "mm_projector": "mm_projector"}
    network: ShowONetwork

    def __init__(self, network: ShowONetwork, tokenizer: PreTrainedTokenizerFast, config: PolicyConfig) -> None:
        super().__init__(network, config)
        for part in (network.image_tokenizer, network.vision):  # what a drawing means must not change under training
            if part is not None:
                part.requires_grad_(False)
        sizes = network.config
        self.tokenizer: Any = tokenizer
        self.layout = Layout(
            words=sizes.llm_vocab_size,
            codes=sizes.codebook_size,
            image_tokens=sizes.num_vq_tokens,
            text_tokens=sizes.max_seq_length,
            eot=self._end_of_text(),
        )
        self.side = math.isqrt(sizes.num_vq_tokens) * network.image_tokenizer.config.patch  # pixels

    def _end_of_text(self) -> int:
        words = self.network.config.llm_vocab_size
        if self.tokenizer.eos_token_id is None or len(self.tokenizer) > words:
            raise ValueError(
                f"policy.path = {self.config.path!r}: the text tokenizer has {len(self.tokenizer)} entries and "
                f"eos_token {self.tokenizer.eos_token!r}; Show-o needs at most {words} entries and an eos_token"
            )
        return self.tokenizer.eos_token_id

    @classmethod
    def load(cls, path: str, config: PolicyConfig) -> ShowO:
        """Reads a checkpoint, published or saved by `save`, safetensors only.

        Raises:
            ValueError: pickled weights; weights missing, unexpected or of the wrong shape, every one named; no text
                tokenizer.
        """
        try:
            network = read_network(path, getattr(torch, config.dtype))
            tokenizer = read_tokenizer(fetch(path), network.config.llm_model_path)
        except (ValueError, OSError, SafetensorError) as error:
            raise ValueError(f"policy.path = {path!r}: {error}") from error
        return cls(network, tokenizer, config)

    # -- writing -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def write(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Tokens]:
        with self.autocast(sampling=True):
            asked = self._questions(contexts)
            length, stop = sampling.max_tokens, self.layout.eot
            return refill.act(self._speaker, asked, "text", sampling, seeds, length, stop)

    def _score_replies(
        self, contexts: Sequence[Context], replies: Sequence[Tokens], sampling: Sampling
    ) -> list[Tensor]:
        with self.autocast():
            return causal.score(self._speaker, self._questions(contexts), sampling, [reply.ids for reply in replies])

    def _questions(self, contexts: Sequence[Context]) -> causal.Prompts:
        """Every distinct question, whom everyone sees in it, and which each row continues."""
        different, rows = distinct(contexts)
        pieces = [self._pieces(context) for context in different]
        prefix_of = causal.Rows(torch.tensor(rows, device=self.device), None)
        return causal.Prompts(self._embed(pieces), prefix_of, [self._seen(row) for row in pieces])

    def _pieces(self, context: Context) -> list[Piece]:
        if context.unconditional:
            raise ValueError("an unconditional context is for drawing: a reply has no unconditional prompt")
        layout, chat = self.layout, self._chat(context)
        images = images_of(context)
        if not images:
            return [Piece([layout.eot, *chat], open=False)]
        mmu, clip = layout.special("<|mmu|>"), self.network.vision is not None
        start = [mmu, *self._ids(SYSTEM_PROMPT)] if clip else [mmu]
        pieces: list[Piece] = []
        for image in images:
            pieces += [Piece([*start, layout.soi], open=not clip), Piece(image, open=True)]
            start = [layout.eoi]
        if clip:
            return [*pieces, Piece([layout.eoi, *chat], open=False)]
        return [*pieces, Piece([layout.eoi], open=True), Piece([layout.eot, *chat], open=False)]

    def _chat(self, context: Context) -> list[int]:
        """Ids of the texts and earlier replies of a context, ready for a reply."""
        ids: list[int] = []
        for run in runs(context):
            ids += self._ids(self.question(run)) if isinstance(run, str) else [*self._reply_ids(run), self.layout.eot]
        return ids

    def question(self, text: str) -> str:
        """A question as the checkpoint was tuned on it, ready for a reply: through CLIP it was tuned on LLaVA's data,
        whose line break after the user's name the published program takes out."""
        start = "USER: " if self.network.vision is not None else "USER: \n"
        return f"{start}{text} ASSISTANT:"

    def _seen(self, pieces: Sequence[Piece]) -> Tensor:
        sizes = [len(p.content) if isinstance(p.content, list) else self._image_length for p in pieces]
        flags = [torch.full((size,), p.open, device=self.device) for p, size in zip(pieces, sizes, strict=True)]
        return torch.cat(flags)

    def _embed(self, rows: Sequence[Sequence[Piece]]) -> list[Tensor]:
        """Embeddings of every row, all ids in one look-up and all images in one pass. each [S, D]"""
        contents = [[piece.content for piece in row] for row in rows]
        return embedded(contents, self.embed_ids, self._read, self.device)

    def _read(self, images: Sequence[Picture]) -> Tensor:
        """Images as the decoder reads them. [I, tokens, D]"""
        if self.network.vision is not None:
            return self.network.clip_features(self._pixels(images).to(self.network.vision.dtype))

        def relax(drawings: Sequence[Relaxed]) -> Tensor:
            table = self.network.embed_image(torch.arange(self.layout.codes, device=self.device))
            return self._relaxed(table, drawings)

        return with_relaxed(self.network.embed_image(self._codes(images)), images, relax)

    def _pixels(self, images: Sequence[Picture]) -> Tensor:
        """Images as the CLIP tower reads them; drawings are rounded to bytes. [I, 3, H, W]"""
        tokenizer, processor = self.network.image_tokenizer, self._processor
        pictures: list[Any] = [self.decode([own])[0] if (own := drawing_of(image)) else image for image in images]
        pixels = processor(pictures, return_tensors="pt")["pixel_values"].to(self.device)

        def relax(drawings: Sequence[Relaxed]) -> Tensor:
            return self._clip_pixels(tokenizer.paint(self._relaxed(tokenizer.quantize.embedding, drawings)))

        return with_relaxed(pixels, images, relax)

    def _clip_pixels(self, painted: Tensor) -> Tensor:
        """What the processor makes of painted drawings, differentiable and without rounding. [I, 3, H, W]"""
        processor, painted = self._processor, magvit.brightness(painted)
        mean, std = (painted.new_tensor(x)[:, None, None] for x in (processor.image_mean, processor.image_std))
        return (F.interpolate(painted, processor.size["shortest_edge"], mode="bicubic", antialias=True) - mean) / std

    @property
    def _processor(self) -> CLIPImageProcessorPil:
        side = cast(Any, self.network.vision).config.image_size
        return CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def _relaxed(self, table: Tensor, drawings: Sequence[Relaxed]) -> Tensor:
        """Rows of a table [K, E] at the codes of drawings, with the gradient of their relaxation. [I, N, E]"""
        return relax_alike(drawings, partial(self._relaxed_alike, table))

    def _relaxed_alike(
        self, table: Tensor, drawings: Sequence[Relaxed], sampling: Sampling, temperature: float
    ) -> Tensor:
        codes = torch.stack([d.action.ids for d in drawings]).to(self.device)
        hidden = [masked.masked_once_more(d.action.order, d.seed) for d in drawings]
        reader, rows = self._prompts([d.context for d in drawings], sampling.scores_guided)
        noise = exponentials([d.seed for d in drawings], (codes.shape[1], len(table)), self.device)
        table = table.detach()  # what is read has the table's own gradient
        return masked.relax(
            reader, rows, codes, torch.stack(hidden).to(self.device), sampling, temperature, noise, table
        )

    @property
    def _image_length(self) -> int:
        """Positions of an image in a question."""
        if self.network.vision is None:
            return self.layout.image_tokens
        sizes = cast(Any, self.network.vision.config)
        return (sizes.image_size // sizes.patch_size) ** 2

    # -- drawing -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        size = (len(contexts), self.layout.image_tokens)
        with self.autocast(sampling=True):
            reader, rows = self._prompts(contexts, guided=sampling.guidance != 1)
            chance = masked.RowChance(seeds, sampling.rounds, size[1], self.device)
            canvas = torch.full(size, reader.mask, device=self.device)
            drawn = masked.sample(reader, rows, canvas, sampling, chance)
        return [
            Tokens("image", ids, order, logp, torch.ones(size[1], dtype=torch.bool), sampling)
            for ids, order, logp in zip(*(x.cpu() for x in drawn), strict=True)
        ]

    def _score_drawings(
        self, contexts: Sequence[Context], actions: Sequence[Tokens], sampling: Sampling
    ) -> list[Tensor]:
        columns = zip(*((action.ids, action.order, action.mask) for action in actions), strict=True)
        ids, order, wanted = (torch.stack(column).to(self.device) for column in columns)
        with self.autocast():
            reader, rows = self._prompts(contexts, sampling.scores_guided)
            return list(masked.score(reader, rows, ids, order, wanted, sampling))

    def _prompts(self, contexts: Sequence[Context], guided: bool) -> tuple[masked.Reader, causal.Rows]:
        """What reads the canvases of every row: distinct prompts, one unconditional prompt for all, computed once."""
        different, rows = distinct(contexts)
        prompts = [self.layout.prompt(self._prompt_ids(context)) for context in different]
        unconditional = torch.full((len(rows),), len(prompts), device=self.device) if guided else None
        if guided:
            prompts.append(self.layout.prompt([]))
        start = self.layout.text_tokens + 1
        embeds = [self.embed_ids(torch.tensor(prompt, device=self.device)) for prompt in prompts]
        done = causal.run_prefixes(self.decoder, embeds, end=start)
        reader = masked.Reader(self.decoder, done, self._frame, start, self.network.image_head, mask=self.layout.codes)
        return reader, causal.Rows(torch.tensor(rows, device=self.device), unconditional)

    def _prompt_ids(self, context: Context) -> list[int]:
        if images_of(context):
            raise ValueError("the showo family cannot draw from an image: give it text alone to draw")
        texts = [] if context.unconditional else runs(context)
        return [i for run in texts for i in (self._ids(run) if isinstance(run, str) else self._reply_ids(run))]

    def _frame(self, canvas: Tensor) -> Tensor:
        """Embeddings of canvases between begin and end of image. [C, N] -> [C, N + 2, D]"""
        ends = self.embed_ids(torch.tensor([self.layout.soi, self.layout.eoi], device=canvas.device))
        before, after = ends.expand(len(canvas), -1, -1).split(1, 1)
        return torch.cat([before, self.network.embed_image(canvas), after], 1)

    # -- scoring -------------------------------------------------------------------------------------------------

    def forward(
        self, contexts: Sequence[Context], actions: Sequence[Action], anchors: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Log-probability [L] of every decision of every action, differentiable; 0 for decisions of a drawing that its
        mask leaves out, whose rounds cost nothing."""

        def score(kind: Kind, rows: list[int]) -> list[Tensor]:
            _, modality, sampling = kind
            of_modality = self._score_replies if modality == "text" else self._score_drawings
            return of_modality(pick(rows, contexts), list(map(tokens_of, pick(rows, actions))), sampling)

        return beside_divergence(in_kinds(list(map(kind_of, actions)), score), anchors)

    def select(self, actions: Sequence[Action], scoring: ScoringConfig, seed: int) -> list[Selected]:
        whole = super().select(actions, scoring, seed)
        return [_select_decisions(s, scoring, seed) if s.action.modality == "image" else s for s in whole]

    @torch.no_grad()
    def hidden_states(self, images: Sequence[Image], texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        rows = [self._pieces(Context(pair)) for pair in zip(images, texts, strict=True)]
        with self.autocast():
            seen = [self._seen(row) for row in rows]
            states = causal.run_prefixes(self.decoder, self._embed(rows), seen, keep=False).states()
        starts = [len(cast("list[int]", row[0].content)) for row in rows]  # of the image
        own = [own_tokens(self.tokenizer, self.question(text), text) for text in texts]
        return own_states(states, starts, [self._image_length] * len(rows), own)

    # -- text and pictures ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, targets: Sequence[Target], seeds: Sequence[int] | None = None) -> list[Action]:
        """The actions that would have produced the targets. For a picture this is one random masking, as in
        pretraining: its mask holds the positions to predict, the others are given."""
        return encode_each(targets, seeds, self._encode_text, self._masked_codes)

    def _encode_text(self, text: str) -> Tokens:
        return given("text", torch.tensor([*self._ids(text), self.layout.eot]))

    def _masked_codes(self, pictures: Sequence[Image], sources: Sources) -> list[Tokens]:
        codes = self._codes(pictures).cpu()
        u = torch.stack([torch.rand(1 + codes.shape[1], generator=g) for g in sources])
        wanted = masked.random_masking(u[:, 0], u[:, 1:])
        order = torch.where(wanted, 0, selection.GIVEN)
        zeros = torch.zeros(codes.shape[1])
        return [Tokens("image", i, o, zeros, w, Sampling()) for i, o, w in zip(codes, order, wanted, strict=True)]

    @torch.no_grad()
    def _codes(self, images: Sequence[Picture]) -> Tensor:
        """Codes of pictures; a drawing has them already. [I, N]"""
        drawings = [drawing_of(image) for image in images]
        pictures = [cast("Image", image) for image, own in zip(images, drawings, strict=True) if own is None]
        found = iter(())
        if pictures:
            pixels = torch.stack([magvit.to_pixels(picture, self.side) for picture in pictures])
            with torch.autocast(self.device.type, enabled=False):  # rounding would flip signs
                found = iter(self.network.image_tokenizer.encode(pixels.to(self.device)))
        return torch.stack([next(found) if own is None else own.ids.to(self.device) for own in drawings])

    @torch.no_grad()
    def decode(self, actions: Sequence[Action]) -> list[Any]:
        return decode_each(list(map(tokens_of, actions)), self._text, self._pictures)

    def _pictures(self, drawings: Sequence[Tokens]) -> list[Image]:
        parts, tokenizer = torch.stack([drawing.ids for drawing in drawings]).split(64), self.network.image_tokenizer
        return [magvit.to_image(pixels) for part in parts for pixels in tokenizer.decode(part.to(self.device))]

    def _text(self, action: Tokens) -> str:
        words = action.ids[action.ids < self.layout.words]
        return self.tokenizer.decode(words, skip_special_tokens=True).strip()

    def write_checkpoint(self, network: ShowONetwork, folder: Path) -> None:
        write_network(network, folder)
        self.tokenizer.save_pretrained(folder)

    # -- parts ---------------------------------------------------------------------------------------------------

    @property
    def decoder(self) -> Any:
        """The `transformers` decoder over embeddings."""
        return self.network.showo.model

    @property
    def embed_ids(self) -> Any:
        """ids -> embeddings"""
        return self.network.showo.model.embed_tokens

    @property
    def _speaker(self) -> causal.Speaker:
        return causal.Speaker(self.decoder, self.embed_ids, self.network.showo.lm_head, self.config)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _reply_ids(self, reply: Tokens) -> list[int]:
        return [i for i in reply.ids.tolist() if i != self.layout.eot]


def _select_decisions(whole: Selected, scoring: ScoringConfig, seed: int) -> Selected:
    drawing = tokens_of(whole.action)
    if scoring.drawings == "rounds":
        return selection.of_some_rounds(whole, drawing.order, drawing.ids, scoring.rounds, seed)
    least = 1.0 if scoring.drawings == "whole_canvas" else scoring.least_masked
    order, wanted, weight = selection.one_pass(drawing.mask, least, selection.own_seed(drawing.ids, seed))
    return replace(whole, action=replace(drawing, order=order, mask=wanted), share=weight, old_logp=None)


def images_of(context: Context) -> list[Picture]:
    """The pictures and drawings of a context.

    Raises:
        ValueError: a part that is of another family.
    """
    images = [part for part in context.parts if not isinstance(part, str) and not is_reply(part)]
    return [tokens_of(part) if isinstance(part, Latents | Noised) else cast(Picture, part) for part in images]


def drawing_of(image: Picture) -> Tokens | None:
    """The drawing that a part of a context is, relaxed or not."""
    return image.action if isinstance(image, Relaxed) else image if isinstance(image, Tokens) else None


def with_relaxed(read: Tensor, images: Sequence[Picture], relax: Callable[[list[Relaxed]], Tensor]) -> Tensor:
    """Adds to how images are read [I, ...] the gradient of what `relax` makes of the relaxed drawings among them."""
    drawings = {row: image for row, image in enumerate(images) if isinstance(image, Relaxed)}
    if not drawings:
        return read
    soft = relax(list(drawings.values()))
    return read.index_add(0, torch.tensor(list(drawings), device=read.device), (soft - soft.detach()).to(read.dtype))


def runs(context: Context) -> list[str | Tokens]:
    """The texts and earlier replies of a context, texts next to each other joined by line breaks."""
    joined: list[str | Tokens] = []
    for part in context.parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += f"\n{part}"
        elif isinstance(part, str) or is_reply(part):
            joined.append(cast("str | Tokens", part))
    return joined


def read_tokenizer(folder: Path, elsewhere: str) -> PreTrainedTokenizerFast:
    """The text tokenizer beside the weights, or where the configuration says.

    Raises:
        ValueError: there is none.
    """
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    what = f"no tokenizer.json in {folder}, and none to be had from {elsewhere!r}"
    return read(what, lambda: AutoTokenizer.from_pretrained(elsewhere))
