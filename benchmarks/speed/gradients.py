"""The policy gradient of cheaper scorings against that of all rounds: python -m benchmarks.speed.gradients <checkpoint>

Every batch is a step's drawings of the world's prompts, judged and compared within their groups. Prints the table and
writes it between its markers in docs/benchmarks.md (not with --quick, whose figures say little).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import transformers
import tyro
from torch import Tensor

from benchmarks.pages import publish_lines
from benchmarks.speed.masked import SCORED
from unison import scenarios
from unison.config import AdvantageConfig, DataConfig, PolicyConfig, ScenarioConfig, ScoringConfig
from unison.data import open_items
from unison.evaluation.stats import Estimate, task_mean
from unison.objectives.advantage import advantages_of
from unison.policies import load_policy
from unison.policies.actions import tokens_of
from unison.policies.base import Policy
from unison.pretrain.showo import SAMPLED
from unison.rewards import judge, load_rewards, weigh
from unison.scenarios.common import Seeds
from unison.scenarios.rollout import roll_out
from unison.types import Action, Context, Sampling, Selected, group_rows

HEADER = (
    "| scored | canvases a drawing | cosine, one choice | cosine, mean of {draws} choices | if unbiased |\n"
    "|---|---|---|---|---|"
)
COMPARED = {**SCORED, "random masks of at least 0.7": ScoringConfig(drawings="random_masks", least_masked=0.7)}


@dataclass(frozen=True)
class Options:
    """What is measured."""

    checkpoint: tyro.conf.Positional[str]
    """Checkpoint of a model that draws by masked decoding."""
    quick: bool = False
    """Two batches of two prompts and two choices each: does everything run?"""
    threads: int = 0
    """CPU threads; 0 takes PyTorch's choice."""
    batches: int = 8
    """Batches, over which the intervals are."""
    prompts: int = 4
    """Prompts of a batch."""
    group: int = 8
    """Drawings of a prompt."""
    draws: int = 16
    """Random choices of each kind in each batch."""
    guidance: float = SAMPLED.guidance
    """Guidance of drawings."""
    rounds: int = SAMPLED.rounds
    """Rounds of a drawing."""
    choice_temperature: float = SAMPLED.choice_temperature
    """Weight of the noise in the choice of the positions to decide."""
    reward: str = "world"
    """Reward by name; `random` takes random numbers, for a model whose drawings earn nothing."""


@dataclass(frozen=True)
class Batch:
    """Drawings with their advantages, as an update gets them."""

    contexts: Sequence[Context]
    drawings: Sequence[Action]
    advantages: Sequence[float]


@dataclass(frozen=True)
class Agreement:
    """What a scoring's gradients in one batch have in common with that of all rounds."""

    canvases: float
    """Canvases that are read for a drawing."""
    one: float
    """Cosine of the gradient of one choice, mean over choices."""
    mean: float
    """Cosine of the mean of these gradients."""


def draw_batch(policy: Policy, options: Options, number: int) -> Batch:
    """Drawings of a batch of its own.

    Raises:
        ValueError: no two siblings of it differ in reward, so that it has no gradient.
    """
    items = open_items("world", "train", DataConfig(), number, options.prompts)
    image = Sampling(guidance=options.guidance, rounds=options.rounds, choice_temperature=options.choice_temperature)
    config = ScenarioConfig("t2i", group_size=options.group, image=image)
    prompts = [items[i] for i in range(options.prompts)]
    trajectories = roll_out(policy, scenarios.find("t2i"), prompts, config, Seeds(number, 0), chunk=options.prompts)
    if options.reward == "random":
        rewards: list[float | None] = torch.randn(len(trajectories), generator=_generator(number)).tolist()
    else:
        judge(trajectories, load_rewards([options.reward]), policy)
        weigh(trajectories, {options.reward: 1.0})
        rewards = [t.reward for t in trajectories]
    advantages, _ = advantages_of(rewards, group_rows(trajectories), AdvantageConfig())
    if not any(advantages):
        raise ValueError(f"reward = {options.reward!r}: no siblings of batch {number} differ; take `--reward random`")
    kept = [(t.turns[0], a) for t, a in zip(trajectories, advantages, strict=True) if a is not None]
    return Batch([t.context for t, _ in kept], [t.action for t, _ in kept], [a for _, a in kept])


