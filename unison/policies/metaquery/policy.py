"""MetaQuery: a language model that reads and writes, and a diffusion model that draws what it has understood.

Text is written autoregressively by a Qwen2.5-VL. A drawing is a denoising path in latents (`sde.py`), under a context
that the language model gives once per distinct prompt: its last states at the learnable queries, through the bridge
(`metaquery_net.py`). A context with a picture or an earlier drawing is an edit of the last of them: the vision tower
sees it, and its latent is added to the embedded noisy latents. Earlier drawings stay latents: they are a source as they
are, and the vision tower sees their decoded pixels unrounded.

Guidance of a drawing is u + w (c - u); that of an edit, with i seeing the source alone and u nothing at all,

    u + s (i - u) + w (c - i),       w = `guidance`, s = `source_guidance`

so a branch whose weight is 0 is not computed: i and c are enough at s = 1.

Supervised, a picture is one noisy state of itself: `encode` draws noise, a level sigmoid(N(0, 1)) in the time shift of
the scheduler, as SANA was trained, and what is hidden, and such a given drawing is scored by its flow-matching loss
(`noising.py`). A drawing of the policy's own can be scored so too, at the levels of its schedule and with nothing
hidden (`scoring.drawings` "noised").

Sources: MetaQuery (arXiv 2504.06256); UniRL-Zero (arXiv 2510.17937) for editing, guidance and its training.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from unison.config import PolicyConfig, ScoringConfig
from unison.policies.base import Policy, Target, by_kind, distinct, given, own_tokens, sampled, tokens_of
from unison.policies.decisions import noising, sde, selection
from unison.policies.decisions.tokens import beside_divergence, uniforms
from unison.policies.decoding import causal, refill
from unison.policies.metaquery import diffusion
from unison.policies.metaquery.layout import (
    Chat,
    Hides,
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
from unison.types import Action, Context, Latents, Sampling, Selected, Tokens

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
DROPPED = 0.05  # share of given drawings without their text, and without their source, and without both
Shares: TypeAlias = list[tuple[Hides, float]]
"""Branches of guidance, each by what it hides, with its share of the velocity."""


@dataclass(frozen=True)
class Ask:
    """What a branch of guidance may know of a row."""

    context: Context
    hides: Hides

    @classmethod
    def of(cls, context: Context, hides: Hides) -> Ask:
        """An unconditional context hides everything itself."""
        return cls(context, "everything" if context.unconditional else hides)

    @property
    def key(self) -> tuple[int, Hides]:
        """Equal where the prompt is: siblings share one context, and all without one share one."""
        return 0 if self.hides == "everything" else id(self.context), self.hides

    @property
    def sees_source(self) -> bool:
        return self.hides in ("nothing", "text")


@dataclass(frozen=True)
class Guided:
    """The velocity of B rows after guidance, in one pass of the diffusion transformer for all branches."""

    transformer: Any
    shares: Tensor  # [branches]
    context: Tensor  # [K, Q, W] what the language model understood
    pooled: Tensor | None  # [K, P]
    context_of: Tensor  # [branches, B]
    source: Tensor | None  # [M, positions, E] what edits add to embedded latents, the last of nothing
    source_of: Tensor  # [branches, B]

    def __call__(self, x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """States [n, C, h, w], their sigmas [n] and the rows that they belong to [n] -> [n, C, h, w] float32"""
        count = len(self.shares)
        which, source = self.context_of[:, rows].flatten(), self.source_of[:, rows].flatten()
        v = diffusion.velocity(
            self.transformer,
            x.repeat(count, 1, 1, 1),
            sigma.repeat(count),
            self.context[which],
            None if self.pooled is None else self.pooled[which],
            None if self.source is None else self.source[source],
        )
        return (self.shares.view(-1, 1, 1, 1, 1) * v.unflatten(0, (count, -1))).sum(0)


class MetaQuery(Policy):
    """The MetaQuery family, of a Qwen2.5-VL and a flow-matching transformer of `diffusers`."""

    family = "metaquery"
    abilities = frozenset({"write", "draw", "edit", "denoise drawings"})
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
        stop = self.tokenizer.eos_token_id
        with self.autocast(sampling=True):
            prefixes, places, rows = self._questions(contexts)
            u = uniforms(seeds, sampling.max_tokens, self.device)
            ids, logp = refill.sample(
                self.decoder,
                prefixes,
                rows,
                *self._words,
                sampling,
                u,
                stop,
                positions=places,
                decoding=causal.Decoding.of(self.config),
            )
        return [sampled("text", i, p, stop, sampling) for i, p in zip(ids, logp, strict=True)]

    def _score_replies(
        self, contexts: Sequence[Context], actions: Sequence[Tokens], sampling: Sampling
    ) -> list[Tensor]:
        with self.autocast():
            prefixes, places, rows = self._questions(contexts)
            ids = [action.ids for action in actions]
            way = causal.Scoring.of(self.config)
            return causal.score(
                self.decoder, prefixes, rows, *self._words, sampling, ids, positions=places, scoring=way
            )

    def _questions(self, contexts: Sequence[Context]) -> tuple[list[Tensor], list[Tensor], causal.Rows]:
        """Embeddings [S, D] and positions [3, S] of every distinct context, and which each row continues."""
        if any(context.unconditional for context in contexts):
            raise ValueError("an unconditional context is for drawing: a reply has no unconditional prompt")
        different, rows = distinct(contexts)
        runs = self._see([self.chat.pieces(context.parts) for context in different])
        prefix_of = causal.Rows(torch.tensor(rows, device=self.device), None)
        return self._embed(runs), [positions(row) for row in runs], prefix_of

    @property
    def _words(self) -> tuple[Any, Any]:
        return self.network.qwen.get_input_embeddings(), self.network.qwen.lm_head

    # -- reading -------------------------------------------------------------------------------------------------

    def _see(self, rows: Sequence[Sequence[Piece]], side: int = 0) -> list[list[Run]]:
        """Pictures as the vision tower takes them, each once however often it occurs; squares of `side` if given."""
        seen: dict[int, Seen] = {}
        for piece in (piece for row in rows for piece in row if not isinstance(piece, list)):
            if id(piece) not in seen:
                seen[id(piece)] = self._look(piece, side)
        return [[piece if isinstance(piece, list) else seen[id(piece)] for piece in row] for row in rows]

    def _look(self, picture: Picture, side: int) -> Seen:
        if not isinstance(picture, Latents):
            return see_picture(square(picture, side) if side else picture, self.image_processor)
        pixels = (self._pixels(picture.path[-1:])[0] / 2 + 0.5).clamp(0, 1)
        return see_pixels(resized(pixels, (side, side)) if side else pixels, self.image_processor)

    def _embed(self, rows: Sequence[Sequence[Run]]) -> list[Tensor]:
        """Embeddings of every row, all ids in one look-up and all distinct images in one pass. each [S, D]"""
        runs = [run for row in rows for run in row if isinstance(run, list)]
        flat = torch.tensor([i for run in runs for i in run], device=self.device)
        words = iter(self.network.qwen.get_input_embeddings()(flat).split([len(run) for run in runs]))
        images = {id(run): run for row in rows for run in row if isinstance(run, Seen)}
        pictures = dict(zip(images, self._features(list(images.values())) if images else (), strict=True))
        return [torch.cat([next(words) if isinstance(run, list) else pictures[id(run)] for run in row]) for row in rows]

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
        own = [self._own_tokens(row, text) for row, text in zip(rows, texts, strict=True)]
        return [
            (state[start : start + len(row[1])], state[-len(mask) :][mask])
            for state, row, start, mask in zip(states, rows, starts, own, strict=True)
        ]

    def _own_tokens(self, row: Sequence[Run], text: str) -> Tensor:
        """Which of the tokens after the image are the text's own, not the template's. bool"""
        segment = self.tokenizer.decode(row[-1], clean_up_tokenization_spaces=False)
        return own_tokens(self.tokenizer, segment, text).to(self.device)

    # -- drawing -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def draw(self, contexts: Sequence[Context], sampling: Sampling, seeds: Sequence[int]) -> list[Action]:
        schedule = sde.sigmas(sampling.steps, sampling.shift)
        drawn: dict[int, Action] = {}
        for edit, rows in _by_edit(contexts, range(len(contexts))):
            own, theirs = [seeds[row] for row in rows], [contexts[row] for row in rows]
            with self.autocast(sampling=True):
                velocity = self._guided(theirs, sampling, edit)
                starts = _of_first(theirs, own) if sampling.shared_start else own
                x = sde.start(starts, self.network.latent_shape, self.device)
                drawn |= dict(zip(rows, sde.sample(velocity, x, schedule, sampling, own), strict=True))
        actions = [drawn[row] for row in range(len(contexts))]
        if not sampling.score_conditional:
            return actions
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
        squares = [p if isinstance(p, Latents) else square(p, self.network.pixels) for p in pictures]
        encoded = iter(self._latents([s for s in squares if not isinstance(s, Latents)]))
        latents = [s.path[-1].to(self.device) if isinstance(s, Latents) else next(encoded) for s in squares]
        content = [s.path[-1].numpy().tobytes() if isinstance(s, Latents) else s.tobytes() for s in squares]
        noise = sde.start([zlib.crc32(c) for c in content], self.network.latent_shape, self.device)
        return torch.stack(latents), noise

    # -- scoring -------------------------------------------------------------------------------------------------

    def forward(
        self, contexts: Sequence[Context], actions: Sequence[Action], anchors: Sequence[Tensor] | None = None
    ) -> list[Tensor]:
        """Log-probability [L] of every decision of every action, differentiable; with `anchors`, the divergence from
        the reference below [2, L]. For a given drawing minus its flow-matching loss at each of its states."""
        scores: dict[int, Tensor] = {}
        for (modality, sampling), rows in by_kind(actions).items():
            if modality == "text":
                found = self._score_replies(_of(rows, contexts), [tokens_of(a) for a in _of(rows, actions)], sampling)
                scores |= dict(zip(rows, beside_divergence(found, anchors and _of(rows, anchors)), strict=True))
        for rows, velocity, paths in self._paths(contexts, actions):
            with self.autocast():
                found = sde.score(
                    velocity, paths, anchors and _of(rows, anchors), self.config.states_per_pass, self.device
                )
            scores |= dict(zip(rows, found, strict=True))
        for rows, velocity, drawings in self._given(contexts, actions):
            with self.autocast():
                found = noising.score(
                    velocity, drawings, anchors and _of(rows, anchors), self.config.states_per_pass, self.device
                )
            scores |= dict(zip(rows, found, strict=True))
        return [scores[row] for row in range(len(actions))]

    @torch.no_grad()
    def anchors(self, contexts: Sequence[Context], actions: Sequence[Action]) -> list[Tensor]:
        """The means of a sampled drawing's transitions, or the velocities at a given one's states, [T, C, h, w];
        log-probabilities [L] of other actions."""
        found: dict[int, Tensor] = {}
        for rows, velocity, paths in self._paths(contexts, actions):
            with self.autocast():
                means = sde.means(velocity, paths, self.config.states_per_pass, self.device)
            found |= dict(zip(rows, means, strict=True))
        for rows, velocity, drawings in self._given(contexts, actions):
            with self.autocast():
                velocities = noising.velocities(velocity, drawings, self.config.states_per_pass, self.device)
            found |= dict(zip(rows, velocities, strict=True))
        others = [row for row in range(len(actions)) if row not in found]
        found |= dict(zip(others, self(_of(others, contexts), _of(others, actions)), strict=True))
        return [found[row] for row in range(len(actions))]

    def _paths(
        self, contexts: Sequence[Context], actions: Sequence[Action]
    ) -> Iterator[tuple[list[int], Guided, list[Latents]]]:
        """Sampled drawings of one kind each time: their rows, their velocity and themselves."""
        for (modality, sampling), rows in by_kind(actions).items():
            if modality == "image" and sampling.steps:
                for edit, own in _by_edit(contexts, rows):
                    with self.autocast():
                        velocity = self._guided(_of(own, contexts), sampling, edit, scored=True)
                    yield own, velocity, [latents_of(a) for a in _of(own, actions)]

    def _given(
        self, contexts: Sequence[Context], actions: Sequence[Action]
    ) -> Iterator[tuple[list[int], Guided, list[Latents]]]:
        """Given drawings, edits or not: their rows, their velocity under what each hides, and themselves."""
        drawings = {row: a for row, a in enumerate(actions) if isinstance(a, Latents) and not a.sampling.steps}
        for edit, own in _by_edit(contexts, drawings):
            asked = [Ask.of(contexts[row], _hidden_from(drawings[row].sampling)) for row in own]
            with self.autocast():
                velocity = self._conditioned([asked], [1.0], edit)
            yield own, velocity, [drawings[row] for row in own]

    def select(self, actions: Sequence[Action], scoring: ScoringConfig, seed: int) -> list[Selected]:
        whole = super().select(actions, scoring, seed)
        if scoring.drawings == "noised":
            whole = noising.noised_alike(whole, seed)
        return [_select_steps(s, scoring.rounds, seed) if isinstance(s.action, Latents) else s for s in whole]

    # -- text and pictures ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, targets: Sequence[Target | Latents]) -> list[Action]:
        """The actions that stand for the targets. For a picture this is one noisy state, with the noise, its level and
        what is hidden of the context drawn from torch's global generator, so that every epoch is another."""
        pictures = [square(t, self.network.pixels) for t in targets if not isinstance(t, str | Tokens | Latents)]
        shift = self.network.scheduler.config.shift
        noised = iter([_noised(latent, shift) for latent in self._latents(pictures)])
        return [
            t if isinstance(t, Tokens | Latents) else self._encode_text(t) if isinstance(t, str) else next(noised)
            for t in targets
        ]

    def _encode_text(self, text: str) -> Tokens:
        return given("text", torch.tensor([*self.chat.ids(text), self.tokenizer.eos_token_id]))

    @torch.no_grad()
    def decode(self, actions: Sequence[Action]) -> list[Any]:
        pixels = (p for part in self.paint([a for a in actions if isinstance(a, Latents)]) for p in part)
        return [_to_image(next(pixels)) if isinstance(action, Latents) else self._text(action) for action in actions]

    def paint(self, drawings: Sequence[Action]) -> Iterator[Tensor]:
        for part in self._chunks(drawings):
            yield self._pixels(torch.stack([latents_of(drawing).path[-1] for drawing in part]))

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

    def save(self, folder: Path) -> None:
        from unison.policies.adapters import merged

        write_parts(Parts(merged(self), self.tokenizer, self.image_processor), folder)


