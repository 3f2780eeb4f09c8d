"""Denoising decisions: one Gaussian transition of a flow-matching sampler, drawn, or scored.

A state is x = (1 - sigma) data + sigma noise and a network gives its velocity v = noise - data; sigma falls from 1 to 0
and dt = sigma_next - sigma is negative. A stochastic sampler with the same marginals adds noise of standard deviation
`std` in a step and pays for it in the drift, so that every step is a decision with a density.

**The log-probability of a step is the mean over latent dimensions**, not the sum, of the Gaussian log-density, as in
Flow-GRPO and UniRL-Zero. This fixes the scale of importance ratios, hence that of a clip range such as 1e-4, and of the
divergence. A step without noise is no decision: its log-probability is 0 and it is not trained.

Everything here is float32, whatever the type of the network. Randomness comes from each row's own seed, so a sample
depends neither on its batch nor on the global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from einops import reduce
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from unison.types import Latents, Sampling, Sde

Velocity: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""States [n, ...], their sigmas [n] and the batch rows they belong to [n] -> velocities [n, ...], after guidance."""

SMALLEST_TIME = 0.001  # the last of the 1,000 times that flow-matching schedulers are trained on


class Step(NamedTuple):
    """One transition of every row."""

    next: Tensor  # [B, ...]
    logp: Tensor  # [B]
    mean: Tensor  # [B, ...]
    std: Tensor  # [B] of the transition itself, sqrt(-dt) included; 0 where the step is deterministic


def sigmas(steps: int, shift: float) -> Tensor:
    """The noise levels of `diffusers`' FlowMatchEulerDiscreteScheduler, a final 0 included. [S + 1]

    f(x) = shift x / (1 + (shift - 1) x) is applied twice to the end point: times run evenly from f(1) = 1 to f(0.001),
    and each is shifted again. The network's timestep is 1000 sigma.
    """
    last = shifted(torch.tensor(SMALLEST_TIME, dtype=torch.float64), shift)
    times = torch.linspace(1.0, float(last), steps, dtype=torch.float64)
    return torch.cat([shifted(times, shift), times.new_zeros(1)]).float()


