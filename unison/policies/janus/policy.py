"""Janus and Janus-Pro: autoregressive text and autoregressive image tokens in one `transformers` model.

Text is written by `lm_head`; a drawing is `num_patches ** 2` tokens of the VQ codebook, decided by `generation_head`.
Images are read through the vision encoder. The unconditional row of guidance is the prompt's row with everything
between its first token and the begin-of-image token replaced by the (attended) pad token, so it depends on the prompt's
length alone and prompts of one length share it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, JanusProcessor
from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

from unison import hub
from unison.config import PolicyConfig
from unison.policies.base import (
    Policy,
    Target,
    by_kind,
    distinct,
    given,
    is_reply,
    own_tokens,
    relax_alike,
    sampled,
    tokens_of,
)
from unison.policies.decisions.tokens import beside_divergence, exponentials, relaxed_rows, uniforms
from unison.policies.decoding import causal, packed, refill
from unison.types import Action, Context, Modality, Part, Relaxed, Sampling, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

Drawn: TypeAlias = "Image | Tokens | Relaxed"
Piece: TypeAlias = "list[int] | Drawn"
REPLY = "\x00reply\x00"  # stands for an earlier reply in the rendered chat; its ids are spliced in

CHAT_TEMPLATE = """
{%- for message in messages -%}
{{- '<|User|>: ' if message['role'] == 'user' else '<|Assistant|>: ' -}}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<image_placeholder>' -}}{{- '\\n' if not loop.last else '' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{{- '\\n\\n' if message['role'] == 'user' else '<｜end▁of▁sentence｜>' -}}
{%- endfor -%}
{{- '<|Assistant|>:' if add_generation_prompt else '' -}}
"""


class Janus(Policy):
    """The Janus family (arXiv 2410.13848, 2501.17811)."""

    family = "janus"
    abilities = frozenset({"write", "draw", "relax drawings"})
    packs = True
    network: JanusForConditionalGeneration

    def __init__(self, network: JanusForConditionalGeneration, processor: JanusProcessor, config: PolicyConfig) -> None:
        super().__init__(network, config)
        self.processor = processor
        processor.use_default_system_prompt = False  # CoRL uses none, though converted checkpoints turn it on
        self.tokenizer: Any = processor.tokenizer  # type: ignore[attr-defined]
        if self.tokenizer.pad_token_id is None:
            raise ValueError(
                f"policy.path = {config.path!r}: the tokenizer has no pad token, which the unconditional row of "
                "guidance needs; set pad_token in its tokenizer_config.json"
            )
        if config.attention == "flex":
            packed.accept(network.model.language_model)
        self.drawing_tokens = cast(Any, network.config).vq_config.num_patches ** 2

    @property
    def decoder(self) -> Any:
        return self.network.model.language_model

    @property
    def vq(self) -> Any:
        """The image tokenizer; `transformers` types its ids more narrowly than torch makes them."""
        return self.network.model.vqmodel

    @classmethod
    def load(cls, path: str, config: PolicyConfig) -> Janus:
        """Reads a checkpoint in `transformers` format, safetensors only.

        Raises:
            ValueError: weights missing, truncated, incomplete or left over; no tokenizer or processor.
        """
        return cls(load_network(path, config), load_processor(path), config)

    # -- sampling and scoring ------------------------------------------------------------------------------------

    def write(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Tokens]:
        return self._sample(contexts, sampling, seeds, "text")

    def draw(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        return list(self._sample(contexts, sampling, seeds, "image"))

    @torch.no_grad()
    def _sample(
        self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int], modality: Modality
    ) -> list[Tokens]:
        length = sampling.max_tokens if modality == "text" else self.drawing_tokens
        stop = self.tokenizer.eos_token_id if modality == "text" else None
        with self.autocast(sampling=True):
            prefixes, rows = self._prefixes(contexts, modality, guided=modality == "image" and sampling.guidance != 1)
            ids, logp = refill.sample(
                self.network.model.language_model,
                prefixes,
                rows,
                *self._embed_and_head(modality),
                sampling,
                uniforms(seeds, length, self.device),
                stop,
                decoding=causal.Decoding.of(self.config),
            )
        return [sampled(modality, i, p, stop, sampling) for i, p in zip(ids, logp, strict=True)]

    def forward(
        self, contexts: Sequence[Context], actions: Sequence[Action], anchors: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        logps: dict[int, Tensor] = {}
        for (modality, sampling), rows in by_kind(actions).items():
            tokens = [tokens_of(actions[row]) for row in rows]
            scored = self._score([contexts[row] for row in rows], tokens, sampling, modality)
            logps |= dict(zip(rows, scored, strict=True))
        return beside_divergence([logps[row] for row in range(len(actions))], anchors)

    def _score(
        self, contexts: Sequence[Context], actions: Sequence[Tokens], sampling: Sampling, modality: Modality
    ) -> list[Tensor]:
        guided = modality == "image" and sampling.scores_guided
        with self.autocast():
            prefixes, rows = self._prefixes(contexts, modality, guided)
            ids = [action.ids for action in actions]
            return causal.score(
                self.network.model.language_model,
                prefixes,
                rows,
                *self._embed_and_head(modality),
                sampling,
                ids,
                scoring=causal.Scoring.of(self.config),
            )

    def _embed_and_head(self, modality: Modality):
        if modality == "text":
            return self.network.get_input_embeddings(), self.network.lm_head
        return self.network.prepare_embeddings_for_image_generation, self.network.model.generation_head

    # -- contexts ------------------------------------------------------------------------------------------------

    def _prefixes(
        self, contexts: Sequence[Context], modality: Modality, guided: bool
    ) -> tuple[list[Tensor], causal.Rows]:
        """Embeddings [S, D] of every distinct prefix, then of the unconditional ones, and who continues which."""
        different, rows = distinct(contexts)
        pieces = [self._pieces(context, modality) for context in different]
        prefix_of = torch.tensor(rows, device=self.device)
        if not guided:
            return self._embed(pieces), causal.Rows(prefix_of, None)
        sizes = [sum(map(self._size, row)) for row in pieces]
        lengths = sorted(set(sizes))
        number = {length: len(pieces) + i for i, length in enumerate(lengths)}
        unconditional = torch.tensor([number[sizes[row]] for row in rows], device=self.device)
        return self._embed([*pieces, *map(self._hidden, lengths)]), causal.Rows(prefix_of, unconditional)

    def _hidden(self, length: int) -> list[Piece]:
        """The unconditional row for a prompt of `length` tokens."""
        tokenizer = self.tokenizer
        return [[tokenizer.bos_token_id, *[tokenizer.pad_token_id] * (length - 2), tokenizer.boi_token_id]]

    def _pieces(self, context: Context, modality: Modality) -> list[Piece]:
        """A context up to where the policy starts to write or draw: runs of ids, and images between them."""
        tokenizer = self.tokenizer
        replies = [part for part in context.parts if is_reply(part)]
        images = [part for part in context.parts if not isinstance(part, str) and not is_reply(part)]
        text = self.chat(context) + (tokenizer.boi_token if modality == "image" else "")
        text = text.replace(f" {REPLY}", REPLY)  # a reply follows the colon directly and brings its own space
        pieces: list[Piece] = []
        ids = [tokenizer.bos_token_id]
        for marker, segment in _segments(text, (tokenizer.image_token, REPLY)):
            if marker == REPLY:
                ids += [i for i in cast(Tokens, replies.pop(0)).ids.tolist() if i != tokenizer.eos_token_id]
            elif marker:
                pieces += [[*ids, tokenizer.boi_token_id], cast(Drawn, images.pop(0))]
                ids = [tokenizer.eoi_token_id]
            ids += tokenizer.encode(segment, add_special_tokens=False)
        pieces.append(ids)
        return self._hidden(sum(map(self._size, pieces))) if context.unconditional else pieces

    def _size(self, piece: Piece) -> int:
        return len(piece) if isinstance(piece, list) else self.processor.num_image_tokens

    def _embed(self, rows: Sequence[Sequence[Piece]]) -> list[Tensor]:
        """Embeddings of every row, all ids in one look-up and all images in one pass of the encoder. each [S, D]"""
        runs = [piece for row in rows for piece in row if isinstance(piece, list)]
        images = [piece for row in rows for piece in row if not isinstance(piece, list)]
        flat = torch.tensor([i for run in runs for i in run], device=self.device)
        words = iter(self.network.get_input_embeddings()(flat).split([len(run) for run in runs]))
        pictures = iter(self._image_features(images) if images else ())
        return [torch.cat([next(words if isinstance(piece, list) else pictures) for piece in row]) for row in rows]

    def chat(self, context: Context) -> str:
        """The context in the checkpoint's own chat template, ready for a reply."""
        messages: list[dict[str, Any]] = []
        for part in context.parts:
            if isinstance(part, str) and (self.tokenizer.image_token in part or REPLY in part):
                raise ValueError(
                    f"text {part!r} holds {self.tokenizer.image_token!r}: give images as parts of the context"
                )
            role = "assistant" if is_reply(part) else "user"
            if not messages or messages[-1]["role"] != role:
                messages.append({"role": role, "content": []})
            messages[-1]["content"].append(_chat_part(part, role))
        return cast(str, self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))

    def _image_features(self, images: Sequence[Drawn]) -> Tensor:
        relaxed = [image for image in images if isinstance(image, Relaxed)]
        realised = iter(self._relaxed_pixels(relaxed).split(1) if relaxed else ())
        pixels = [next(realised) if isinstance(image, Relaxed) else self._pixels(image) for image in images]
        features: Any = self.network.model.get_image_features(
            torch.cat([p.to(self.device, self.network.dtype) for p in pixels])
        )  # type: ignore[arg-type]
        return features.pooler_output  # [N, tokens, D]

    def _relaxed_pixels(self, drawings: Sequence[Relaxed]) -> Tensor:
        """Pixels of drawings with the gradient of their tokens' relaxation, painted by the VQ decoder. [N, 3, H, W]"""
        vq = self.vq
        table = nn.functional.normalize(vq.quantize.embedding.weight, dim=-1)  # as the VQ model looks codes up
        codes = relax_alike(drawings, partial(self._relaxed_codes, table)).to(self.network.dtype)
        side = self.network.config.vq_config.num_patches  # type: ignore[union-attr]
        return vq.decoder(vq.post_quant_conv(rearrange(codes, "n (h w) e -> n e h w", h=side)))

    def _relaxed_codes(
        self, table: Tensor, drawings: Sequence[Relaxed], sampling: Sampling, temperature: float
    ) -> Tensor:
        """Codebook rows of drawings of one sampling, in one more pass of the language model. [N, L, E]"""
        ids = torch.stack([drawing.action.ids for drawing in drawings]).to(self.device)
        embed, head = self._embed_and_head("image")
        prefixes, rows = self._prefixes([d.context for d in drawings], "image", sampling.scores_guided)
        done = causal.run_prefixes(self.network.model.language_model, prefixes)
        hidden = causal.continuation_states(self.network.model.language_model, done, rows, embed, ids)
        conditional, unconditional = rows.split(hidden)
        noise = exponentials([d.seed for d in drawings], (ids.shape[1], len(table)), self.device)
        codes = relaxed_rows(
            head,
            conditional.flatten(0, 1),
            ids.flatten(),
            sampling,
            temperature,
            noise.flatten(0, 1),
            table,
            None if unconditional is None else unconditional.flatten(0, 1),
        )
        return codes.view(*ids.shape, -1)

    def _pixels(self, image: Image | Tokens) -> Tensor:
        """Pixels as the vision encoder wants them; a drawing stays in the model and is never rounded. [1, 3, H, W]"""
        if isinstance(image, Tokens):
            return self.vq.decode(image.ids[None].to(self.device))
        return self.processor.image_processor(image, return_tensors="pt")["pixel_values"]  # type: ignore[attr-defined]

    @torch.no_grad()
    def hidden_states(self, images: Sequence[Image], texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        contexts = [Context(pair) for pair in zip(images, texts, strict=True)]
        rows = [self._pieces(context, "text") for context in contexts]
        with self.autocast():
            states = causal.run_prefixes(self.network.model.language_model, self._embed(rows), keep=False).states()
        starts = [self._size(row[0]) for row in rows]  # the image comes second, what is before it is the template's
        own = [self._own_tokens(context, text) for context, text in zip(contexts, texts, strict=True)]
        return [
            (state[start : start + self.processor.num_image_tokens], state[-len(mask) :][mask])
            for state, start, mask in zip(states, starts, own, strict=True)
        ]

    def _own_tokens(self, context: Context, text: str) -> Tensor:
        """Which of the tokens after the context's image are the text's own, not the template's. bool"""
        segment = self.chat(context).rpartition(self.tokenizer.image_token)[2]
        return own_tokens(self.tokenizer, segment, text).to(self.device)

    # -- text and pictures ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, targets: Sequence[Target]) -> list[Tokens]:
        pictures = [t for t in targets if not isinstance(t, str | Tokens)]
        drawn = iter(self._image_tokens(pictures) if pictures else ())
        return [
            t if isinstance(t, Tokens) else self._encode_text(t) if isinstance(t, str) else next(drawn) for t in targets
        ]

    def _encode_text(self, text: str) -> Tokens:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return given("text", torch.tensor([*ids, self.tokenizer.eos_token_id]))

    def _image_tokens(self, pictures: Sequence[Image]) -> list[Tokens]:
        pixels = torch.cat([self._pixels(picture) for picture in pictures]).to(self.device, self.network.dtype)
        ids = self.vq.encode(pixels).image_tokens
        return [given("image", row) for row in ids.view(len(pictures), -1)]

    @torch.no_grad()
    def decode(self, actions: Sequence[Action]) -> list[Any]:
        tokens = [tokens_of(action) for action in actions]
        drawings = [action for action in tokens if action.modality == "image"]
        pictures = (picture for pixels in self.paint(drawings) for picture in self._pictures(pixels))
        return [next(pictures) if action.modality == "image" else self._text(action) for action in tokens]

    def paint(self, drawings: Sequence[Action]) -> Iterator[Tensor]:
        ids = [tokens_of(drawing).ids for drawing in drawings]
        for start in range(0, len(ids), 64):
            yield self.vq.decode(torch.stack(ids[start : start + 64]).to(self.device))

    def _text(self, action: Tokens) -> str:
        return self.tokenizer.decode(action.ids, skip_special_tokens=True).strip()

    def _pictures(self, pixels: Tensor) -> list[Image]:
        images = list(pixels.float().cpu().numpy())
        return self.processor.postprocess(images, return_tensors="PIL.Image.Image")["pixel_values"]

    def save(self, folder: Path) -> None:
        from unison.policies.adapters import merged

        network = merged(self)
        # part of the published format, for `generate(generation_mode="image")`; `transformers` 5 drops it at loading
        vars(network.generation_config)["generation_kwargs"] = {"boi_token_id": self.tokenizer.boi_token_id}
        network.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def load_network(path: str, config: PolicyConfig) -> JanusForConditionalGeneration:
    """The network with every weight accounted for.

    Raises:
        ValueError: weights missing, truncated, incomplete or left over.
    """
    load: Any = JanusForConditionalGeneration.from_pretrained
    options = {"use_safetensors": True, "dtype": getattr(torch, config.dtype), "output_loading_info": True}
    return hub.whole(f"policy.path = {path!r}", lambda: load(path, **options))


def load_processor(path: str) -> JanusProcessor:
    """The tokenizer and what makes pixels of pictures.

    Raises:
        ValueError: there is none.
    """
    # the same pixels with and without torchvision, for which `transformers` has another image processor
    kinds = (JanusProcessor, JanusImageProcessorPil)
    what = f"policy.path = {path!r}: cannot read its tokenizer and processor"
    processor, image_processor = hub.read(what, lambda: [cast(Any, kind).from_pretrained(path) for kind in kinds])
    processor.image_processor = image_processor
    return processor


def _segments(text: str, markers: Sequence[str]) -> list[tuple[str, str]]:
    """Splits text at markers: (the marker before it or '', segment) pairs, in order."""
    pieces = re.split("(" + "|".join(map(re.escape, markers)) + ")", text)
    return list(zip(["", *pieces[1::2]], pieces[::2], strict=True))


def _chat_part(part: Part, role: str) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "text", "text": REPLY} if role == "assistant" else {"type": "image"}
