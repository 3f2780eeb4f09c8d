"""Rewards of the embedded world, where drawing and prompt can both be read exactly: its judge, its palette, its facts.

What a drawing is to show is said by the item's target caption, where it has one, as edits and riddles have, or else by
its prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from unison.answers import FORMAT
from unison.types import Item, Trajectory
from unison.world.judge import judge_asked, see
from unison.world.render import BACKGROUND, PALETTE
from unison.world.scene import Description, Scene, Verdict, check, parse_caption, parse_prompt, relation_of

if TYPE_CHECKING:
    from PIL.Image import Image

Fact: TypeAlias = tuple[str | int, ...]
STAIN = 4.0  # RGB distance from all that the world is painted in, above which a pixel is dirt


def world(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Partial credit of the embedded world's exact judge for the last drawing.

    Raises:
        ValueError: what is asked for is not a sentence of the world.
    """
    return [_verdict(t.images[-1], t.item).score if t.images else None for t in trajectories]


def world_strict(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """1 where the world's judge finds everything as asked."""
    return [float(_verdict(t.images[-1], t.item).correct) if t.images else None for t in trajectories]


def world_first(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """As `world`, of the first drawing: an edit that is then taken back, an attempt that is then corrected."""
    return world(first_drawings(trajectories), policy)


def world_first_strict(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """As `world_strict`, of the first drawing."""
    return world_strict(first_drawings(trajectories), policy)


def world_cycle(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Share of objects that the last drawing has in common with the picture that was edited; None without its caption.

    Source: the cycle edit of UniRL-Zero, arXiv 2510.17937, whose similarity of embeddings this stands in for.
    """
    return [
        judge_asked(t.images[-1], t.item.source_caption).score if t.images and t.item.source_caption else None
        for t in trajectories
    ]


def world_clean(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Share of pixels, over all drawings, that the world could be painted in: background, a colour, or a mixture of the
    two as at edges. It says nothing of what is drawn, and is no part of the judge."""
    return [float(np.mean([_clean(image) for image in t.images])) if t.images else None for t in trajectories]


def first_drawings(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """The trajectories as if they had ended with their first drawing."""
    return [Trajectory(t.item, t.turns, t.texts, t.images[:1]) for t in trajectories]


def _verdict(image: Image, item: Item) -> Verdict:
    return judge_asked(image, item.target_caption or item.prompt or "")


def _clean(image: Image) -> float:
    offset = np.asarray(image.convert("RGB"), np.float32).reshape(-1, 1, 3) - BACKGROUND  # [pixels, 1, 3]
    ways = np.array([*PALETTE.values()], np.float32) - BACKGROUND  # [colours, 3]
    share = ((offset * ways).sum(-1) / (ways**2).sum(-1)).clip(0, 1)  # of each colour in the nearest mixture
    distance = np.linalg.norm(offset - share[..., None] * ways, axis=-1).min(-1)
    return float((distance < STAIN).mean())


# -- what a model says of its own drawing ------------------------------------------------------------------------------


def world_thought(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """Partial credit of the last reply's thought, read as the scene that it names, as a drawing of the prompt.

    For models that improve themselves: no picture is looked at, only what the model says of its own. UniRL's questions
    have whole sentences for answers, which state all that their prompt asks for; a reply in the embedded world answers
    in a word, but names every object in its thought. A reply without such a thought earns 0.

    Raises:
        ValueError: a prompt is not a sentence of the world.
    """
    return [_credit(t.texts[-1], t.item.prompt) if t.texts and t.item.prompt else None for t in trajectories]


def _credit(reply: str, prompt: str) -> float:
    found = FORMAT.fullmatch(reply)
    scene = parse_caption(found.group(1)) if found else None
    return check(scene, parse_prompt(prompt)).score if scene else 0.0


# -- scene-graph tuples ------------------------------------------------------------------------------------------------


def world_tuples(trajectories: Sequence[Trajectory], policy: object) -> list[float | None]:
    """F1 of what is seen in the last drawing against what its prompt says, in [0, 1]; None without either.

    Both are sets of tuples, as in SPICE (Anderson et al. 2016, arXiv 1607.08822, eq. 4): (shape), (shape, count),
    (shape, colour), (shape, relation, shape). The drawing is described in the prompt's terms: what the prompt leaves
    open, such as the colour of a shape, is no tuple of either side, and a right drawing earns 1.

    Raises:
        ValueError: a prompt is not a sentence of the world.
    """
    return [_facts_shared(t) if t.images and t.item.prompt else None for t in trajectories]


def _facts_shared(trajectory: Trajectory) -> float:
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
