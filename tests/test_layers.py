"""Imports point one way. The rows of LAYERS run from the bottom up, and every module belongs to one of them.

A module may import from the rows below its own and, within its row, from its own group (one string below).
Imports inside functions and under `if TYPE_CHECKING` count too: they are dependencies all the same.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parents[1]

# Names are relative to `unison`, the package itself being "". A module's place is the first pattern it fits.
LAYERS: dict[str, list[list[str]]] = {  # layer -> rows, bottom first -> groups of space-separated patterns
    "L0 nouns": [[" types config config_checks"]],
    "L1 pure maths": [
        [
            "policies.tokens policies.sde",
            "policies.packing",
            "policies.blocks",
            "policies.recompute",
            "policies.static",
            "objectives objectives.*",
            "world world.scene world.render world.edits world.riddles world.puzzles world.verdicts",
            "stats",
        ],
        ["policies.decode", "objects"],
        ["policies.causal"],
        ["policies.refill"],
    ],
    "L2 models, rewards, data": [
        ["client"],
        ["world.judge", "endpoint"],
        ["policies policies.*", "rewards rewards.*", "data rows prompts wanted world.items"],
    ],
    "L3 scenarios": [["scenarios scenarios.*"]],
    "L4 the parts of a run": [
        ["distributed"],
        ["rollout", "checkpoint", "environment", "memory", "guards", "throughput", "profiling", "merge", "serve"],
        ["evaluate", "plan"],
        ["drift", "retention", "suites suites.*"],
        ["report", "train_log", "chain"],
        ["compare", "harness"],
        ["harness_model"],
    ],
    "L5 training": [["train", "world.pretrain*"]],
    "L6 what is run": [["recipes recipes.*"], ["cli_train", "cli_eval"], ["cli"], ["__main__"]],
}
SEPARATE = ("policies", "rewards", "objectives")
# importer, imported: pairs that the rows would allow
FORBIDDEN = [
    *permutations(SEPARATE, 2),
    ("policies", "world"),  # the world is one setting among others; a policy knows none
    ("evaluate", "checkpoint"),
    ("report", "checkpoint"),
    ("report", "train_log"),
]
SCENARIOS_MAY_SEE = "policies.base"  # of the policies


class Place(NamedTuple):
    row: int
    group: int


ROWS = [row for rows in LAYERS.values() for row in rows]
PLACES = {
    pattern: Place(i, j) for i, row in enumerate(ROWS) for j, group in enumerate(row) for pattern in group.split(" ")
}


def modules() -> dict[str, Path]:
    """Name relative to `unison` -> file."""
    root = REPO / "unison"
    names = {path: path.relative_to(root).with_suffix("").parts for path in sorted(root.rglob("*.py"))}
    return {".".join(p for p in parts if p != "__init__"): path for path, parts in names.items()}


def place(module: str) -> Place | None:
    return next((place for pattern, place in PLACES.items() if fnmatchcase(module, pattern)), None)


def imports(source: str, module: str, is_package: bool, known: set[str]) -> Iterator[str]:
    """The modules of `unison` that the source imports, wherever in it the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = ["unison", *filter(None, module.split("."))]
                up = node.level - is_package
                base = ".".join(filter(None, [*parents[: len(parents) - up], base]))
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, _, rest = name.partition(".")
            if root != "unison":
                continue
            while rest and rest not in known:  # the last part may be a function or a class
                rest = rest.rpartition(".")[0]
            yield rest


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def complaint(importer: str, imported: str) -> str | None:
    """Why this import is not allowed, or None."""
    here, there = place(importer), place(imported)
    assert here is not None, f"unison.{importer} has no layer: give it one in LAYERS"
    assert there is not None, f"unison.{imported} has no layer: give it one in LAYERS"
    if there.row >= here.row and there != here:
        return "it is not in a lower layer"
    if any(inside(importer, a) and inside(imported, b) for a, b in FORBIDDEN):
        return "these two never import each other"
    if inside(importer, "scenarios") and inside(imported, "policies") and imported != SCENARIOS_MAY_SEE:
        return f"a scenario may only see {SCENARIOS_MAY_SEE}"
    return None


def complaints(source: str, module: str, is_package: bool, known: set[str]) -> list[str]:
    found = {imported: complaint(module, imported) for imported in imports(source, module, is_package, known)}
    return [f"unison.{module} imports unison.{imported}: {why}" for imported, why in found.items() if why]


def test_every_module_has_a_layer():
    assert [name for name in modules() if place(name) is None] == [], "give each one a layer in LAYERS"


def test_imports_only_point_down():
    known = set(modules())
    found = [
        line
        for name, path in modules().items()
        for line in complaints(path.read_text(), name, path.stem == "__init__", known)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "allowed"),
    [
        ("policies.janus", "from unison.policies.base import Policy", True),
        ("policies.janus", "from . import tokens", True),
        ("policies.causal", "from unison.policies import tokens", True),
        ("policies.tokens", "from unison.policies import causal", False),
        ("policies.base", "def f():\n    from unison.rewards import text", False),
        ("policies.base", "from unison.objectives import grpo", False),
        ("objectives.grpo", "from unison.policies.sde import step", False),
        ("rewards.text", "from unison.world.judge import judge", True),
        ("scenarios.t2i", "from unison.policies.base import Policy", True),
        ("scenarios.t2i", "from unison.policies import base, janus", False),
        ("scenarios.t2i", "from ..policies.janus import Janus", False),
        ("types", "if TYPE_CHECKING:\n    from unison.rollout import rollout", False),
        ("evaluate", "import unison.rollout", True),
        ("evaluate", "import unison.checkpoint", False),
        ("rollout", "import unison.evaluate", False),
        ("train", "from unison import recipes", False),
        ("cli", "from unison import recipes, train, __version__", True),
    ],
)
def test_the_rules_hold_for_lazy_relative_and_typing_imports(module: str, source: str, allowed: bool):
    known = {*PLACES, "policies.base", "policies.janus", "objectives.grpo", "rewards.text"}
    assert (complaints(source, module, is_package=False, known=known) == []) is allowed


def test_importing_unison_loads_no_heavy_library():
    heavy = ["torch", "transformers", "diffusers"]
    code = f"import sys, unison; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
