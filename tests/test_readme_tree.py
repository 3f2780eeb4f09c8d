"""The README's annotated tree is the map of the sources, and it is true.

The tree is the one fenced block of README.md that has a line reading `unison/`. Its format:

    unison/
      types.py          the nouns: context, action, turn, trajectory
      policies/         a phrase on a folder is welcome, not required
        base.py         the policy interface

One entry a line, two spaces of indentation a level, the outermost entries at the repository's root. A folder
name ends in `/`. After a name come two or more spaces and a phrase, on the same line. Every Python file of
unison/ (but an empty `__init__.py`) and of benchmarks/ is in it with a phrase; other files may be.
"""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
ENTRY = re.compile(r"(?P<indent>(?:  )*)(?P<name>[^\s/]+/?)(?: {2,}(?P<phrase>\S.*))?")


def fenced_tree(text: str) -> str:
    blocks = re.findall(r"^```[^\n]*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    trees = [block for block in blocks if re.search(r"^unison/(\s|$)", block, flags=re.MULTILINE)]
    assert len(trees) == 1, f"README.md needs one fenced block with a line `unison/`, got {len(trees)}"
    return trees[0]


def parse(tree: str) -> dict[str, str]:
    """Path -> phrase, "" where there is none; a folder's path ends in `/`."""
    entries: dict[str, str] = {}
    parents: list[str] = []
    for line in filter(str.strip, tree.splitlines()):
        match = ENTRY.fullmatch(line.rstrip())
        assert match, f"not `name`, two or more spaces, `phrase`, at an even indentation: {line!r}"
        depth = len(match["indent"]) // 2
        assert depth <= len(parents), f"indented deeper than a child of the line above: {line!r}"
        path = "".join(parents[:depth]) + match["name"]
        assert path not in entries, f"{path} is listed twice"
        entries[path] = match["phrase"] or ""
        parents = [*parents[:depth], match["name"]] if match["name"].endswith("/") else parents[:depth]
    return entries


@pytest.fixture(scope="module")
def tree() -> dict[str, str]:
    return parse(fenced_tree((REPO / "README.md").read_text()))


def test_every_source_file_is_in_the_tree_with_a_phrase(tree: dict[str, str]):
    sources = [*(REPO / "unison").rglob("*.py"), *(REPO / "benchmarks").glob("*.py")]
    named = [path for path in sources if path.name != "__init__.py" or path.read_text().strip()]
    missing = sorted(path.relative_to(REPO).as_posix() for path in named)
    assert [path for path in missing if not tree.get(path)] == []


def test_everything_in_the_tree_exists(tree: dict[str, str]):
    assert [path for path in tree if not (REPO / path).exists()] == []


def test_the_tree_is_read_by_indentation():
    assert parse("unison/\n  policies/\n    base.py  the interface\n  cli.py  the verbs\n") == {
        "unison/": "",
        "unison/policies/": "",
        "unison/policies/base.py": "the interface",
        "unison/cli/main.py": "the verbs",
    }


@pytest.mark.parametrize("line", ["  cli.py the verbs", "   cli.py  the verbs", "    cli.py  the verbs"])
def test_a_malformed_line_is_refused(line: str):
    with pytest.raises(AssertionError):
        parse(f"unison/\n{line}")