# -- guidance --------------------------------------------------------------------------------------------------------


def branch_shares(sampling: Sampling, edit: bool) -> Shares:
    """The branches of guidance with their shares, which add up to 1; none of a branch without a share.

    At `source_guidance` 1 an edit needs no unconditional branch.
    """
    w, s = sampling.guidance, sampling.source_guidance
    edits: Shares = [("nothing", w), ("text", s - w), ("everything", 1 - s)]
    draws: Shares = [("nothing", w), ("everything", 1 - w)]
    return [(hides, share) for hides, share in (edits if edit else draws) if share]


def _by_edit(contexts: Sequence[Context], rows: Iterable[int]) -> list[tuple[bool, list[int]]]:
    """The rows that are edits, and those that are not, as far as there are any."""
    kinds: dict[bool, list[int]] = {}
    for row in rows:
        kinds.setdefault(source_of(contexts[row]) is not None, []).append(row)
    return list(kinds.items())


# -- given drawings --------------------------------------------------------------------------------------------------


def _noised(latent: Tensor, shift: float) -> Latents:
    """A latent as a given drawing: `path` is noise and the latent, `sigmas` the level at which it is to be learned and
    0; steps = 0 says that it was not sampled, and guidance scales of 0 what is hidden."""
    sigma = sde.shifted(torch.sigmoid(torch.randn(())), shift)
    hides = min(int(torch.rand(()) / DROPPED), 3)
    text, source = ((0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, 1.0))[hides]
    return Latents(
        path=torch.stack([torch.randn(latent.shape), latent.cpu()]),
        sigmas=torch.stack([sigma, torch.zeros(())]),
        logp=torch.zeros(1),
        mask=torch.ones(1, dtype=torch.bool),
        sampling=Sampling(steps=0, guidance=text, source_guidance=source),
    )


