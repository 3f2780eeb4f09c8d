"""Scenarios of several turns on the MetaQuery: what turns see, that all of them replay, and what learns from them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from unison.answers import THOUGHT_REQUEST, VERDICT_REQUEST
from unison.config import ScenarioConfig
from unison.data.world import WorldItems
from unison.policies.metaquery.policy import MetaQuery
from unison.scenarios import SCENARIOS
from unison.scenarios.common import Seeds
from unison.types import Context, Item, Noised, Sampling, Tokens, Trajectory, group_rows
from unison.world import edits
from unison.world.render import render

CONFIG = ScenarioConfig(
    group_size=2, text=Sampling(max_tokens=6), image=Sampling(guidance=2.0, source_guidance=1.5, steps=3)
)
TURNS = {
    "cycle_edit": ["image", "image"],
    "think_then_draw": ["text", "image"],
    "reflect": ["image", "text", "image"],
    "imitate_thought": ["text", "image"],
    "imitate_reflection": ["image", "text", "image"],
}
KINDS = {"cycle_edit": "edits", "think_then_draw": "riddles", "imitate_thought": "riddles"}
SAMPLED = [name for name in TURNS if not name.startswith("imitate")]


def items(name: str) -> list[Item]:
    world: Any = KINDS.get(name, "reflections")
    made = WorldItems("train", "open_ended", "", 0, 60, kind=world)
    return [made[index] for index in (0, 7)]


def rollout(policy: MetaQuery, name: str, seeds: Seeds = Seeds(0, 0)) -> list[Trajectory]:  # noqa: B008
    with torch.no_grad():
        return SCENARIOS[name].rollout(policy, items(name), CONFIG, seeds)


@pytest.mark.parametrize("name", TURNS)
def test_every_item_gets_its_group_with_all_turns_decoded_in_order(metaquery: MetaQuery, name: str) -> None:
    found = rollout(metaquery, name)
    assert [len(rows) for rows in group_rows(found).values()] == [2, 2]
    for trajectory in found:
        assert [turn.action.modality for turn in trajectory.turns] == TURNS[name]
        assert all(turn.advantage is None for turn in trajectory.turns)  # one advantage trains them all
        assert (len(trajectory.texts), len(trajectory.images)) == tuple(map(TURNS[name].count, ("text", "image")))


@pytest.mark.parametrize("name", SAMPLED)
def test_siblings_differ_in_every_turn_and_the_same_seeds_repeat_them(metaquery: MetaQuery, name: str) -> None:
    found, again = rollout(metaquery, name), rollout(metaquery, name)
    for turn in range(len(TURNS[name])):
        first, second = (content(t, turn) for t in found[:2])
        assert first.shape != second.shape or not torch.allclose(first, second)
        for one, two in zip(found, again, strict=True):
            torch.testing.assert_close(content(one, turn), content(two, turn))


def content(trajectory: Trajectory, turn: int) -> Tensor:
    action = trajectory.turns[turn].action
    return action.ids if isinstance(action, Tokens) else action.path[-1]


# -- what each turn sees ---------------------------------------------------------------------------------------------


def test_an_edit_is_taken_back_from_its_own_latents(metaquery: MetaQuery) -> None:
    for trajectory in rollout(metaquery, "cycle_edit"):
        edit, back = trajectory.turns
        assert edit.context.parts == (trajectory.item.image, trajectory.item.prompt)
        assert back.context.parts == (edit.action, trajectory.item.reverse)


def test_a_drawing_follows_prompt_and_thought_which_stays_in_tokens(metaquery: MetaQuery) -> None:
    for trajectory in rollout(metaquery, "think_then_draw"):
        thought, drawing = trajectory.turns
        asked = f"{trajectory.item.prompt}\n{THOUGHT_REQUEST}"
        assert thought.context.parts == (asked,)
        assert drawing.context.parts == (asked, thought.action)


def test_a_verdict_is_on_the_drawing_itself_and_the_correction_edits_it(metaquery: MetaQuery) -> None:
    for trajectory in rollout(metaquery, "reflect"):
        drawing, verdict, correction = trajectory.turns
        asked = f"{trajectory.item.prompt}\n{VERDICT_REQUEST}"
        assert drawing.context.parts == (trajectory.item.prompt,)
        assert verdict.context.parts == (drawing.action, asked)
        assert correction.context.parts == (drawing.action, asked, verdict.action)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_later_turn_depends_on_the_earlier_one(metaquery: MetaQuery, name: str) -> None:
    """Else a group would learn from a chance of its own. A turn is scored after another sibling's earlier turn."""
    one, other = rollout(metaquery, name)[:2]
    last = one.turns[-1]
    parts = {id(a.action): b.action for a, b in zip(one.turns, other.turns, strict=True)}
    changed = Context(tuple(parts.get(id(part), part) for part in last.context.parts))  # type: ignore[arg-type]
    with torch.no_grad():
        (logp,) = metaquery([changed], [last.action])
    assert (logp - last.action.logp).abs().max() > 1e-3


# -- replay and learning ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLED)
def test_log_probabilities_of_all_turns_replay(metaquery: MetaQuery, name: str) -> None:
    turns = [turn for trajectory in rollout(metaquery, name) for turn in trajectory.turns]
    with torch.no_grad():
        scores = metaquery([turn.context for turn in turns], [turn.action for turn in turns])
    for turn, score in zip(turns, scores, strict=True):
        torch.testing.assert_close(score, turn.action.logp, atol=1e-4, rtol=0)


