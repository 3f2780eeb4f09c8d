"""Imports point one way. The lines of LAYERS run from the bottom up: what a room, a folder or a loose module of
`unison`, imports lies in a lower line, or in the room itself.

Imports inside functions and under `if TYPE_CHECKING` count too: they are dependencies all the same.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]

LAYERS = """
types
answers config hub
world policies objectives
data scenarios
rewards recipes
evaluation planning
reports pretrain
training
cli
__main__
"""
LINES = {room: line for line, rooms in enumerate(LAYERS.split("\n")) for room in rooms.split()}
INSIDE = {
    "policies": ["actions adapters", "decisions reference grouping", "decoding", "base", "janus showo metaquery"],
}
"""Lines of a room's own, from the bottom up, for those of its parts that are named here: a family sees no other, and
what it is made of knows no family."""


def sources(root: Path = REPO / "unison") -> dict[str, Path]:
    """Name relative to `unison` -> file."""
    parts = {path: path.relative_to(root).with_suffix("").parts for path in sorted(root.rglob("*.py"))}
    return {".".join(p for p in some if p != "__init__"): path for path, some in parts.items()}


def imports(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """The modules of `unison` that the source imports, wherever in it the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["unison", *filter(None, module.split("."))]
                base = ".".join(filter(None, [*parents[: len(parents) - node.level + is_package], base]))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            while rest and rest not in known:  # the last part may be a function or a class
                rest = rest.rpartition(".")[0]
            if root == "unison" and rest:
                yield rest


def complaint(importer: str, imported: str) -> str | None:
    """Why this import is not allowed, or None."""
    here, there = importer.partition(".")[0], imported.partition(".")[0]
    for room in (here, there):
        assert room in LINES, f"unison.{room} has no line in LAYERS: give it one"
    if here != there:
        return None if LINES[there] < LINES[here] else f"{there} does not lie in a line below {here}"
    lines = {part: line for line, parts in enumerate(INSIDE.get(here, [])) for part in parts.split()}
    one, other = (name.split(".")[1] if "." in name else "" for name in (importer, imported))
    if one == other or one not in lines or other not in lines or lines[other] < lines[one]:
        return None
    return f"in {here}, {other} does not lie in a line below {one}"


def complaints(source: str, module: str, is_package: bool, known: set[str]) -> list[str]:
    found = {imported: complaint(module, imported) for imported in imports(source, module, is_package, known)}
    return [f"unison.{module} imports unison.{imported}: {why}" for imported, why in found.items() if why]


def test_imports_only_point_down():
    known = set(sources())
    found = [
        line
        for name, path in sources().items()
        if name
        for line in complaints(path.read_text(), name, path.stem == "__init__", known)
    ]
    assert not found, "\n".join(found)


def test_every_line_names_rooms_that_exist_and_no_room_lacks_one():
    rooms = {name.partition(".")[0] for name in sources() if name}
    assert rooms <= set(LINES), "give each one a line in LAYERS"
    assert set(LINES) <= rooms, "LAYERS names rooms that are not there"


def test_few_modules_stand_beside_the_packages():
    loose = [name for name, path in sources().items() if "." not in name and path.stem not in ("__init__", "__main__")]
    assert len(loose) <= 3, loose


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("policies.janus.policy", "from unison.policies.base import Policy", True),
        ("policies.janus.policy", "from . import network", True),
        ("policies.janus.policy", "from unison.policies.showo import layout", False),
        ("policies.decoding.causal", "from unison.policies.decisions import tokens", True),
        ("policies.decisions.tokens", "from unison.policies.decoding import causal", False),
        ("policies.base", "def f():\n    from unison.rewards import text", False),
        ("policies.base", "from unison.objectives import grpo", False),
        ("objectives.grpo", "from unison.policies.decisions.sde import step", False),
        ("rewards.text", "from unison.world.judge import judge", True),
        ("scenarios.t2i", "from unison.policies.base import Policy", True),
        ("scenarios.t2i", "from ..rewards.text import accuracy", False),
        ("types", "if TYPE_CHECKING:\n    from unison.config import RunConfig", False),
        ("evaluation.held_out", "import unison.scenarios.rollout", True),
        ("evaluation.held_out", "import unison.training.checkpoint", False),
        ("training.trainer", "from unison import cli", False),
        ("cli.main", "from unison import recipes, training, __version__", True),
    ],
)
def test_the_rules_hold_for_lazy_relative_and_typing_imports(module: str, source: str, allowed: bool):
    known = {*sources(), "policies.janus.network"}
    assert (complaints(source, module, is_package=False, known=known) == []) is allowed


def test_importing_unison_loads_no_heavy_library():
    heavy = ["torch", "transformers", "diffusers"]
    code = f"import sys, unison; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
