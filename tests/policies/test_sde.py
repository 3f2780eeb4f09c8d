"""Denoising decisions: the published numbers, what every sampler must keep, and replay."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from unison.policies.decisions import sde
from unison.types import Latents, Sampling, Sde

KINDS: tuple[Sde, ...] = get_args(Sde)
NOISY = [kind for kind in KINDS if kind != "ode"]
SCHEDULES = {"n10_shift3": (10, 3.0), "n20_shift1": (20, 1.0)}
VARIANTS: dict[str, tuple[Sde, float]] = {
    "unirl_zero_blip3o": ("flow_grpo", 0.7),
    "unirl_zero_flux": ("flow_grpo", 1.0),
    "unirl_zero_simple": ("simple", 1.0),
    "flow_grpo_sd3": ("flow_grpo", 0.7),
}


# -- published numbers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numbers(golden: Path) -> dict[str, Tensor]:
    return load_file(golden / "sde_step.safetensors")


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_diffusers(numbers: dict[str, Tensor], name: str) -> None:
    found = sde.sigmas(*SCHEDULES[name])
    torch.testing.assert_close(found, numbers[f"{name}.sigmas"], atol=1e-6, rtol=0)
    torch.testing.assert_close(1000 * found[:-1], numbers[f"{name}.timesteps"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_step_is_the_published_programs(numbers: dict[str, Tensor], name: str, variant: str) -> None:
    kind, level = VARIANTS[variant]
    given = {key.split(".")[-1]: value for key, value in numbers.items() if key.startswith(f"{name}.{variant}.")}
    schedule = numbers[f"{name}.sigmas"]
    for s in range(len(schedule) - 1):
        now, after = schedule[s].expand(2), schedule[s + 1].expand(2)
        for prefix in ("", "alt_"):
            taken = sde.step(
                given["sample"][s],
                given[f"{prefix}model_output"][s],
                now,
                after,
                float(schedule[1]),
                kind,
                level,
                prev=given["prev_sample"][s],
            )
            close(taken.mean, given[f"{prefix}mean"][s])
            close(taken.logp, given[f"{prefix}log_prob"][s])
            # Flow-GRPO's program returns the rate, without sqrt(-dt)
            rate = (now - after).sqrt() if variant == "flow_grpo_sd3" else 1.0
            close(taken.std, given["std"][s] * rate)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rows_of_a_batch_may_be_at_different_times(numbers: dict[str, Tensor], golden: Path, name: str) -> None:
    given = {key.split(".")[-1]: value for key, value in numbers.items() if key.startswith(f"{name}.mixed.")}
    which = json.loads((golden / "sde_step.json").read_text())["schedules"][name]["mixed_step_indices"]
    schedule = numbers[f"{name}.sigmas"]
    now, after = schedule[which], schedule[[s + 1 for s in which]]
    taken = sde.step(
        given["sample"],
        given["model_output"],
        now,
        after,
        float(schedule[1]),
        "flow_grpo",
        0.7,
        prev=given["prev_sample"],
    )
    for found, key in zip(taken[1:], ("log_prob", "mean", "std"), strict=True):
        close(found, given[key])


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


# -- one step --------------------------------------------------------------------------------------------------------


def transition(kind: Sde, s: int, **fields: Any) -> sde.Step:
    """Step s of 4 on random states, drawn unless `prev` is among the fields."""
    g = torch.Generator().manual_seed(s)
    x, v, noise = (torch.randn(3, 2, 4, 4, generator=g) for _ in range(3))
    schedule = sde.sigmas(4, 3.0)
    now, after = schedule[s].expand(3), schedule[s + 1].expand(3)
    arguments: dict[str, Any] = {"noise_level": 0.5} | fields
    arguments |= {} if "prev" in fields else {"noise": noise}
    return sde.step(x, v, now, after, float(schedule[1]), kind, **arguments)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("s", range(4))
def test_a_drawn_state_is_scored_as_it_was_drawn(kind: Sde, s: int) -> None:
    drawn = transition(kind, s)
    scored = transition(kind, s, prev=drawn.next)
    assert torch.equal(drawn.logp, scored.logp)
    assert torch.equal(drawn.mean, scored.mean)


@pytest.mark.parametrize("kind", NOISY)
def test_log_probabilities_are_means_of_normal_log_densities(kind: Sde) -> None:
    taken = transition(kind, 1)
    normal = torch.distributions.Normal(taken.mean, taken.std.view(-1, 1, 1, 1))
    torch.testing.assert_close(taken.logp, normal.log_prob(taken.next).mean((1, 2, 3)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("s", range(4))
def test_without_noise_every_sampler_takes_the_euler_step(kind: Sde, s: int) -> None:
    quiet, euler = transition(kind, s, noise_level=0.0), transition("ode", s)
    torch.testing.assert_close(quiet.next, euler.next)
    assert quiet.std.tolist() == quiet.logp.tolist() == [0.0] * 3


def test_a_noise_level_per_row_makes_single_rows_deterministic() -> None:
    mixed = transition("flow_grpo", 1, noise_level=torch.tensor([0.5, 0.0, 0.5]))
    noisy, quiet = transition("flow_grpo", 1), transition("ode", 1)
    torch.testing.assert_close(mixed.next, torch.stack([noisy.next[0], quiet.next[1], noisy.next[2]]))


def test_the_spread_of_dance_grpo_is_a_constant_rate() -> None:
    schedule = sde.sigmas(4, 3.0)
    for s in range(4):
        rate = transition("dance_grpo", s).std / (schedule[s] - schedule[s + 1]).sqrt()
        torch.testing.assert_close(rate, torch.full((3,), 0.5))


def test_coefficients_of_cps_keep_the_noise_of_the_schedule() -> None:
    """Where data and noise are predicted exactly, the next state has exactly the noise of its level."""
    data, noise, fresh = torch.randn(3, 20_000, 1, 3, generator=torch.Generator().manual_seed(0))
    now, after = torch.full((20_000,), 0.8), torch.full((20_000,), 0.5)
    taken = sde.step(0.2 * data + 0.8 * noise, noise - data, now, after, 0.9, "cps", 0.6, noise=fresh)
    assert (taken.next - 0.5 * data).std().item() == pytest.approx(0.5, rel=0.01)
    assert taken.std[0].item() == pytest.approx(0.5 * math.sin(0.3 * math.pi))


def test_cps_has_no_noise_left_for_the_last_step() -> None:
    assert transition("cps", 3).std.tolist() == [0.0] * 3


@pytest.mark.parametrize("kind", ["flow_grpo", "dance_grpo"])
def test_the_drift_keeps_the_marginals_to_first_order(kind: Sde) -> None:
    """Gaussian data of variance 4: the variance after a short step is what the schedule says it is."""
    for sigma in (0.3, 0.6, 0.9):
        variance = lambda s: 4 * (1 - s) ** 2 + s**2  # noqa: E731
        x = torch.randn(400_000, 1, generator=torch.Generator().manual_seed(0)) * variance(sigma) ** 0.5
        slope = (sigma - 4 * (1 - sigma)) / variance(sigma)  # E[noise - data | x] = slope x
        now, after = torch.full((len(x),), sigma), torch.full((len(x),), sigma - 0.01)
        noise = torch.randn(len(x), 1, generator=torch.Generator().manual_seed(1))
        taken = sde.step(x, slope * x, now, after, 0.9, kind, 0.7, noise=noise)
        assert taken.next.var().item() == pytest.approx(variance(sigma - 0.01), rel=0.01)


def test_a_half_precision_velocity_is_stepped_in_single_precision() -> None:
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    now, after = torch.full((2,), 0.8), torch.full((2,), 0.7)
    taken = sde.step(x.bfloat16(), x.bfloat16(), now, after, 0.9, "flow_grpo", 0.7, noise=torch.ones(2, 3))
    assert {t.dtype for t in taken} == {torch.float32}
    whole = sde.step(
        x.bfloat16().float(), x.bfloat16().float(), now, after, 0.9, "flow_grpo", 0.7, noise=torch.ones(2, 3)
    )
    assert torch.equal(taken.next, whole.next)


@pytest.mark.parametrize("both", [True, False])
def test_a_step_is_either_drawn_or_scored(both: bool) -> None:
    x, now = torch.zeros(1, 2), torch.full((1,), 0.5)
    given = x if both else None
    with pytest.raises(ValueError, match="exactly one"):
        sde.step(x, x, now, now - 0.1, 0.9, "flow_grpo", 0.7, noise=given, prev=given)


@pytest.mark.parametrize("kind", NOISY)
def test_divergence_is_that_of_two_normal_distributions(kind: Sde) -> None:
    taken, other = transition(kind, 1), transition(kind, 2).mean
    wide = taken.std.view(-1, 1, 1, 1)
    exact = torch.distributions.kl_divergence(
        torch.distributions.Normal(taken.mean, wide), torch.distributions.Normal(other, wide)
    )
    torch.testing.assert_close(sde.divergence(taken.mean, other, taken.std), exact.mean((1, 2, 3)))


def test_divergence_counts_the_length_of_the_step() -> None:
    """Against the rate alone, without sqrt(-dt), it would be smaller by the length of the step."""
    schedule = sde.sigmas(4, 3.0)
    taken = transition("dance_grpo", 1)
    rate = torch.full((3,), 0.5)
    expected = sde.divergence(taken.mean, taken.mean + 0.1, rate) / (schedule[1] - schedule[2])
    torch.testing.assert_close(sde.divergence(taken.mean, taken.mean + 0.1, taken.std), expected)


# -- whole paths -----------------------------------------------------------------------------------------------------

SHAPE = (2, 4, 4)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(8, 2, 3, padding=1)
    )


@pytest.fixture
def velocity(network: torch.nn.Module) -> sde.Velocity:
    """A network that sees states and their times."""

    def of(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        plane = sigma.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return network(torch.cat([x, plane], 1))

    return of


def draw(velocity: sde.Velocity, sampling: Sampling, seeds: Any = range(5)) -> list[Latents]:
    seeds = list(seeds)
    schedule = sde.sigmas(sampling.steps, sampling.shift)
    return sde.sample(velocity, sde.start(seeds, SHAPE), schedule, sampling, seeds)


SUBSETS = [(), (1,), (0, 2, 3)]


@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("kind", NOISY)
def test_replayed_log_probabilities_are_the_sampled_ones(
    velocity: sde.Velocity, kind: Sde, subset: tuple[int, ...]
) -> None:
    drawings = draw(velocity, Sampling(steps=4, sde=kind, noise_level=0.5, noisy_steps=subset))
    for drawing, logp in zip(drawings, sde.score(velocity, drawings), strict=True):
        torch.testing.assert_close(logp, drawing.logp, atol=1e-4, rtol=0)
        assert logp.shape == drawing.mask.shape
        assert not logp[~drawing.mask].any()
        assert drawing.mask.any()


def test_the_first_ratio_is_exactly_one_where_batches_are_as_in_sampling(velocity: sde.Velocity) -> None:
    drawings = draw(velocity, Sampling(steps=6))
    scored = torch.stack(sde.score(velocity, drawings, chunk=len(drawings)))
    assert (scored - torch.stack([d.logp for d in drawings])).exp().unique().tolist() == [1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_only_noisy_steps_are_trained(velocity: sde.Velocity, kind: Sde) -> None:
    sampling = Sampling(steps=4, sde=kind)
    noisy = {"ode": [], "cps": [0, 1, 2]}.get(kind, [0, 1, 2, 3])
    assert draw(velocity, sampling)[0].mask.nonzero().flatten().tolist() == noisy
    some = replace(sampling, noisy_steps=(1, 3))
    assert draw(velocity, some)[0].mask.nonzero().flatten().tolist() == [s for s in noisy if s in (1, 3)]


def test_steps_outside_the_subset_are_deterministic(velocity: sde.Velocity) -> None:
    drawing = draw(velocity, Sampling(steps=4, noisy_steps=(1,)))[0]
    for s in (0, 2, 3):
        x, sigma = drawing.path[s], drawing.sigmas[s]
        with torch.no_grad():
            v = velocity(x[None], sigma[None], torch.zeros(1))[0]
        torch.testing.assert_close(drawing.path[s + 1], x + v * (drawing.sigmas[s + 1] - sigma))


def test_a_drawing_depends_on_its_seed_and_on_nothing_else(velocity: sde.Velocity) -> None:
    sampling = Sampling(steps=4)
    together = draw(velocity, sampling, (7, 8, 9))
    torch.manual_seed(123)
    alone = draw(velocity, sampling, (9,))[0]
    torch.testing.assert_close(alone.path, together[2].path, atol=1e-5, rtol=1e-5)
    assert (together[0].path[0] - together[1].path[0]).abs().max() > 0.1


def test_noise_is_independent_of_the_start(velocity: sde.Velocity) -> None:
    chance = sde.RowNoise([3], (10_000,))
    first, second = chance.next(), chance.next()
    assert torch.equal(first, sde.start([3], (10_000,)))
    assert abs(torch.corrcoef(torch.cat([first, second]))[0, 1].item()) < 0.05


def test_without_noise_to_give_nothing_is_scored(velocity: sde.Velocity) -> None:
    drawings = draw(velocity, Sampling(steps=3, sde="ode"))
    assert [logp.tolist() for logp in sde.score(velocity, drawings)] == [[0.0] * 3] * 5
    assert all(len(mean) == 0 for mean in sde.means(velocity, drawings))


def gradients(network: torch.nn.Module, scores: list[Tensor]) -> list[Tensor]:
    weights = torch.linspace(-1, 1, len(scores))
    loss = torch.stack([w * s.sum() for w, s in zip(weights, scores, strict=True)]).sum()
    return list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("chunk", [1, 3, 5])
def test_chunks_change_neither_scores_nor_gradients(
    velocity: sde.Velocity, network: torch.nn.Module, chunk: int
) -> None:
    drawings = draw(velocity, Sampling(steps=4, noisy_steps=(0, 1, 3)))
    anchors = [mean + 0.1 for mean in sde.means(velocity, drawings)]
    for given in (None, anchors):
        whole, parts = (sde.score(velocity, drawings, given, chunk=size) for size in (0, chunk))
        for a, b in zip(whole, parts, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
        for a, b in zip(gradients(network, whole), gradients(network, parts), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
            assert a.abs().max() > 1e-4


def test_chunks_hold_no_more_states_than_asked(velocity: sde.Velocity) -> None:
    sizes: list[int] = []

    def counting(x: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        sizes.append(len(x))
        return velocity(x, sigma, rows)

    drawings = draw(velocity, Sampling(steps=4))
    with torch.no_grad():
        sde.score(counting, drawings)
        sde.score(counting, drawings, chunk=8)
    assert sizes == [20, 8, 8, 4]


def test_rows_are_told_apart_in_scoring() -> None:
    """A velocity that depends on the row alone: every decision asks for its own row's."""
    targets = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    of: Callable[..., Tensor] = lambda x, sigma, rows: x - targets[rows]  # noqa: E731
    drawings = draw(of, Sampling(steps=4))
    order = [3, 0, 4, 1, 2]
    for given in (list(range(5)), order):
        found = sde.score(
            lambda x, s, rows, given=given: of(x, s, torch.tensor(given)[rows]), [drawings[i] for i in given]
        )
        for i, logp in zip(given, found, strict=True):
            torch.testing.assert_close(logp, drawings[i].logp, atol=1e-4, rtol=0)


