"""Scenes of coloured shapes, the six GenEval task types over them, and the split that keeps evaluation scenes unseen.

A `Scene` is what is in a picture; a `Description` is what a prompt asks for. Many scenes satisfy one description.
Both are symbolic: `render` turns a scene into pixels and `judge` turns pixels back into a scene.

The split is by combination, so no evaluation scene can occur in training whatever the seeds are. Held out are

* one object: some (shape, colour) pairs;
* several objects of one shape: some (shape, count) pairs;
* two different shapes: some (shape, relation, shape) triples, and some pairs of colours for a pair of shapes.

A training scene holds none of these. An evaluation scene holds the one that its task is about: prompts of `colors`,
`counting`, `position` and `color_attr` are therefore new as well; those of `single_object` and `two_object` name shapes
alone, and only their scenes are new. Each shape, colour, count and relation on its own is seen in training.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from unison.answers import NUMBERS, formatted
from unison.types import COUNTS, RELATIONS, TASKS, Split

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = ("red", "yellow", "green", "blue", "purple", "black")
NUMBER_WORDS = {count: NUMBERS[count] for count in (1, *COUNTS)}
PLURALS = {shape: shape + ("es" if shape.endswith("s") else "s") for shape in SHAPES}
GRID = 3  # objects sit in the cells of a GRID x GRID board
PLACES = tuple(
    (f"{row} {column}".strip() if row != "middle" or column != "middle" else "middle")
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)


@dataclass(frozen=True)
class Object:
    """One coloured shape. `row` and `column` are the centre in cells; the judge returns fractions."""

    shape: str
    color: str
    row: float
    column: float


Scene = tuple[Object, ...]


@dataclass(frozen=True)
class Clause:
    """`count` objects of one shape, of one colour if that is asked for."""

    count: int
    shape: str
    color: str | None = None

    def phrase(self) -> str:
        color = f"{self.color} " if self.color else ""
        if self.count == 1:
            return f"{article(color + self.shape)} {color}{self.shape}"
        return f"{NUMBER_WORDS[self.count]} {color}{PLURALS[self.shape]}"


@dataclass(frozen=True)
class Description:
    """What a prompt asks for: one clause, or two with an optional relation of the first to the second."""

    task: str
    clauses: tuple[Clause, ...]
    relation: str | None = None

    @property
    def prompt(self) -> str:
        joint = f" {self.relation} " if self.relation else " and "
        return joint.join(clause.phrase() for clause in self.clauses)


@dataclass(frozen=True)
class Question:
    """A question about a scene with its open answer, and four options of which one is right."""

    text: str
    answer: str
    options: tuple[str, ...]

    @property
    def letter(self) -> str:
        return "ABCD"[self.options.index(self.answer)]

    def asked(self, lettered: bool) -> str:
        """The question, followed by its lettered options where it is to be multiple choice."""
        if not lettered:
            return self.text
        return " ".join([self.text, *(f"{x}. {option}" for x, option in zip("ABCD", self.options, strict=True))])

    def reply(self, scene: Scene) -> str:
        """A whole reply in the requested format, which says what is seen before it answers.

        The answer is the option's text in both forms, as multiple choice accepts it beside the letter.
        """
        return formatted(caption(scene), self.answer)


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def noun(shape: str, count: int) -> str:
    """The shape's name where there are so many."""
    return shape if count == 1 else PLURALS[shape]


# -- the split ---------------------------------------------------------------------------------------------------


def is_held_out(scene: Scene, task: str | None = None) -> bool:
    """Whether the scene holds a held-out combination: of any kind, or of the kind that the task is about."""
    shapes = sorted({SHAPES.index(o.shape) for o in scene})
    if len(scene) == 1:
        return (shapes[0] + COLORS.index(scene[0].color)) % 5 == 0
    if len(shapes) == 1:
        return (shapes[0] + len(scene)) % len(COUNTS) == 0
    if len(scene) > 2:  # no prompt asks for it
        return False
    first, second = sorted(scene, key=lambda o: SHAPES.index(o.shape))
    pair = SHAPES.index(first.shape) + 2 * SHAPES.index(second.shape)
    relation = relation_of((first.row, first.column), (second.row, second.column)) or RELATIONS[0]
    by_relation = (pair + RELATIONS.index(relation)) % 4 == 0
    by_colors = (pair + COLORS.index(first.color) + 2 * COLORS.index(second.color)) % 5 == 0
    return {"position": by_relation, "color_attr": by_colors}.get(task or "", by_relation or by_colors)