def gradient(policy: Policy, batch: Batch, scored: Sequence[Selected]) -> Tensor:
    """Of GRPO's loss at ratio 1: minus the mean over decisions of advantage times log-probability. [weights]"""
    logps = policy(batch.contexts, [s.action for s in scored])
    terms = [
        a * (s.share.to(logp.device) * logp).sum() / s.share.numel()
        for a, s, logp in zip(batch.advantages, scored, logps, strict=True)
    ]
    trained = [p for p in policy.parameters() if p.requires_grad]
    found = torch.autograd.grad(-torch.stack(terms).mean(), trained, allow_unused=True)
    return torch.cat(
        [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(trained, found, strict=True)]
    )


def agreement(policy: Policy, batch: Batch, whole: Tensor, scoring: ScoringConfig, draws: int) -> Agreement:
    """Of the gradients of `draws` random choices with the gradient `whole` of all rounds."""
    cosines, canvases, total = [], [], torch.zeros_like(whole)
    for seed in range(1 if scoring.drawings == "whole_canvas" else draws):  # it has nothing to choose
        scored = policy.select(batch.drawings, scoring, seed)
        found = gradient(policy, batch, scored)
        total += found
        cosines.append(cosine(found, whole))
        canvases += [len(tokens_of(s.action).order[s.action.mask].unique()) for s in scored]
    return Agreement(sum(canvases) / len(canvases), sum(cosines) / len(cosines), cosine(total, whole))


def if_unbiased(one: float, draws: int) -> float:
    """The cosine of the mean of `draws` choices whose own cosine is `one`, if their errors are independent and cancel:
    each is the true gradient and an error at right angles to it, which the mean makes smaller."""
    return one / math.sqrt(one**2 + (1 - one**2) / draws)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def measure(policy: Policy, options: Options) -> Iterator[str]:
    """The lines of the table."""
    found: dict[str, list[Agreement]] = {name: [] for name in COMPARED}
    wholes: list[Tensor] = []
    for number in range(options.batches):
        batch = draw_batch(policy, options, number)
        wholes.append(gradient(policy, batch, policy.select(batch.drawings, ScoringConfig(), 0)))
        for name, scoring in COMPARED.items():
            found[name].append(agreement(policy, batch, wholes[-1], scoring, options.draws))
    for name, rows in found.items():
        canvases = sum(row.canvases for row in rows) / len(rows)
        one = _over([row.one for row in rows])
        mean = f"{_over([row.mean for row in rows])} | {if_unbiased(one.value, options.draws):.3f}"
        if COMPARED[name].drawings == "whole_canvas":
            mean = "nothing to choose |"
        yield f"| {name} | {canvases:.3g} | {one} | {mean} |"
    others = [cosine(a, b) for a, b in zip(wholes, [*wholes[1:], wholes[0]], strict=True)]
    yield f"| all rounds, of another batch | | {_over(others)} | | |"


def _over(values: Sequence[float]) -> Estimate:
    """Mean over batches, which are what is resampled."""
    return task_mean({"all": values})


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main(options: Options) -> None:
    """Measures, prints, writes."""
    if options.threads:
        torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    if options.quick:
        options = replace(options, batches=2, prompts=2, draws=2)
    policy = load_policy(PolicyConfig(options.checkpoint))
    policy.require("mask drawings anew", "this benchmark")
    how = (
        f"{options.batches} batches of {options.prompts} prompts x {options.group} drawings, reward {options.reward}; "
        "95% bootstrap intervals over batches"
    )
    drawn = (
        f"{options.checkpoint}: {options.rounds} rounds, guidance {options.guidance:g}, choice temperature "
        f"{options.choice_temperature:g}"
    )
    header, lines = HEADER.format(draws=options.draws), measure(policy, options)
    publish_lines("benchmarks.speed.gradients", header, lines, how, drawn, written=not options.quick)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