def shifted(times: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] moved towards noise, as f above says."""
    return shift * times / (1 + (shift - 1) * times)


# -- one step --------------------------------------------------------------------------------------------------------


def step(
    x: Tensor,
    v: Tensor,
    sigma: Tensor,
    sigma_next: Tensor,
    first: float,
    kind: Sde,
    noise_level: float | Tensor,
    noise: Tensor | None = None,
    prev: Tensor | None = None,
) -> Step:
    """One transition of every row: drawn with standard normal `noise`, or scored where the state after it is given.

    Args:
        x: [B, ...] states.
        v: [B, ...] velocities, after guidance.
        sigma: [B] noise levels, which may differ.
        sigma_next: [B] noise levels after the step.
        first: the schedule's second noise level, which stands for sigma in 1 - sigma where sigma is 1.
        kind: the sampler; see `spread` and `drift`.
        noise_level: of all rows or each [B]; 0 makes a step deterministic, whatever the kind.
        noise: [B, ...]
        prev: [B, ...] the state that a sampler drew, named as in `diffusers`: the previous one in time.

    Raises:
        ValueError: neither or both of `noise` and `prev` are given.
    """
    if (noise is None) == (prev is None):
        raise ValueError("step draws with `noise` or scores `prev`: give exactly one of them")
    x, v, sigma, sigma_next = (t.float() for t in (x, v, sigma, sigma_next))
    level = torch.as_tensor(noise_level, dtype=torch.float32, device=x.device).expand_as(sigma)
    std = spread(sigma, sigma_next, first, kind, level)
    mean = drift(x, v, sigma, sigma_next, first, kind, std)
    if prev is None:
        assert noise is not None
        prev = mean + _wide(std, x) * noise.float()
    prev = prev.detach().float()
    return Step(prev, log_density(prev, mean, std), mean, std)


def spread(sigma: Tensor, sigma_next: Tensor, first: float, kind: Sde, level: Tensor) -> Tensor:
    """Standard deviation of a step. [B]

    With a the noise level and s' = sigma, or `first` where sigma is 1:
      - "flow_grpo", "simple": a sqrt(sigma / (1 - s')) sqrt(-dt) (Flow-GRPO, arXiv 2505.05470; UniRL-Zero: a = 0.7);
      - "dance_grpo": a sqrt(-dt), a constant rate (DanceGRPO, arXiv 2505.07818: a = 0.3);
      - "cps": sigma_next sin(a pi / 2), a share of the noise that is left (Flow-CPS, arXiv 2509.05952), so none in
        the last step;
      - "ode": 0.
    """
    match kind:
        case "flow_grpo" | "simple":
            return level * (sigma / (1 - _below_one(sigma, first)) * (sigma - sigma_next)).sqrt()
        case "dance_grpo":
            return level * (sigma - sigma_next).sqrt()
        case "cps":
            return sigma_next * (level * (math.pi / 2)).sin()
        case "ode":
            return torch.zeros_like(sigma)


def drift(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor, first: float, kind: Sde, std: Tensor) -> Tensor:
    """Mean of a step that keeps the marginals of the deterministic sampler. [B, ...]

    All but "cps": x + v dt - std^2 / (2 sigma) (x + (1 - sigma) v), the Euler step of the reverse SDE (x + (1 - sigma)
    v is the predicted noise); "simple", which UniRL-Zero's code defines and does not use, differs where sigma is 1
    alone, by `first` in 1 - sigma. "cps" mixes the predicted data and noise anew, with coefficients whose squares
    and those of `std` keep their sums: (1 - sigma_next) data + sqrt(sigma_next^2 - std^2) noise.
    """
    reach = 1 - (_below_one(sigma, first) if kind == "simple" else sigma)
    noise = x + _wide(reach, x) * v
    if kind == "cps":
        data = x - _wide(sigma, x) * v
        left = (sigma_next**2 - std**2).clamp_min(0).sqrt()
        return _wide(1 - sigma_next, x) * data + _wide(left, x) * noise
    return x + _wide(sigma_next - sigma, x) * v - _wide(std**2 / (2 * sigma), x) * noise


def log_density(state: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Gaussian log-density averaged over latent dimensions, 0 where `std` is 0. [B]

    The authors of Flow-CPS leave out the constants and the variance; here every kind has its own density.
    """
    safe = torch.where(std > 0, std, 1.0)
    distance = reduce((state - mean) ** 2, "b ... -> b", "mean")
    density = -distance / (2 * safe**2) - safe.log() - 0.5 * math.log(2 * math.pi)
    return torch.where(std > 0, density, 0.0)


def divergence(mean: Tensor, reference: Tensor, std: Tensor) -> Tensor:
    """KL divergence between two transitions of one spread, per latent dimension: (m - m_ref)^2 / (2 std^2). [B]

    `std` is that of the transition itself, sqrt(-dt) included; without the factor a KL term shrinks with the number of
    steps.
    """
    safe = torch.where(std > 0, std, 1.0)
    distance = reduce((mean - reference) ** 2, "b ... -> b", "mean")
    return torch.where(std > 0, distance / (2 * safe**2), 0.0)


def _below_one(sigma: Tensor, first: float) -> Tensor:
    """Sigma, or `first` where it is 1 and would divide by 0."""
    return torch.where(sigma == 1, first, sigma)


def _wide(rows: Tensor, like: Tensor) -> Tensor:
    """A number per row, ready to be multiplied with states. [B] -> [B, 1, ...]"""
    return rows.view(-1, *[1] * (like.ndim - 1))


# -- whole paths -----------------------------------------------------------------------------------------------------


class RowNoise:
    """Standard normal states of every row from its own seed, one after another; the first is where a path starts."""

    def __init__(self, seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = tuple(shape), device

    def next(self) -> Tensor:
        """[B, *shape], drawn on the CPU."""
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


def start(seeds: Sequence[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """The pure noise from which each row's path starts. [B, *shape]"""
    return RowNoise(seeds, shape, device).next()


def trained_steps(schedule: Tensor, sampling: Sampling) -> Tensor:
    """Which steps inject noise, and are therefore trained. [S] bool

    Those of `sampling.noisy_steps`, or all where it is empty, as far as their sampler has noise to give.
    """
    now, after = schedule[:-1], schedule[1:]
    level = torch.full_like(now, sampling.noise_level)
    chosen = torch.ones(len(now), dtype=torch.bool, device=now.device)
    if sampling.noisy_steps:
        chosen = torch.zeros_like(chosen).index_fill(0, torch.tensor(sampling.noisy_steps, device=now.device), True)
    return chosen & (spread(now, after, float(after[0]), sampling.sde, level) > 0)


@torch.no_grad()
def sample(velocity: Velocity, x: Tensor, schedule: Tensor, sampling: Sampling, seeds: Sequence[int]) -> list[Latents]:
    """Denoises every row.

    Args:
        velocity: the network.
        x: [B, C, H, W] as `start` makes it.
        schedule: [S + 1] as `sigmas` makes it.
        sampling: the sampler, its noise level and its noisy steps.
        seeds: of the noise, one per row; those that `x` was made from.

    Returns:
        One path per row, in float32 on the CPU.
    """
    schedule = schedule.to(x.device)
    trained, first = trained_steps(schedule, sampling), float(schedule[1])
    chance, rows = RowNoise(seeds, x.shape[1:], x.device), torch.arange(len(x), device=x.device)
    chance.next()  # the start's
    path, logps = [x.float()], []
    for s, noisy in enumerate(trained.tolist()):
        now, after = schedule[s].expand(len(x)), schedule[s + 1].expand(len(x))
        v = velocity(path[-1], now, rows)
        level = sampling.noise_level if noisy else 0.0
        taken = step(path[-1], v, now, after, first, sampling.sde, level, noise=chance.next())
        path.append(taken.next)
        logps.append(taken.logp)
    states, logp = torch.stack(path, 1).cpu(), torch.stack(logps, 1).cpu()
    return [Latents(states[row], schedule.cpu(), logp[row], trained.cpu(), sampling) for row in range(len(x))]


def score(
    velocity: Velocity,
    actions: Sequence[Latents],
    anchors: Sequence[Tensor] | None = None,
    chunk: int = 0,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Log-probabilities of given paths, differentiable; all trained steps of all rows in one pass, or in chunks.

    Steps follow one another as in sampling, each with all its rows: chunks of as many states as a sampling batch had
    repeat its passes to the bit.

    Args:
        velocity: the network; rows number `actions`.
        actions: paths of one sampling.
        anchors: what `means` gave of each action under the reference.
        chunk: states in one pass, whose activations are recomputed in the backward pass where it is not the only one;
            0 takes all.
        device: of the network.

    Returns:
        [L] for each action, 0 for steps that are not trained; with anchors [2, L], the divergence from them below.
    """

    def of_step(taken: Step, anchor: Tensor | None) -> Tensor:
        if anchor is None:
            return taken.logp[:, None]
        return torch.stack([taken.logp, divergence(taken.mean, anchor, taken.std)], 1)

    width = 1 if anchors is None else 2
    scores = torch.zeros(len(actions), len(actions[0]), width, device=device)
    rows, steps = _decisions(actions)
    if len(rows):
        flat = _replay(velocity, actions, of_step, anchors, chunk, device)
        scores = scores.index_put((rows.to(device), steps.to(device)), flat)
    return [of_row[:, 0] if anchors is None else of_row.T for of_row in scores]


@torch.no_grad()
def means(
    velocity: Velocity, actions: Sequence[Latents], chunk: int = 0, device: torch.device | str = "cpu"
) -> list[Tensor]:
    """Means of each action's trained steps [T, C, H, W], in order: what a divergence is measured from."""
    counts = [int(action.mask.sum()) for action in actions]
    if not sum(counts):
        return [action.path[:0] for action in actions]
    flat = _replay(velocity, actions, lambda taken, _: taken.mean, None, chunk, device)
    return list(flat[_by_row(*_decisions(actions)).argsort()].split(counts))


def _replay(
    velocity: Velocity,
    actions: Sequence[Latents],
    read: Callable[[Step, Tensor | None], Tensor],
    anchors: Sequence[Tensor] | None,
    chunk: int,
    device: torch.device | str,
) -> Tensor:
    """What `read` takes from every trained step, in the order of `_decisions`."""
    rows, steps = _decisions(actions)
    paths, schedules = (torch.stack(parts) for parts in zip(*((a.path, a.sigmas) for a in actions), strict=True))
    states, after = paths[rows, steps].to(device), paths[rows, steps + 1].to(device)
    now, later = schedules[rows, steps].to(device), schedules[rows, steps + 1].to(device)
    reference = None if anchors is None else torch.cat(list(anchors))[_by_row(rows, steps)].to(device)
    owner, first, sampling = rows.to(device), float(schedules[0, 1]), actions[0].sampling

    def of_chunk(which: Tensor) -> Tensor:
        x, sigma = states[which], now[which]
        v = velocity(x, sigma, owner[which])
        taken = step(x, v, sigma, later[which], first, sampling.sde, sampling.noise_level, prev=after[which])
        return read(taken, None if reference is None else reference[which])

    return in_chunks(of_chunk, len(rows), chunk, device)


def in_chunks(of_chunk: Callable[[Tensor], Tensor], count: int, chunk: int, device: torch.device | str) -> Tensor:
    """What a function makes of the numbers up to `count`, `chunk` at a time, whose activations are recomputed in the
    backward pass; 0, or as many as there are, takes all at once."""
    chunks = torch.arange(count, device=device).split(chunk or count)
    whole = len(chunks) == 1 or not torch.is_grad_enabled()
    return torch.cat([of_chunk(c) if whole else checkpoint(of_chunk, c, use_reentrant=False) for c in chunks])


def _decisions(actions: Sequence[Latents]) -> tuple[Tensor, Tensor]:
    """Rows and steps of all trained decisions, step by step. [n] each"""
    steps, rows = torch.stack([action.mask for action in actions], 1).nonzero().unbind(1)
    return rows, steps


def _by_row(rows: Tensor, steps: Tensor) -> Tensor:
    """Where each decision stands when they follow one another row by row. [n]"""
    return (rows * (int(steps.max()) + 1) + steps).argsort().argsort()
