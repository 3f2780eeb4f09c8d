"""What a model says it sees in its own drawing, held against what it was asked to draw."""

from __future__ import annotations

from collections.abc import Sequence

from unison.answers import FORMAT
from unison.types import Trajectory
from unison.world.scene import check, parse_caption, parse_prompt


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
