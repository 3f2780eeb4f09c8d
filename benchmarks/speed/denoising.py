"""Log-probabilities of denoising paths and their gradient, two ways: python -m benchmarks.speed.denoising [--quick]

The network is the real SANA transformer with random weights. A pass per step is what published trainers do: for every
step a forward and a backward pass, gradients adding up. The last rows score a group with what the language model made
of its prompt computed once, and for every sibling. Prints the table and writes it between its markers in
docs/benchmarks.md (not with --quick, whose figures say little).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import diffusers
import torch
import tyro
from torch import Tensor, nn

from benchmarks.pages import publish
from benchmarks.speed.compare import Row, interleaved
from unison.policies.decisions import sde
from unison.pretrain.corpus import CorpusConfig
from unison.pretrain.metaquery import as_policy, build_metaquery
from unison.types import Context, Latents, Sampling


@dataclass(frozen=True)
class Options:
    """What is measured."""

    quick: bool = False
    """One repetition of the first row: does everything run?"""
    threads: int = 0
    """CPU threads; 0 takes PyTorch's choice."""
    repeats: int = 5
    """Repetitions of each side, in turns."""


@dataclass(frozen=True)
class SanaSize:
    """Sizes of network, latents and condition."""

    width: int
    layers: int
    heads: int
    channels: int
    side: int
    tokens: int
    """Of the condition."""

    def describe(self) -> str:
        return f"width {self.width}, {self.layers} layers, {self.side} x {self.side} latents"


TOY = SanaSize(width=64, layers=4, heads=2, channels=8, side=4, tokens=16)  # as a bundled model would be
SMALL = SanaSize(width=256, layers=6, heads=8, channels=32, side=8, tokens=64)
PUBLISHED = SanaSize(width=384, layers=10, heads=12, channels=32, side=32, tokens=256)  # SANA's latents, 25 million
MEASURED = ((TOY, 1), (TOY, 8), (SMALL, 1), (SMALL, 8), (PUBLISHED, 1))
"""Sizes, and paths of a micro-batch."""
SAMPLING = Sampling(steps=10)
WINDOW = (3, 4)
"""Steps that a window of two trains."""


def build_sana(size: SanaSize) -> nn.Module:
    """The transformer with random weights."""
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel

    torch.manual_seed(0)
    return SanaTransformer2DModel(
        in_channels=size.channels,
        out_channels=size.channels,
        num_layers=size.layers,
        num_attention_heads=size.heads,
        attention_head_dim=size.width // size.heads,
        num_cross_attention_heads=size.heads,
        cross_attention_head_dim=size.width // size.heads,
        cross_attention_dim=size.width,
        caption_channels=size.width,
        sample_size=size.side,
        patch_size=1,
    )


def sides(size: SanaSize, rows: int, sampling: Sampling) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    """Scorers of the same drawings, each giving log-probabilities [B, S] and the network's gradient [N]."""
    network = build_sana(size)
    condition = torch.randn(rows, size.tokens, size.width, generator=torch.Generator().manual_seed(0))

    def velocity(x: Tensor, sigma: Tensor, row: Tensor) -> Tensor:
        return network(x, encoder_hidden_states=condition[row], timestep=1000 * sigma).sample

    seeds = range(rows)
    start = sde.start(seeds, (size.channels, size.side, size.side))
    drawings = sde.sample(velocity, start, sde.sigmas(sampling.steps, sampling.shift), sampling, seeds)

    def score(*parts: list[Latents]) -> tuple[Tensor, Tensor]:
        logp = torch.zeros(rows, sampling.steps)
        for part in parts:
            scored = torch.stack(sde.score(velocity, part))
            scored.sum().backward()
            logp += scored.detach()
        gradient = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
        network.zero_grad()
        return logp, gradient

    return {
        "together": lambda: score(drawings),
        "step by step": lambda: score(*([only(drawing, s) for drawing in drawings] for s in trained(drawings))),
        "window": lambda: score([only(drawing, *WINDOW) for drawing in drawings]),
    }


GROUP = 8
LANGUAGE = {"width": 256, "layers": 8, "queries": 64}
"""Of the MetaQuery whose prompts are embedded; its transformer is the bundled one's size."""


def group_sides(steps: int) -> dict[str, Callable[[], list[Tensor]]]:
    """Scorers of a group's drawings under one context that siblings share, and under an equal one each."""
    torch.manual_seed(0)
    parts = build_metaquery(CorpusConfig(), **LANGUAGE)
    policy = as_policy(parts, frozen=("^qwen",))
    shared = Context(("a red circle left of a blue square, and two green crosses below them",))
    drawings = policy.draw([shared] * GROUP, replace(SAMPLING, noisy_steps=tuple(range(steps))), range(GROUP))

    def score(contexts: list[Context]) -> list[Tensor]:
        logps = policy(contexts, drawings)
        torch.cat(logps).sum().backward()
        policy.zero_grad()
        return [logp.detach() for logp in logps]

    return {
        "shared": lambda: score([shared] * GROUP),
        "each": lambda: score([Context(shared.parts) for _ in range(GROUP)]),
    }


def trained(drawings: list[Latents]) -> list[int]:
    return drawings[0].mask.nonzero().flatten().tolist()


def only(drawing: Latents, *steps: int) -> Latents:
    """The drawing with some of its steps trained."""
    return replace(drawing, mask=torch.isin(torch.arange(len(drawing)), torch.tensor(steps)))


def measure(options: Options) -> Iterator[Row]:
    """The rows of the table, one after another."""
    for size, rows in MEASURED[: 1 if options.quick else None]:
        seconds = interleaved(sides(size, rows, SAMPLING), 1 if options.quick else options.repeats)
        together = seconds["together"]
        what = f"score {SAMPLING.steps} steps of {rows} paths, {size.describe()}"
        yield Row(what, together, seconds["step by step"], "step by step", "s", "2" if size is TOY else "-")
        what = f"score {len(WINDOW)} of these steps"
        yield Row(what, seconds["window"], together, f"all {SAMPLING.steps}", "s", "-")
    for steps in (1,) if options.quick else (1, 4):
        seconds = interleaved(group_sides(steps), 1 if options.quick else options.repeats)
        what = f"score {steps} steps of {GROUP} siblings, language model of width 256 with 8 layers and 64 queries"
        yield Row(what, seconds["shared"], seconds["each"], "prompt embedded for each", "s", "-")


def main(options: Options) -> None:
    """Measures, prints, writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    model = f"SanaTransformer2DModel of diffusers {diffusers.__version__}, random weights"
    publish("benchmarks.speed.denoising", measure(options), options.repeats, model, written=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