def test_divergence_from_oneself_is_zero_and_from_another_positive(velocity: sde.Velocity) -> None:
    drawings = draw(velocity, Sampling(steps=4, noisy_steps=(0, 2)))
    same = sde.score(velocity, drawings, sde.means(velocity, drawings))
    other = sde.score(velocity, drawings, [mean + 0.1 for mean in sde.means(velocity, drawings)])
    for a, b, drawing in zip(same, other, drawings, strict=True):
        torch.testing.assert_close(a[1], torch.zeros(4), atol=1e-9, rtol=0)
        torch.testing.assert_close(a[0], drawing.logp, atol=1e-4, rtol=0)
        assert (b[1] > 0).tolist() == drawing.mask.tolist()


def test_divergence_is_the_expected_difference_of_log_probabilities(velocity: sde.Velocity) -> None:
    """Over many draws of one transition, mean(log p - log q) approaches it."""
    count = 20_000
    mean, reference = torch.zeros(count, 3), torch.full((count, 3), 0.2)
    std = torch.full((count,), 0.4)
    drawn = mean + 0.4 * torch.randn(count, 3, generator=torch.Generator().manual_seed(0))
    gap = sde.log_density(drawn, mean, std) - sde.log_density(drawn, reference, std)
    assert gap.mean().item() == pytest.approx(sde.divergence(mean, reference, std)[0].item(), rel=0.05)