def _hidden_from(sampling: Sampling) -> Hides:
    """What a given drawing's sampling hides of its context."""
    if sampling.guidance:
        return "nothing" if sampling.source_guidance else "source"
    return "text" if sampling.source_guidance else "everything"


def _of_first(contexts: Sequence[Context], seeds: Sequence[int]) -> list[int]:
    """The seed of the first row that has the same context, for every row."""
    first: dict[int, int] = {}
    return [first.setdefault(id(context), seed) for context, seed in zip(contexts, seeds, strict=True)]


# -- small helps -----------------------------------------------------------------------------------------------------


def _select_steps(whole: Selected, steps: int, seed: int) -> Selected:
    path = latents_of(whole.action)
    return selection.of_some_rounds(
        whole, torch.arange(len(path)), path.path[0], steps, seed
    )  # noise, which no rounding reaches


def latents_of(action: Action) -> Latents:
    """The action, which must be a denoising path.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(action, Latents):
        raise ValueError("the metaquery family draws in latents, not in tokens")
    return action


def _of(rows: Sequence[int], things: Sequence[T]) -> list[T]:
    return [things[row] for row in rows]


def _to_image(pixels: Tensor) -> Image:
    """[3, H, W] in -1..1, more or less -> PIL"""
    from PIL import Image

    return Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).clamp(0, 255).round().byte().cpu().numpy())
