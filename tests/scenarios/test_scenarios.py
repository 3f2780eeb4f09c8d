"""Scenarios: programs from items to trajectories, on the tiny Janus; those of several turns with edits or with thoughts
before a drawing are in test_scenarios_latents.py."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch

from unison import scenarios
from unison.config import PolicyConfig, ScenarioConfig
from unison.policies.actions import tokens_of
from unison.policies.base import Policy
from unison.scenarios import find
from unison.scenarios.common import Seeds
from unison.scenarios.rollout import roll_out
from unison.types import Item, Relaxed, Sampling, Tokens, Trajectory, group_rows
from unison.world.render import render
from unison.world.scene import sample

CONFIG = ScenarioConfig(group_size=3, text=Sampling(max_tokens=5), image=Sampling(guidance=2.0))
TURNS = {
    "t2i": ["image"],
    "understanding": ["text"],
    "unified": ["image", "text"],
    "imitate": ["image", "text"],
    "self_improve": ["image", "text"],
    "self_sft": ["text"],
    "self_sft_split": ["image", "text"],
}
ON_LATENTS = {"cycle_edit", "think_then_draw", "reflect", "imitate_thought", "imitate_reflection"}
SCENARIOS = {name: scenario for name, scenario in scenarios.SCENARIOS.items() if name in TURNS}
GIVEN = ("imitate", "self_sft", "self_sft_split")  # scenarios with an action that was not sampled
SAMPLED = [name for name in SCENARIOS if name not in GIVEN]


def item(name: str, **fields: Any) -> Item:
    """An item with every field; other items of the same text are told apart by their id."""
    picture = render(sample(random.Random(name), "position", "train")[1])
    full: dict[str, Any] = {
        "prompt": "a red circle",
        "image": picture,
        "question": "What color is the circle?",
        "answer": "red",
        "reply": "<think> red circle </think><answer> red </answer>",
    }
    return Item(name, **(full | fields))


ITEMS = [item("one"), item("two", prompt="two blue squares"), item("three", question="How many?")]


def rollout(policy: Policy, name: str, items: list[Item] | None = None, seeds: Seeds = Seeds(0, 0)) -> list[Trajectory]:  # noqa: B008
    with torch.no_grad():
        return SCENARIOS[name].rollout(policy, items or ITEMS, CONFIG, seeds)


def actions(trajectory: Trajectory) -> list[Tokens]:
    return [turn.action for turn in trajectory.turns if isinstance(turn.action, Tokens)]


def ids(trajectory: Trajectory) -> list[list[int]]:
    return [action.ids.tolist() for action in actions(trajectory)]


def same(a: Any, b: Any) -> bool:
    """Equal texts, or pictures that are equal but for the rounding of a pixel (they are decoded in batches)."""
    if isinstance(a, str):
        return a == b
    return int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) <= 1


def test_each_scenario_has_its_turns_tested() -> None:
    assert {*TURNS} | ON_LATENTS == {*scenarios.SCENARIOS}


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_item_gets_its_group_in_order(policy: Policy, name: str) -> None:
    found = rollout(policy, name)
    assert [t.item for t in found] == [x for x in ITEMS for _ in range(3)]
    assert group_rows(found) == {"one": [0, 1, 2], "two": [3, 4, 5], "three": [6, 7, 8]}


@pytest.mark.parametrize("name", SAMPLED)
def test_turns_are_decoded_in_order(policy: Policy, name: str) -> None:
    for trajectory in rollout(policy, name):
        taken = [turn.action for turn in trajectory.turns]
        assert [action.modality for action in taken] == TURNS[name]
        decoded = {"text": iter(trajectory.texts), "image": iter(trajectory.images)}
        for action, shown in zip(taken, policy.decode(taken), strict=True):
            assert same(next(decoded[action.modality]), shown)
        assert not any(list(rest) for rest in decoded.values())


@pytest.mark.parametrize("name", SCENARIOS)
def test_siblings_share_context_objects_and_others_do_not(policy: Policy, name: str) -> None:
    same = [item("one"), item("two")]  # two items of one text
    found = rollout(policy, name, same)
    for turn in range(len(TURNS[name])):
        if any(isinstance(part, Tokens | Relaxed) for part in found[0].turns[turn].context.parts):
            continue  # about the sibling's own drawing
        contexts = [id(t.turns[turn].context) for t in found]
        assert len(set(contexts[:3])) == len(set(contexts[3:])) == 1
        assert contexts[0] != contexts[3]


@pytest.mark.parametrize("name", SAMPLED)
def test_siblings_differ_and_the_same_seeds_repeat_them(policy: Policy, name: str) -> None:
    found = rollout(policy, name)
    assert len({str(ids(t)) for t in found[:3]}) == 3
    torch.manual_seed(123)  # the global generator plays no part
    assert [ids(t) for t in rollout(policy, name)] == [ids(t) for t in found]
    for other in (Seeds(1, 0), Seeds(0, 1)):
        assert all(ids(a) != ids(b) for a, b in zip(rollout(policy, name, seeds=other), found, strict=True))


@pytest.fixture(scope="module")
def exact(policy: Policy) -> Policy:
    """In float64: how a row is rounded depends on its place in the batch, which in float32 may tip a sample."""
    return copy.deepcopy(policy).double()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_order_and_number_of_items_do_not_change_a_trajectory(exact: Policy, name: str) -> None:
    found = {(t.item.id, i % 3): ids(t) for i, t in enumerate(rollout(exact, name))}
    back = {(t.item.id, i % 3): ids(t) for i, t in enumerate(rollout(exact, name, ITEMS[::-1]))}
    assert back == found
    chunks = roll_out(exact, SCENARIOS[name], ITEMS, CONFIG, Seeds(0, 0), chunk=2)
    assert {(t.item.id, i % 3): ids(t) for i, t in enumerate(chunks)} == found


def test_items_of_one_text_get_samples_of_their_own(policy: Policy) -> None:
    """So groups cannot be told by their text."""
    picture = ITEMS[0].image
    one, two = rollout(policy, "understanding", [item("one", image=picture), item("two", image=picture)])[::3]
    assert ids(one) != ids(two)


def test_rolling_out_records_no_gradient(policy: Policy) -> None:
    for trajectory in roll_out(policy, SCENARIOS["unified"], ITEMS[:1], CONFIG, Seeds(0, 0), chunk=8):
        assert not any(turn.action.logp.requires_grad for turn in trajectory.turns)


def test_the_question_is_about_the_real_image_not_the_drawing(policy: Policy) -> None:
    drawn, answered = rollout(policy, "unified")[0].turns
    assert drawn.context.parts == ("a red circle",)
    assert answered.context.parts == (ITEMS[0].image, "What color is the circle?")


def test_understanding_works_without_an_image(policy: Policy) -> None:
    found = rollout(policy, "understanding", [item("one", image=None)])
    assert found[0].turns[0].context.parts == ("What color is the circle?",)


def test_imitation_acts_as_the_item_shows(policy: Policy) -> None:
    trajectory = rollout(policy, "imitate")[0]
    drawing, reply = actions(trajectory)
    assert trajectory.images == (ITEMS[0].image,)
    assert trajectory.texts == (ITEMS[0].reply,)
    assert policy.decode([reply]) == [ITEMS[0].reply]
    (picture,) = trajectory.images
    assert torch.equal(tokens_of(drawing).ids, tokens_of(policy.encode([picture])[0]).ids)


# -- the model's own drawings -------------------------------------------------------------------------------------


def test_the_question_is_about_the_drawing_itself_in_its_tokens(policy: Policy) -> None:
    for trajectory in rollout(policy, "self_improve", [item("one", image=None)]):
        drawn, answered = trajectory.turns
        assert answered.context.parts[0] is drawn.action
        assert answered.context.parts[1] == "What color is the circle?"


def test_drawings_are_those_of_text_to_image(policy: Policy) -> None:
    """So an evaluation that also asks about its drawings judges the same ones as one that does not."""
    assert [ids(t)[0] for t in rollout(policy, "self_improve")] == [ids(t)[0] for t in rollout(policy, "t2i")]


def test_one_advantage_trains_drawing_and_answer(policy: Policy) -> None:
    assert all(turn.advantage is None for t in rollout(policy, "self_improve") for turn in t.turns)


def test_supervision_through_the_drawing_gives_the_true_answer(policy: Policy) -> None:
    same = rollout(policy, "t2i")
    for trajectory, drawn in zip(rollout(policy, "self_sft"), same, strict=True):
        (turn,) = trajectory.turns
        part, question = turn.context.parts
        assert isinstance(part, Relaxed)
        assert part.context.parts == (trajectory.item.prompt,)
        assert part.action.ids.tolist() == ids(drawn)[0]
        assert question == trajectory.item.question
        assert policy.decode([turn.action]) == [trajectory.item.answer]
        assert trajectory.texts == ()  # the model said nothing that a reward could judge


def test_relaxed_siblings_share_their_prompt_and_differ_in_noise(policy: Policy) -> None:
    parts = [t.turns[0].context.parts[0] for t in rollout(policy, "self_sft")[:3]]
    found = [part for part in parts if isinstance(part, Relaxed)]
    assert len({id(part.context) for part in found}) == 1
    assert len({part.seed for part in found}) == 3


def test_split_supervision_judges_the_own_reply_and_trains_the_true_answer(policy: Policy) -> None:
    own = rollout(policy, "self_improve")
    for trajectory, answered in zip(rollout(policy, "self_sft_split"), own, strict=True):
        drawn, told = trajectory.turns
        assert trajectory.texts == answered.texts
        assert ids(trajectory)[0] == ids(answered)[0]
        assert policy.decode([told.action]) == ["red"]
        assert (drawn.advantage, told.advantage) == (None, 1.0)


# -- seeds --------------------------------------------------------------------------------------------------------


def test_every_sample_of_a_run_has_a_seed_of_its_own() -> None:
    seeds = [
        seed
        for run in (0, 1)
        for step in range(3)
        for turn in ("draw", "write")
        for seed in Seeds(run, step).of(ITEMS, 4, turn)
    ]
    assert len(set(seeds)) == len(seeds)
    for seed in seeds:
        torch.Generator().manual_seed(seed)


def test_a_larger_group_keeps_the_seeds_of_the_smaller() -> None:
    assert Seeds(0, 0).of(ITEMS[:1], 8, "draw")[:4] == Seeds(0, 0).of(ITEMS[:1], 4, "draw")


# -- what a scenario needs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_full_item_and_an_able_policy_are_accepted(policy: Policy, name: str) -> None:
    SCENARIOS[name].require(policy, ITEMS[0])


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in SCENARIOS for field in SCENARIOS[name].fields])
def test_a_missing_field_is_refused_with_a_remedy(policy: Policy, name: str, field: str) -> None:
    with pytest.raises(
        ValueError, match=f"needs '{field}' in every item, but item 'bare' has none.*data.columns {field}"
    ):
        SCENARIOS[name].require(policy, item("bare", **{field: None}))


class Mute(Policy):
    """Has no verbs at all."""

    family = "mute"
    abilities = frozenset({"hum"})


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_policy_that_lacks_a_verb_is_refused(policy: Policy, name: str) -> None:
    verb = SCENARIOS[name].verbs[0]
    mute = Mute(torch.nn.Linear(1, 1), PolicyConfig("mute"))
    with pytest.raises(ValueError, match=f"needs a model that can {verb}, but the mute family can only hum"):
        SCENARIOS[name].require(mute, ITEMS[0])


def test_an_unknown_scenario_is_refused_with_the_nearest_and_all_choices() -> None:
    assert find("t2i") is SCENARIOS["t2i"]
    with pytest.raises(ValueError, match=r"scenario\.name = 'unfied' is unknown; did you mean 'unified'.*choices: t2i"):
        find("unfied")
