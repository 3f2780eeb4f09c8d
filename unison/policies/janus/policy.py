"""Janus and Janus-Pro: autoregressive text and autoregressive image tokens in one `transformers` model.

Text is written by `lm_head`; a drawing is `num_patches ** 2` tokens of the VQ codebook, decided by `generation_head`.
Images are read through the vision encoder. The unconditional row of guidance is the prompt's row with everything
between its first token and the begin-of-image token replaced by the (attended) pad token, so it depends on the prompt's
length alone and prompts of one length share it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, JanusProcessor

from unison import hub
from unison.config import PolicyConfig
from unison.policies.actions import Sources, decode_each, encode_each, given, is_reply, tokens_of
from unison.policies.base import Policy, Target
from unison.policies.decisions.tokens import beside_divergence, exponentials, relaxed_rows
from unison.policies.decoding import causal, packed, refill
from unison.policies.decoding.prompts import embedded, own_states, own_tokens
from unison.policies.grouping import Kind, distinct, in_kinds, kind_of, pick, relax_alike
from unison.policies.janus.pictures import Pictures, codes_of
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
        train_pad(network.get_input_embeddings())
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
        return self._sample(contexts, "text", sampling, seeds, sampling.max_tokens, self.tokenizer.eos_token_id)

    def draw(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        return list(self._sample(contexts, "image", sampling, seeds, self.drawing_tokens, None))

    @torch.no_grad()
    def _sample(
        self,
        contexts: Sequence[Context],
        modality: Modality,
        sampling: Sampling,
        seeds: Sequence[int],
        length: int,
        stop: int | None,
    ) -> list[Tokens]:
        with self.autocast(sampling=True):
            prompts = self._prompts(contexts, modality, guided=modality == "image" and sampling.guidance != 1)
            return refill.act(self._speaker(modality), prompts, modality, sampling, seeds, length, stop)

    def forward(
        self, contexts: Sequence[Context], actions: Sequence[Action], anchors: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        def score(kind: Kind, rows: list[int]) -> list[Tensor]:
            _, modality, sampling = kind
            ids = [tokens_of(action).ids for action in pick(rows, actions)]
            with self.autocast():
                guided = modality == "image" and sampling.scores_guided
                prompts = self._prompts(pick(rows, contexts), modality, guided)
                return causal.score(self._speaker(modality), prompts, sampling, ids)

        return beside_divergence(in_kinds(list(map(kind_of, actions)), score), anchors)

    def _speaker(self, modality: Modality) -> causal.Speaker:
        network = self.network
        embed, head = network.get_input_embeddings(), network.lm_head
        if modality == "image":
            embed, head = network.prepare_embeddings_for_image_generation, network.model.generation_head
        return causal.Speaker(self.decoder, embed, head, self.config)

    # -- contexts ------------------------------------------------------------------------------------------------

    def _prompts(self, contexts: Sequence[Context], modality: Modality, guided: bool) -> causal.Prompts:
        """Every distinct prefix, then the unconditional ones, and who continues which."""
        different, own = distinct(contexts)
        pieces = [self._pieces(context, modality) for context in different]
        prefix_of = torch.tensor(own, device=self.device)
        if not guided:
            return causal.Prompts(self._embed(pieces), causal.Rows(prefix_of, None))
        sizes = [sum(map(self._size, row)) for row in pieces]
        lengths = sorted(set(sizes))
        number = {length: len(pieces) + i for i, length in enumerate(lengths)}
        unconditional = torch.tensor([number[sizes[row]] for row in own], device=self.device)
        rows = causal.Rows(prefix_of, unconditional)
        return causal.Prompts(self._embed([*pieces, *map(self._hidden, lengths)]), rows)

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
        return embedded(rows, self.network.get_input_embeddings(), self._image_features, self.device)

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
        speaker = self._speaker("image")
        read = self._prompts([d.context for d in drawings], "image", sampling.scores_guided)
        done = read.run(self.decoder)
        hidden = causal.continuation_states(self.decoder, done, read.rows, speaker.embed, ids)
        c, u = read.rows.split(hidden, torch.ones_like(ids, dtype=torch.bool))
        noise = exponentials([d.seed for d in drawings], (ids.shape[1], len(table)), self.device).flatten(0, 1)
        codes = relaxed_rows(speaker.head, c, ids.flatten(), sampling, temperature, noise, table, u)
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
            states = causal.run_prefixes(self.decoder, self._embed(rows), keep=False).states()
        segments = [self.chat(context).rpartition(self.tokenizer.image_token)[2] for context in contexts]
        own = [own_tokens(self.tokenizer, *pair) for pair in zip(segments, texts, strict=True)]
        starts = [self._size(row[0]) for row in rows]  # the image comes second, what is before it is the template's
        return own_states(states, starts, [self.processor.num_image_tokens] * len(rows), own)

    # -- text and pictures ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, targets: Sequence[Target], seeds: Sequence[int] | None = None) -> Sequence[Action]:
        return encode_each(targets, seeds, self._encode_text, self._image_tokens)

    def _encode_text(self, text: str) -> Tokens:
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        return given("text", torch.tensor([*ids, self.tokenizer.eos_token_id]))

    def _image_tokens(self, pictures: Sequence[Image], sources: Sources) -> list[Tokens]:
        pixels = torch.cat([self._pixels(picture) for picture in pictures]).to(self.device, self.network.dtype)
        return [given("image", row) for row in codes_of(self.vq, pixels)]

    @torch.no_grad()
    def decode(self, actions: Sequence[Action]) -> list[Any]:
        return decode_each(list(map(tokens_of, actions)), self._text, self._pictures)

    def _text(self, action: Tokens) -> str:
        return self.tokenizer.decode(action.ids, skip_special_tokens=True).strip()

    def _pictures(self, drawings: Sequence[Tokens]) -> list[Image]:
        ids = torch.stack([drawing.ids for drawing in drawings])
        pixels = torch.cat([self.vq.decode(part.to(self.device)) for part in ids.split(64)])
        return self.processor.postprocess(list(pixels.float().cpu().numpy()), return_tensors="PIL.Image.Image")[
            "pixel_values"
        ]

    def write_checkpoint(self, network: Any, folder: Path) -> None:
        # part of the published format, for `generate(generation_mode="image")`; `transformers` 5 drops it at loading
        vars(network.generation_config)["generation_kwargs"] = {"boi_token_id": self.tokenizer.boi_token_id}
        network.save_pretrained(folder)
        self.processor.save_pretrained(folder)


def train_pad(embedding: Any) -> None:
    """Gives the pad's row its gradient, as in DeepSeek's class: the unconditional row of guidance consists of it.

    `transformers` makes it the embedding's `padding_idx`, which has none. A row of zeros keeps it and stays as it is:
    it was never trained, and RMSNorm makes a gradient at exactly 0 larger by the root of 1 / eps.
    """
    row = embedding.padding_idx
    if row is not None and (embedding.weight.is_meta or embedding.weight[row].any()):
        embedding.padding_idx = None


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
    kinds = (JanusProcessor, Pictures)
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