PARTS = ("qwen.", "bridge.queries.draw", "bridge.queries.edit", "bridge.connector", "bridge.source", "transformer.")
LEARNS = {  # by scenario and turn, the parts that a gradient reaches
    "cycle_edit": [{"qwen.", *PARTS[2:]}] * 2,
    "think_then_draw": [{"qwen."}, {"qwen.", "bridge.queries.draw", "bridge.connector", "transformer."}],
    "reflect": [
        {"qwen.", "bridge.queries.draw", "bridge.connector", "transformer."},
        {"qwen."},
        {"qwen.", *PARTS[2:]},
    ],
}


def reached(policy: MetaQuery, trajectory: Trajectory, turn: int) -> set[str]:
    """The parts to which a turn's log-probability sends a gradient."""
    policy.zero_grad()
    (logp,) = policy([trajectory.turns[turn].context], [trajectory.turns[turn].action])
    if logp.requires_grad:
        logp.sum().backward()
    named = {name: p.grad for name, p in policy.network.named_parameters() if p.grad is not None and p.grad.any()}
    return {part for part in PARTS if any(name.startswith(part) for name in named)}


@pytest.mark.parametrize("name", LEARNS)
@pytest.mark.parametrize("frozen", [(), ("^qwen",)])
def test_a_gradient_reaches_what_a_turn_is_made_by_and_nothing_frozen(
    make_metaquery: Callable[..., MetaQuery], name: str, frozen: tuple[str, ...]
) -> None:
    policy = make_metaquery(frozen=frozen)
    trajectory = rollout(policy, name)[0]
    for turn, parts in enumerate(LEARNS[name]):
        assert reached(policy, trajectory, turn) == (parts - {"qwen."} if frozen else parts)


# -- cold starts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["imitate_thought", "imitate_reflection"])
def test_what_is_drawn_of_given_pictures_follows_from_the_runs_seed(metaquery: MetaQuery, name: str) -> None:
    first = drawn_in(rollout(metaquery, name))
    torch.manual_seed(123)  # the global generator plays no part
    assert all(torch.equal(a, b) for a, b in zip(first, drawn_in(rollout(metaquery, name)), strict=True))
    for other in (Seeds(1, 0), Seeds(0, 1)):
        assert not any(torch.equal(a, b) for a, b in zip(first, drawn_in(rollout(metaquery, name, other)), strict=True))


def drawn_in(trajectories: list[Trajectory]) -> list[torch.Tensor]:
    """The noise of every picture that is learned from."""
    return [t.action.path[0] for one in trajectories for t in one.turns if isinstance(t.action, Noised)]


def test_the_cold_start_of_thoughts_shows_what_the_item_has(metaquery: MetaQuery) -> None:
    for trajectory in rollout(metaquery, "imitate_thought"):
        thought, drawing = trajectory.turns
        assert thought.context.parts == (f"{trajectory.item.prompt}\n{THOUGHT_REQUEST}",)
        assert drawing.context.parts == (*thought.context.parts, thought.action)
        assert metaquery.decode([thought.action]) == [trajectory.item.reply]
        assert trajectory.texts == (trajectory.item.reply,)
        assert trajectory.images == (trajectory.item.image,)


def test_the_cold_start_of_reflection_corrects_the_shown_picture_to_the_right_one(metaquery: MetaQuery) -> None:
    (right,) = [
        metaquery.encode([item.target_image])[0] for item in items("imitate_reflection")[:1] if item.target_image
    ]
    drawn, judged, corrected = rollout(metaquery, "imitate_reflection")[0].turns
    seen = judged.context.parts[0]
    assert isinstance(seen, Noised)
    assert isinstance(judged.action, Tokens)
    assert corrected.context.parts == (*judged.context.parts, judged.action)
    for turn in (drawn, corrected):
        assert isinstance(turn.action, Noised)
        torch.testing.assert_close(turn.action.path[-1], right.path[-1])  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["imitate_thought", "imitate_reflection"])
def test_given_turns_are_scored_as_what_is_to_be_learned(metaquery: MetaQuery, name: str) -> None:
    turns = [turn for trajectory in rollout(metaquery, name) for turn in trajectory.turns]
    with torch.no_grad():
        scores = metaquery([turn.context for turn in turns], [turn.action for turn in turns])
    assert all(score.isfinite().all() and (score < 0).all() for score in scores)


# -- what the world gives --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TURNS)
def test_the_worlds_items_have_what_a_scenario_needs(metaquery: MetaQuery, name: str) -> None:
    for item in items(name):
        SCENARIOS[name].require(metaquery, item)


def test_edits_change_the_picture_into_the_target() -> None:
    for item in items("cycle_edit"):
        assert item.image is not None
        assert item.target_image is not None
        assert item.source_caption != item.target_caption
        assert item.image.tobytes() != item.target_image.tobytes()


def test_an_edit_item_is_the_edit_of_its_seed() -> None:
    item = items("cycle_edit")[0]
    edit = edits.sample(random.Random("train:0:0"), "train", edits.KINDS[0])
    assert (item.prompt, item.reverse) == (edit.instruction, edit.reverse)
    assert item.image is not None
    assert item.image.tobytes() == render(edit.before).tobytes()
