"""Show-o at the published token pattern: python -m benchmarks.speed.masked [--quick]

Answering with a cache of keys and values against the published program, which has none; drawing a group in one batch
against one drawing at a time; and what an update costs by what it scores of a drawing. Prints the table and writes it
between its markers in docs/benchmarks.md (not with --quick, whose figures say little).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import transformers
import tyro
from torch import Tensor

from benchmarks.pages import publish
from benchmarks.speed import showo_published
from benchmarks.speed.compare import Row, interleaved
from benchmarks.speed.rollout import GREEDY, PROMPT
from benchmarks.speed.scoring import QUESTION
from unison.config import PolicyConfig, ScoringConfig
from unison.policies.actions import tokens_of
from unison.policies.decisions import tokens
from unison.policies.showo import magvit
from unison.policies.showo.network import PhiSizes, ShowOConfig, ShowONetwork
from unison.policies.showo.policy import ShowO
from unison.pretrain.corpus import CorpusConfig
from unison.pretrain.showo import build_tokenizer
from unison.types import Context, Sampling, Tokens

MEASURED = ShowOConfig(
    w_clip_vit=False,
    llm_vocab_size=50295,
    codebook_size=8192,
    num_vq_tokens=256,
    phi=PhiSizes(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=4,
        initializer_range=0.05,  # the usual 0.02 leaves a network this narrow blind to most of its input
    ),
)
"""The published pattern at 256 pixels: its vocabulary and its numbers of tokens; only the decoder is small."""
SCORED = {
    "1 round": ScoringConfig(rounds=1),
    "2 rounds": ScoringConfig(rounds=2),
    "4 rounds": ScoringConfig(rounds=4),
    "the whole canvas": ScoringConfig(drawings="whole_canvas"),
    "random masks": ScoringConfig(drawings="random_masks"),
}
"""What an update may score of a drawing in place of all rounds."""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """A model, drawings and replies of a few tokens, and one repetition: does everything run?"""
    threads: int = 0
    """CPU threads of both sides; 0 takes PyTorch's choice."""
    repeats: int = 3
    """Repetitions of each side, in turns."""
    cpu_time: bool = False
    """Count the seconds that the process computes, not those that pass: for a machine that others keep busy."""
    reply: int = 64
    """Tokens of a reply."""
    group: int = 8
    """Drawings of a batch."""
    trained: int = 4
    """Drawings of an update."""
    guidance: float = 5.0
    """Guidance of drawings."""
    rounds: int = 18
    """Rounds of a drawing."""

    @property
    def clock(self) -> Callable[[], float]:
        return time.process_time if self.cpu_time else time.perf_counter


def build_showo(sizes: ShowOConfig = MEASURED) -> ShowO:
    """A policy with random weights. The image tokenizer is as small as can be, for no figure is about it."""
    torch.manual_seed(0)
    one = (1,) * len(magvit.PUBLISHED.encoder_blocks)
    painter = magvit.MagvitConfig(8, 4, sizes.codebook_size.bit_length() - 1, one, one, one, one)
    network = ShowONetwork(sizes, painter).eval()
    return ShowO(network, build_tokenizer(CorpusConfig()), PolicyConfig("random"))


# -- answering -------------------------------------------------------------------------------------------------------


def answering(policy: ShowO, length: int) -> dict[str, Callable[[], Tensor]]:
    """Three ways to the greedy reply [L] to a question about one drawing."""
    drawing = tokens_of(policy.draw([Context((PROMPT,))], Sampling(rounds=4), [0])[0])
    sampling = Sampling(temperature=GREEDY, max_tokens=length)
    published = partial(showo_published.logits, policy.network)

    def unison() -> Tensor:
        return policy.write([Context((drawing, QUESTION))], sampling, [0])[0].ids

    return {
        "unison": unison,
        "published": lambda: recomputed_reply(policy, drawing, sampling, published),
        "last": lambda: recomputed_reply(policy, drawing, sampling, lambda ids, mask: _last(policy, ids, mask)),
    }