# -- sampling ----------------------------------------------------------------------------------------------------


def sample(rng: random.Random, task: str, split: Split) -> tuple[Description, Scene]:
    """Draws a description of the task and a scene that satisfies it, on the given side of the split.

    Raises:
        ValueError: unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task {task!r} is not one of {', '.join(TASKS)}")
    while True:  # rejection: between a quarter and a half of the draws are held out
        description, scene = _sample_any(rng, task)
        if is_held_out(scene, task) if split == "eval" else not is_held_out(scene):
            return description, scene


def _sample_any(rng: random.Random, task: str) -> tuple[Description, Scene]:
    if task in ("single_object", "colors", "counting"):
        count = rng.choice(COUNTS) if task == "counting" else 1
        shape, color = rng.choice(SHAPES), rng.choice(COLORS)
        cells = rng.sample(range(GRID * GRID), count)
        scene = tuple(Object(shape, color, *divmod(cell, GRID)) for cell in cells)
        return Description(task, (Clause(count, shape, color if task == "colors" else None),)), scene
    shapes = rng.sample(SHAPES, 2)
    colors = rng.sample(COLORS, 2)
    relation = rng.choice(RELATIONS)
    first, second = _cells_in_relation(rng, relation)
    scene = tuple(Object(s, c, *cell) for s, c, cell in zip(shapes, colors, (first, second), strict=True))
    asked = colors if task == "color_attr" else (None, None)
    clauses = tuple(Clause(1, s, c) for s, c in zip(shapes, asked, strict=True))
    return Description(task, clauses, relation if task == "position" else None), scene


def _cells_in_relation(rng: random.Random, relation: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two cells (row, column), the first in the given relation to the second along the dominant axis."""
    while True:
        a, b = (divmod(cell, GRID) for cell in rng.sample(range(GRID * GRID), 2))
        if relation_of(a, b) == relation:
            return a, b


def relation_of(a: tuple[float, float], b: tuple[float, float], least: float = 0.5) -> str | None:
    """The relation of centre `a` to centre `b` ((row, column), in cells): its dominant axis, None on a diagonal."""
    down, right = a[0] - b[0], a[1] - b[1]
    if max(abs(down), abs(right)) < least or abs(abs(down) - abs(right)) < least:
        return None
    if abs(right) > abs(down):
        return "left of" if right < 0 else "right of"
    return "above" if down < 0 else "below"


# -- language ----------------------------------------------------------------------------------------------------


def parse_prompt(prompt: str) -> Description:
    """Reads a world prompt back into its description (the inverse of `Description.prompt`).

    Raises:
        ValueError: the text is not a sentence of the world's small grammar.
    """
    text = prompt.strip().lower().rstrip(".")
    for joint in (*RELATIONS, "and"):
        left, found, right = text.partition(f" {joint} ")
        if found:
            clauses = (_parse_clause(left, prompt), _parse_clause(right, prompt))
            if joint != "and":
                return Description("position", clauses, joint)
            return Description("color_attr" if clauses[0].color else "two_object", clauses)
    clause = _parse_clause(text, prompt)
    task = "counting" if clause.count > 1 else "colors" if clause.color else "single_object"
    return Description(task, (clause,))


def _parse_clause(phrase: str, prompt: str) -> Clause:
    words = phrase.split()
    counts = {"a": 1, "an": 1} | {word: n for n, word in NUMBER_WORDS.items()}
    nouns = {shape: shape for shape in SHAPES} | {plural: shape for shape, plural in PLURALS.items()}
    if 2 <= len(words) <= 3 and words[0] in counts and words[-1] in nouns:
        color = words[1] if len(words) == 3 else None
        if color is None or color in COLORS:
            return Clause(counts[words[0]], nouns[words[-1]], color)
    raise ValueError(
        f"prompt {prompt!r} is not a sentence of the world: cannot read {phrase!r} as a count, "
        f"a colour ({', '.join(COLORS)}) and a shape ({', '.join(SHAPES)})"
    )


