"""Scene-graph tuples in the embedded world, where drawing and prompt can both be read exactly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

from unison.types import Trajectory
from unison.world.judge import see
from unison.world.scene import Description, Scene, parse_prompt, relation_of

Fact: TypeAlias = tuple[str | int, ...]


def world_tuples(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """F1 of what is seen in the last drawing against what its prompt says, in [0, 1]; None without either.

    Both are sets of tuples, as in SPICE (Anderson et al. 2016, arXiv 1607.08822, eq. 4): (shape), (shape, count),
    (shape, colour), (shape, relation, shape). The drawing is described in the prompt's terms: what the prompt leaves
    open, such as the colour of a shape, is no tuple of either side, and a right drawing earns 1.

    Raises:
        ValueError: a prompt is not a sentence of the world.
    """
    return [_judge(t) if t.images and t.item.prompt else None for t in trajectories]


def _judge(trajectory: Trajectory) -> float:
    description = parse_prompt(trajectory.item.prompt or "")
    return tuple_f1(seen_facts(see(trajectory.images[-1]), description), asked_facts(description))


def asked_facts(description: Description) -> set[Fact]:
    """What a prompt says."""
    facts: set[Fact] = set()
    for clause in description.clauses:
        facts |= {(clause.shape,), (clause.shape, clause.count)}
        facts |= {(clause.shape, clause.color)} if clause.color else set()
    if description.relation:
        first, second = description.clauses
        facts.add((first.shape, description.relation, second.shape))
    return facts


def seen_facts(scene: Scene, description: Description) -> set[Fact]:
    """What is in a scene, in the terms of the prompt."""
    colored = {clause.shape for clause in description.clauses if clause.color}
    counts = Counter(o.shape for o in scene)
    facts: set[Fact] = {*((shape,) for shape in counts), *counts.items()}
    facts |= {(o.shape, o.color) for o in scene if o.shape in colored}
    if description.relation:
        a, b = (clause.shape for clause in description.clauses)
        places = [((o.row, o.column), (p.row, p.column)) for o in scene for p in scene if (o.shape, p.shape) == (a, b)]
        facts |= {(a, relation, b) for pair in places if (relation := relation_of(*pair))}
    return facts


def tuple_f1(seen: set[Fact], asked: set[Fact]) -> float:
    """F1 of two sets; 0 where nothing is shared."""
    return 2 * len(seen & asked) / (len(seen) + len(asked))
