"""MetaQuery: a language model that reads and writes, and a diffusion model that draws what it has understood.

Text is written autoregressively by a Qwen2.5-VL. A drawing is a denoising path in latents (`sde.py`), under a context
that the language model gives once per distinct prompt: its last states at the learnable queries, through the bridge
(`network.py`). A context with a picture or an earlier drawing is an edit of the last of them: the vision tower
sees it, and its latent is added to the embedded noisy latents. Earlier drawings stay latents: they are a source as they
are, and the vision tower sees their decoded pixels unrounded.

Supervised, a picture is one noisy state of itself: `encode` draws noise, a level sigmoid(N(0, 1)) in the time shift of
the scheduler, as SANA was trained, and what is hidden, and such a `Noised` drawing is scored by its flow-matching loss
(`noising.py`). A drawing of the policy's own can be scored so too, at the levels of its schedule and with nothing
hidden (`scoring.drawings` "noised").

Sources: MetaQuery (arXiv 2504.06256); UniRL-Zero (arXiv 2510.17937) for editing, guidance and its training.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unison.config import PolicyConfig, ScoringConfig
from unison.policies.actions import Sources, decode_each, encode_each, given
from unison.policies.base import Policy, Target
from unison.policies.decisions import noising, sde, selection
from unison.policies.decisions.tokens import beside_divergence
from unison.policies.decoding import causal, refill
from unison.policies.decoding.prompts import embedded, own_states, own_tokens
from unison.policies.grouping import Kind, distinct, in_kinds, kind_of, pick
from unison.policies.metaquery import diffusion
from unison.policies.metaquery.guidance import Ask, Guided, Shares, branch_shares, edits, of_first
from unison.policies.metaquery.layout import (
    Chat,
    Picture,
    Piece,
    Run,
    Seen,
    positions,
    resized,
    see_picture,
    see_pixels,
    source_of,
    square,
    without,
)
from unison.policies.metaquery.network import MetaQueryNetwork, Parts, read_parts, write_parts
from unison.types import Action, Context, Hides, Latents, Noised, Sampling, Selected, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")


class MetaQuery(Policy):
    """The MetaQuery family, of a Qwen2.5-VL and a flow-matching transformer of `diffusers`."""

    family = "metaquery"
    abilities = frozenset({"write", "draw", "edit", "denoise drawings"})
    plain_parts: ClassVar = {"qwen": "language_model", "transformer": "transformer", "bridge": "bridge"}
    network: MetaQueryNetwork

    def __init__(
        self,
        network: MetaQueryNetwork,
        tokenizer: Any,
        image_processor: Qwen2VLImageProcessorPil,
        config: PolicyConfig,
    ) -> None:
        super().__init__(network, config)
        network.vae.requires_grad_(False)  # what a drawing means must not change under training
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        try:
            self.chat = Chat(tokenizer, network.config.system_prompt)
        except ValueError as error:
            raise ValueError(f"policy.path = {config.path!r}: {error}") from error

    @classmethod
    def load(cls, path: str, config: PolicyConfig) -> MetaQuery:
        """Reads a checkpoint that `save` or `unison join` wrote, safetensors only.

        Raises:
            ValueError: a part is missing or unreadable, or weights are missing or left over.
        """
        try:
            parts = read_parts(path, getattr(torch, config.dtype))
        except ValueError as error:
            raise ValueError(f"policy.path = {path!r}: {error}") from error
        return cls(parts.network, parts.tokenizer, parts.image_processor, config)

    @property
    def decoder(self) -> Any:
        """The language model's decoder over embeddings."""
        return self.network.qwen.model.language_model

    def reads(self, action: Action) -> tuple[nn.Module, int]:
        if not isinstance(action, Latents):
            return super().reads(action)
        height, width = action.path.shape[-2:]
        patch: int = self.network.transformer.config.patch_size
        branches = len(branch_shares(action.sampling, edit=False))
        return self.network.transformer, branches * len(action) * height * width // patch**2

    # -- writing -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def write(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Tokens]:
        with self.autocast(sampling=True):
            asked = self._questions(contexts)
            length, stop = sampling.max_tokens, self.tokenizer.eos_token_id
            return refill.act(self._speaker, asked, "text", sampling, seeds, length, stop)

    def _score_replies(
        self, contexts: Sequence[Context], replies: Sequence[Tokens], sampling: Sampling
    ) -> list[Tensor]:
        with self.autocast():
            return causal.score(self._speaker, self._questions(contexts), sampling, [reply.ids for reply in replies])

    def _questions(self, contexts: Sequence[Context]) -> causal.Prompts:
        """Every distinct context, and which each row continues."""
        if any(context.unconditional for context in contexts):
            raise ValueError("an unconditional context is for drawing: a reply has no unconditional prompt")
        different, rows = distinct(contexts)
        runs = self._see([self.chat.pieces(context.parts) for context in different])
        prefix_of = causal.Rows(torch.tensor(rows, device=self.device), None)
        return causal.Prompts(self._embed(runs), prefix_of, positions=[positions(row) for row in runs])

    @property
    def _speaker(self) -> causal.Speaker:
        qwen = self.network.qwen
        return causal.Speaker(self.decoder, qwen.get_input_embeddings(), qwen.lm_head, self.config)

    # -- reading -------------------------------------------------------------------------------------------------

    def _see(self, rows: Sequence[Sequence[Piece]], side: int = 0) -> list[list[Run]]:
        """Pictures as the vision tower takes them, each once however often it occurs; squares of `side` if given."""
        seen: dict[int, Seen] = {}
        for piece in (piece for row in rows for piece in row if not isinstance(piece, list)):
            if id(piece) not in seen:
                seen[id(piece)] = self._look(piece, side)
        return [[piece if isinstance(piece, list) else seen[id(piece)] for piece in row] for row in rows]

    def _look(self, picture: Picture, side: int) -> Seen:
        if not isinstance(picture, Latents | Noised):
            return see_picture(square(picture, side) if side else picture, self.image_processor)
        pixels = (self._pixels(picture.path[-1:])[0] / 2 + 0.5).clamp(0, 1)
        return see_pixels(resized(pixels, (side, side)) if side else pixels, self.image_processor)

    def _embed(self, rows: Sequence[Sequence[Run]]) -> list[Tensor]:
        """Embeddings of every row, all ids in one look-up and all distinct images in one pass. each [S, D]"""

        def see(images: list[Seen]) -> list[Tensor]:
            different = {id(image): image for image in images}
            found = dict(zip(different, self._features(list(different.values())), strict=True))
            return [found[id(image)] for image in images]

        return embedded(rows, self._speaker.embed, see, self.device)

    def _features(self, images: Sequence[Seen]) -> tuple[Tensor, ...]:
        """What the vision tower makes of images. each [tokens, D]"""
        merge = self.image_processor.merge_size
        grids = torch.tensor([[1, image.height * merge, image.width * merge] for image in images], device=self.device)
        patches = torch.cat([image.patches.to(self.device) for image in images])
        features: Any = self.network.qwen.model.get_image_features(patches, grids)  # type: ignore[arg-type]
        return features.pooler_output

    @torch.no_grad()
    def hidden_states(self, images: Sequence[Image], texts: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        rows = self._see([self.chat.pieces(pair) for pair in zip(images, texts, strict=True)])
        with self.autocast():
            places = [positions(row) for row in rows]
            states = causal.run_prefixes(self.decoder, self._embed(rows), keep=False, positions=places).states()
        starts = [len(row[0]) for row in rows]  # the image comes second, what is before it is the template's
        segments = [self.tokenizer.decode(row[-1], clean_up_tokenization_spaces=False) for row in rows]
        own = [own_tokens(self.tokenizer, *pair) for pair in zip(segments, texts, strict=True)]
        return own_states(states, starts, [len(row[1]) for row in rows], own)

    # -- drawing -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        schedule = sde.sigmas(sampling.steps, sampling.shift)

        def draw(edit: bool, rows: list[int]) -> list[Latents]:
            own, theirs = pick(rows, seeds), pick(rows, contexts)
            with self.autocast(sampling=True):
                velocity = self._guided(theirs, sampling, edit)
                starts = of_first(theirs, own) if sampling.shared_start else own
                x = sde.start(starts, self.network.latent_shape, self.device)
                return sde.sample(velocity, x, schedule, sampling, own)

        actions = in_kinds(list(map(edits, contexts)), draw)
        if not sampling.score_conditional:
            return list(actions)
        return [replace(a, logp=p.cpu()) for a, p in zip(actions, self(contexts, actions), strict=True)]

    def _guided(self, contexts: Sequence[Context], sampling: Sampling, edit: bool, scored: bool = False) -> Guided:
        conditional = scored and sampling.score_conditional
        shares: Shares = [("nothing", 1.0)] if conditional else branch_shares(sampling, edit)
        branches = [[Ask.of(context, hides) for context in contexts] for hides, _ in shares]
        return self._conditioned(branches, [share for _, share in shares], edit)

    def _conditioned(self, branches: Sequence[Sequence[Ask]], shares: Sequence[float], edit: bool) -> Guided:
        """The velocity under what every branch may know of every row, each distinct prompt and source computed once."""
        asked = [ask for branch in branches for ask in branch]
        numbers = {key: number for number, key in enumerate(dict.fromkeys(ask.key for ask in asked))}
        prompts = {ask.key: without(ask.context.parts, ask.hides) for ask in asked}
        source, sources = self._sources(asked) if edit else (None, [0] * len(asked))
        shape = (len(branches), -1)
        return Guided(
            self.network.transformer,
            torch.tensor(shares, device=self.device),
            *self._understood([prompts[key] for key in numbers], edit),
            torch.tensor([numbers[ask.key] for ask in asked], device=self.device).view(shape),
            source,
            torch.tensor(sources, device=self.device).view(shape),
        )

    def _understood(self, prompts: Sequence[Sequence[Any]], edit: bool) -> tuple[Tensor, Tensor | None]:
        """What the diffusion transformer attends to, of every prompt. [K, Q, W], and pooled [K, P]"""
        queries = self.network.bridge.queries["edit" if edit else "draw"]
        runs = self._see([self.chat.pieces(prompt) for prompt in prompts], self.network.config.source_side)
        embeds = [torch.cat([row, queries.to(row.dtype)]) for row in self._embed(runs)]
        places = [positions(row, more=len(queries)) for row in runs]
        again = self.config.gradient_checkpointing
        states = causal.run_prefixes(self.decoder, embeds, keep=False, positions=places, recompute=again).hidden
        return self.network.bridge(states[:, -len(queries) :])

    def _sources(self, asked: Sequence[Ask]) -> tuple[Tensor, list[int]]:
        """What distinct sources add to embedded latents [M + 1, positions, E], the last of nothing; who adds which."""
        contexts = list({id(ask.context): ask.context for ask in asked}.values())
        latents, noise = self._source_latents([cast(Picture, source_of(context)) for context in contexts])
        added = self.network.source_tokens(latents, noise)
        numbers = {id(context): number for number, context in enumerate(contexts)}
        which = [numbers[id(ask.context)] if ask.sees_source else len(contexts) for ask in asked]
        return torch.cat([added, torch.zeros_like(added[:1])]), which

    @torch.no_grad()
    def _source_latents(self, pictures: Sequence[Picture]) -> tuple[Tensor, Tensor]:
        """Latents of sources, and noise that depends on the source alone, so that replay sees the same. [M, C, h, w]"""
        squares = [square(p, self.network.pixels) for p in pictures if not isinstance(p, Latents | Noised)]
        encoded, seen = iter(self._latents(squares)), iter(squares)
        latents = [p.path[-1].to(self.device) if isinstance(p, Latents | Noised) else next(encoded) for p in pictures]
        content = [p.path[-1].numpy() if isinstance(p, Latents | Noised) else next(seen) for p in pictures]
        noise = sde.start([zlib.crc32(c.tobytes()) for c in content], self.network.latent_shape, self.device)
        return torch.stack(latents), noise

    # -- scoring -------------------------------------------------------------------------------------------------

    def forward(
        self, contexts: Sequence[Context], actions: Sequence[Action], anchors: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Log-probability [L] of every decision of every action, differentiable; with `anchors`, the divergence from
        the reference below [2, L]. For a given drawing minus its flow-matching loss at each of its states."""

        def score(kind: Kind, some: list[Context], own: list[Any], rows: list[int]) -> list[Tensor]:
            theirs, (form, modality, sampling) = anchors and pick(rows, anchors), kind
            if modality == "text":
                return beside_divergence(self._score_replies(some, own, sampling), theirs)
            score = noising.score if form is Noised else sde.score
            with self.autocast():
                return score(self._velocity(some, own), own, theirs, self.config.states_per_pass, self.device)

        return self._each_kind(contexts, actions, score)

    @torch.no_grad()
    def anchors(self, contexts: Sequence[Context], actions: Sequence[Action]) -> list[Tensor]:
        """The means of a sampled drawing's transitions, or the velocities at a given one's states, [T, C, h, w];
        log-probabilities [L] of other actions."""

        def measure(kind: Kind, some: list[Context], own: list[Any], rows: list[int]) -> list[Tensor]:
            form, modality, sampling = kind
            if modality == "text":
                return self._score_replies(some, own, sampling)
            of_states = noising.velocities if form is Noised else sde.means
            with self.autocast():
                return of_states(self._velocity(some, own), own, self.config.states_per_pass, self.device)

        return self._each_kind(contexts, actions, measure)

    def _each_kind(
        self,
        contexts: Sequence[Context],
        actions: Sequence[Action],
        of_kind: Callable[[Kind, list[Context], list[Any], list[int]], list[Tensor]],
    ) -> list[Tensor]:
        """What `of_kind` gives of a kind, its contexts, its actions and their rows: replies first, edits apart."""
        kinds = [
            (kind_of(checked(action)), action.modality == "image" and edits(context))
            for context, action in zip(contexts, actions, strict=True)
        ]
        return in_kinds(
            kinds,
            lambda kind, rows: of_kind(kind[0], pick(rows, contexts), pick(rows, actions), rows),
            order=lambda kind: kind[0][1] == "image",
        )

    def _velocity(self, contexts: Sequence[Context], drawings: Sequence[Latents | Noised]) -> Guided:
        """What drawings of one kind are scored by; given ones as far as they hide nothing."""
        edit = edits(contexts[0])
        if not isinstance(drawings[0], Noised):
            return self._guided(contexts, drawings[0].sampling, edit, scored=True)
        hides: list[Hides] = [drawing.hides for drawing in drawings if isinstance(drawing, Noised)]
        asked = [Ask.of(*pair) for pair in zip(contexts, hides, strict=True)]
        return self._conditioned([asked], [1.0], edit)

    def select(self, actions: Sequence[Action], scoring: ScoringConfig, seed: int) -> list[Selected]:
        whole = super().select(actions, scoring, seed)
        if scoring.drawings == "noised":
            whole = noising.noised_alike(whole, seed)
        return [s if isinstance(s.action, Tokens) else selection.of_some_steps(s, scoring.rounds, seed) for s in whole]

    # -- text and pictures ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, targets: Sequence[Target], seeds: Sequence[int] | None = None) -> list[Action]:
        """The actions that stand for the targets. For a picture this is one noisy state: the noise, its level and what
        is hidden of the context are drawn."""
        return encode_each(targets, seeds, self._encode_text, self._noise_pictures)

    def _noise_pictures(self, pictures: Sequence[Image], sources: Sources) -> list[Noised]:
        latents = self._latents([square(picture, self.network.pixels) for picture in pictures])
        shift = self.network.scheduler.config.shift
        return [noising.noised_once(latent, shift, g) for latent, g in zip(latents, sources, strict=True)]

    def _encode_text(self, text: str) -> Tokens:
        return given("text", torch.tensor([*self.chat.ids(text), self.tokenizer.eos_token_id]))

    @torch.no_grad()
    def decode(self, actions: Sequence[Action]) -> list[Any]:
        return decode_each(actions, self._text, self._pictures)

    def _pictures(self, drawings: Sequence[Latents | Noised]) -> list[Image]:
        parts = self._chunks([drawing.path[-1] for drawing in drawings])
        return [_to_image(pixels) for part in parts for pixels in self._pixels(torch.stack(list(part)))]

    def _text(self, action: Tokens) -> str:
        return self.tokenizer.decode(action.ids, skip_special_tokens=True).strip()

    def _latents(self, squares: Sequence[Image]) -> list[Tensor]:
        """Scaled latents of pictures of a drawing's size. each [C, h, w]"""
        latents: list[Tensor] = []
        for part in self._chunks(squares):
            pixels = np.stack([np.asarray(image, np.float32) for image in part]) / 127.5 - 1
            with torch.autocast(self.device.type, enabled=False):
                x = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(self.device)
                latents += list(diffusion.to_latents(self.network.vae, x))
        return latents

    @torch.no_grad()
    def _pixels(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, 3, H, W], about -1..1"""
        with torch.autocast(self.device.type, enabled=False):
            return diffusion.to_pixels(self.network.vae, latents.to(self.device))

    def _chunks(self, things: Sequence[T]) -> list[Sequence[T]]:
        """What goes through the autoencoder at once."""
        size = diffusion.at_once(self.network.pixels**2)
        return [things[i : i + size] for i in range(0, len(things), size)]

    def write_checkpoint(self, network: MetaQueryNetwork, folder: Path) -> None:
        write_parts(Parts(network, self.tokenizer, self.image_processor), folder)


def checked(action: Action) -> Action:
    """The action, if it is one of this family.

    Raises:
        ValueError: a drawing that is not in latents.
    """
    if isinstance(action, Tokens) and action.modality == "image":
        raise ValueError("the metaquery family draws in latents, not in tokens")
    return action


def _to_image(pixels: Tensor) -> Image:
    """[3, H, W] in -1..1, more or less -> PIL"""
    from PIL import Image

    return Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().byte().cpu().numpy())