def caption(scene: Scene) -> str:
    """Names every object in the picture with its place, in reading order."""
    ordered = sorted(scene, key=lambda o: (o.row, o.column))
    return ", ".join(f"{o.color} {o.shape} {PLACES[round(o.row) * GRID + round(o.column)]}" for o in ordered)


def parse_caption(text: str) -> Scene | None:
    """Reads a caption back into its scene (the inverse of `caption`); None where it is no such caption."""
    found = []
    for phrase in text.split(","):
        color, _, rest = phrase.strip().partition(" ")
        shape, _, place = rest.partition(" ")
        if color not in COLORS or shape not in SHAPES or place not in PLACES:
            return None
        found.append(Object(shape, color, *divmod(PLACES.index(place), GRID)))
    return tuple(found)


def ask(rng: random.Random, description: Description, scene: Scene) -> Question:
    """The question of the description's task type about the scene."""
    first, second = scene[0], scene[-1]
    match description.task:
        case "single_object":
            return _question(rng, "What shape is in the image?", first.shape, SHAPES)
        case "two_object":
            return _question(rng, f"What shape is there besides the {first.shape}?", second.shape, SHAPES)
        case "counting":
            return ask_count(rng, scene)
        case "colors":
            return _question(rng, f"What color is the {first.shape}?", first.color, COLORS)
        case "position":
            text = f"Where is the {first.shape} relative to the {second.shape}?"
            return _question(rng, text, description.relation or "", RELATIONS)
        case _:
            asked = rng.choice(scene)
            return _question(rng, f"What color is the {asked.shape} in the image?", asked.color, COLORS)


def ask_count(rng: random.Random, scene: Scene) -> Question:
    """The counting question, about any scene: it says nothing of what is to be seen."""
    numbers = tuple(NUMBER_WORDS.values())
    return _question(rng, "How many shapes are in the image?", NUMBER_WORDS[len(scene)], numbers)


def _question(rng: random.Random, text: str, answer: str, pool: tuple[str, ...]) -> Question:
    options = [answer, *rng.sample([x for x in pool if x != answer], 3)]
    rng.shuffle(options)
    return Question(text, answer, tuple(options))


# -- truth -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """`score` in [0, 1] is partial credit; `correct` is the strict decision; `reason` says what is wrong."""

    correct: bool
    score: float
    reason: str


def check(scene: Scene, description: Description) -> Verdict:
    """Whether the scene is what the description asks for, nothing missing and nothing extra.

    Partial credit is the mean over: each clause's count, each clause's colour, the relation, and the share of objects
    that were asked for (in the spirit of the partial-credit GenEval reward, without its negative scores).
    """
    parts: list[tuple[float, str]] = []
    for clause in description.clauses:
        same = [o for o in scene if o.shape == clause.shape]
        miss = abs(len(same) - clause.count) / clause.count
        parts.append((max(0.0, 1 - miss), f"{len(same)} {clause.shape}, expected {clause.count}"))
        if clause.color:
            right = sum(o.color == clause.color for o in same) == clause.count
            seen = ", ".join(o.color for o in same) or "none"
            parts.append((float(right), f"{clause.shape} is {seen}, expected {clause.color}"))
    if description.relation:
        parts.append(_check_relation(scene, description))
    wanted = {clause.shape for clause in description.clauses}
    extra = [o for o in scene if o.shape not in wanted]
    named = ", ".join(f"{o.color} {o.shape}" for o in extra)
    wanted_share = 1 - len(extra) / len(scene) if scene else 0.0  # an empty picture earns nothing
    parts.append((wanted_share, f"extra: {named}" if scene else "nothing is drawn"))
    wrong = [reason for credit, reason in parts if credit < 1]
    return Verdict(not wrong, sum(credit for credit, _ in parts) / len(parts), "; ".join(wrong) or "as asked")


def _check_relation(scene: Scene, description: Description) -> tuple[float, str]:
    firsts, seconds = ([o for o in scene if o.shape == clause.shape] for clause in description.clauses)
    if not firsts or not seconds:
        return 0.0, f"nothing is {description.relation} anything"
    found = {relation_of((a.row, a.column), (b.row, b.column)) for a in firsts for b in seconds}
    seen = " and ".join(sorted(r or "on a diagonal" for r in found))
    reason = f"{firsts[0].shape} is {seen}, expected {description.relation}"
    return float(found == {description.relation}), reason