@torch.no_grad()
def recomputed_reply(
    policy: ShowO, drawing: Tokens, sampling: Sampling, logits: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """A reply as the published program writes it: every token from a pass over the whole sequence. [L]

    Args:
        logits: ids [1, S] and who attends to whom [1, S, S] -> [1, any, V], of which the last are used.
    """
    layout = policy.layout
    image = (drawing.ids + layout.first_image).tolist()
    start = showo_published.answering(layout, image, policy._ids(policy.question(QUESTION)))
    ids = torch.tensor([start])
    for u in tokens.uniforms([0], sampling.max_tokens)[0]:
        last = logits(ids, showo_published.answering_mask(layout, ids))[:, -1]
        chosen, _ = tokens.step(last, sampling.temperature, u=u[None])
        ids = torch.cat([ids, chosen[None]], 1)
        if int(chosen) == layout.eot:
            break
    return ids[0, len(start) :]


def _last(policy: ShowO, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits of the last position alone, without a cache. [1, 1, V]"""
    states = policy.decoder(input_ids=ids, attention_mask=mask[:, None], use_cache=False).last_hidden_state
    return policy.network.showo.lm_head(states[:, -1:])


def _answering_rows(policy: ShowO, options: Options) -> Iterator[Row]:
    sides = answering(policy, options.reply)
    first, *others = [run() for run in sides.values()]
    assert len(first) == options.reply, "the random model ended its reply"
    assert all(torch.equal(first, other) for other in others), "both sides write the same reply"
    seconds = interleaved(sides, options.repeats, options.clock, warm_up=False)
    what = f"answer in {options.reply} tokens about {policy.layout.image_tokens} image tokens"
    yield Row(what, seconds["unison"], seconds["published"], "published way, no cache", "s", "3")
    yield Row(what, seconds["unison"], seconds["last"], "no cache, logits of the last position alone", "s", "")


# -- drawing ---------------------------------------------------------------------------------------------------------


def drawing(policy: ShowO, group: int, sampling: Sampling) -> dict[str, Callable[[], Tensor]]:
    """Two ways to the same group of drawings, ids [G, N]."""
    context = Context((PROMPT,))

    def draw(seeds: list[int]) -> list[Tensor]:
        return [tokens_of(action).ids for action in policy.draw([context] * len(seeds), sampling, seeds)]

    return {
        "together": lambda: torch.stack(draw([*range(group)])),
        "alone": lambda: torch.stack([ids for seed in range(group) for ids in draw([seed])]),
    }


def _drawing_rows(policy: ShowO, options: Options) -> Iterator[Row]:
    sampling = Sampling(guidance=options.guidance, rounds=options.rounds)
    seconds = interleaved(drawing(policy, options.group, sampling), options.repeats, options.clock)
    what = f"draw {options.group} times {policy.layout.image_tokens} tokens in {options.rounds} rounds, guided, a batch"
    yield Row(what, seconds["together"], seconds["alone"], "one at a time", "s", "")


# -- updating --------------------------------------------------------------------------------------------------------


def updating(policy: ShowO, count: int, sampling: Sampling) -> dict[str, Callable[[], Tensor]]:
    """Scoring and backward pass of drawings of one prompt, each giving log-probabilities [B, N] (0 where left out)."""
    contexts = [Context((PROMPT,))] * count
    drawings = policy.draw(contexts, sampling, range(count))
    draws = iter(range(10**9))  # every call scores another random part

    def update(scoring: ScoringConfig) -> Tensor:
        scored = policy.select(drawings, scoring, next(draws))
        logps = policy(contexts, [s.action for s in scored])
        total = torch.stack([(logp * s.share.to(logp.device)).sum() for logp, s in zip(logps, scored, strict=True)])
        total.mean().backward()
        policy.zero_grad()
        return torch.stack(logps).detach()

    choices = {"all rounds": ScoringConfig(), **SCORED}
    return {name: lambda scoring=scoring: update(scoring) for name, scoring in choices.items()}


def _updating_rows(policy: ShowO, options: Options) -> Iterator[Row]:
    sampling = Sampling(guidance=options.guidance, rounds=options.rounds)
    seconds = interleaved(updating(policy, options.trained, sampling), options.repeats, options.clock)
    for name in SCORED:
        what = f"score {name} of {options.trained} drawings, guided, forward and backward"
        yield Row(what, seconds[name], seconds["all rounds"], f"all {options.rounds} rounds", "s", "")


# -- the command -----------------------------------------------------------------------------------------------------


def measure(options: Options) -> Iterator[Row]:
    """The rows of the table, one after another."""
    policy = build_showo(replace(MEASURED, num_vq_tokens=16) if options.quick else MEASURED)
    if options.quick:
        options = replace(options, repeats=1, reply=4, group=2, trained=2, rounds=5)
    yield from _answering_rows(policy, options)
    yield from _drawing_rows(policy, options)
    yield from _updating_rows(policy, options)


def main(options: Options) -> None:
    """Measures, prints, writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    phi = MEASURED.phi
    sizes = (
        f"Show-o of width {phi.hidden_size} and {phi.num_hidden_layers} layers, random weights, "
        f"{MEASURED.vocab_size:,} entries of the vocabulary, {MEASURED.num_vq_tokens} image tokens"
    )
    publish("benchmarks.speed.masked", measure(options), options.repeats, sizes, written=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
