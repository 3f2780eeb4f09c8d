"""Rewards on one scale before their sum."""

from __future__ import annotations

import random
import statistics
from dataclasses import astuple

import pytest

from tests.rewards import judge_and_weigh
from unison.rewards.normalise import EPSILON, Moments, Normaliser
from unison.types import Item, RewardFn, Trajectory

GROUPS = {"a": [0, 2, 4], "b": [1, 3, 5]}
VALUES = [0.0, 10.0, 0.2, 30.0, 0.4, None]


def standardised(values: list[float], among: list[float]) -> list[float]:
    return [(v - statistics.fmean(among)) / (statistics.stdev(among) + EPSILON) for v in values]


def test_none_leaves_values_as_they_are() -> None:
    normalise = Normaliser("none")
    assert normalise("x", VALUES, GROUPS) == VALUES
    assert normalise.state_dict() == {}


def test_group_standardises_among_siblings() -> None:
    values = Normaliser("group")("x", VALUES, GROUPS)
    assert values[::2] == pytest.approx(standardised([0.0, 0.2, 0.4], [0.0, 0.2, 0.4]))
    assert values[1:4:2] == pytest.approx(standardised([10.0, 30.0], [10.0, 30.0]))
    assert values[5] is None


@pytest.mark.parametrize("kind", ["group", "running"])
def test_equal_values_and_single_ones_become_zero(kind) -> None:
    assert Normaliser(kind)("x", [0.1] * 3, {"a": [0, 1, 2]}) == pytest.approx([0] * 3)
    assert Normaliser(kind)("x", [0.7, None], {"a": [0, 1]}) == [0, None]
    assert Normaliser(kind)("x", [None], {"a": [0]}) == [None]


def test_running_standardises_among_all_values_so_far() -> None:
    normalise, seen = Normaliser("running"), []
    for step in range(4):
        values = [random.Random(step).gauss(3, 2) for _ in range(6)]
        seen += values
        assert normalise("x", values, GROUPS) == pytest.approx(standardised(values, seen))
    assert normalise("y", [5.0, 6.0], {"a": [0, 1]}) == pytest.approx(standardised([5.0, 6.0], [5.0, 6.0]))


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rng = random.Random(0)
    values = [rng.gauss(100, 1) for _ in range(50)]
    parts = Moments.of(values[:7]) | Moments.of([]) | Moments.of(values[7:8]) | Moments.of(values[8:])
    assert astuple(parts) == pytest.approx(astuple(Moments.of(values)))


def test_a_restored_state_goes_on_bit_for_bit() -> None:
    one, two = Normaliser("running"), Normaliser("running")
    one("x", [0.1, 0.7, None], {"a": [0, 1, 2]})
    two.load_state_dict(one.state_dict())
    assert one("x", [0.3, 0.9], {"a": [0, 1]}) == two("x", [0.3, 0.9], {"a": [0, 1]})
    assert one.state_dict() == two.state_dict()


def test_the_sum_is_of_standardised_rewards_and_the_kept_ones_are_raw() -> None:
    rows = [Trajectory(Item("a"), ()) for _ in range(3)]
    rewards: dict[str, RewardFn] = {
        "small": lambda ts, p: [0.0, 0.001, 0.002],
        "large": lambda ts, p: [200.0, 100.0, 0.0],
    }
    metrics = judge_and_weigh(rows, rewards, {"small": 1.0, "large": 1.0}, normaliser=Normaliser("group"))
    assert rows[0].rewards == {"small": 0.0, "large": 200.0}
    assert metrics["large/mean"] == 100
    assert [row.reward for row in rows] == pytest.approx([0, 0, 0], abs=0.1)  # they pull apart with equal force


def test_what_is_not_judged_still_has_no_reward() -> None:
    rows = [Trajectory(Item("a"), ()) for _ in range(3)]
    judge_and_weigh(rows, {"x": lambda ts, p: [1.0, None, 0.0]}, {"x": 1.0}, normaliser=Normaliser("running"))
    assert rows[1].reward is None
    assert rows[0].reward == -rows[2].reward  # type: ignore[operator]
