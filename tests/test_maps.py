"""Every package's docstring maps its own files, truly, and the README's short tree maps the packages.

A map is the lines `    name.py  phrase` and `    name/  phrase` of a docstring: four spaces, a name, two or more
spaces, a phrase. It names every module and folder of code beside it, once, and nothing else.
"""

import ast
import re
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
PACKAGES = sorted(path.parent for path in (REPO / "unison").rglob("__init__.py"))
LINE = re.compile(r"^    (?P<name>[\w.-]+(?:\.py|/)) {2,}(?P<phrase>\S.*)$", re.MULTILINE)
GROWS = ("data", "scenarios", "objectives", "rewards", "recipes", "policies", "config", "evaluation/suites")
"""Packages whose docstring says how to add one."""


def mapped(package: Path) -> list[str]:
    doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text()), clean=False) or ""
    return [match["name"] for match in LINE.finditer(doc)]


def present(package: Path) -> set[str]:
    files = {path.name for path in package.glob("*.py") if not path.stem.startswith("__")}
    inside = [path for path in package.iterdir() if path.is_dir() and not path.name.startswith("__")]
    folders = {f"{path.name}/" for path in inside if any(one.name != "__pycache__" for one in path.iterdir())}
    return files | folders


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.relative_to(REPO).as_posix())
def test_a_package_maps_its_own_files(package: Path):
    names = mapped(package)
    assert len(names) == len(set(names)), "a file is named twice"
    assert set(names) == present(package)


@pytest.mark.parametrize("name", GROWS)
def test_a_package_that_grows_says_how(name: str):
    doc = ast.get_docstring(ast.parse((REPO / "unison" / name / "__init__.py").read_text())) or ""
    assert re.search(r"To add (an?|one)\b", doc)


def test_the_readme_has_a_line_for_every_package_and_no_more_than_25():
    text = (REPO / "README.md").read_text()
    (tree,) = [
        block for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "unison/\n" in block
    ]
    names = re.findall(r"^  ([\w.]+/?) {2,}\S", tree, re.MULTILINE)
    assert set(names) == present(REPO / "unison")
    assert tree.count("\n") <= 25


@pytest.mark.parametrize(
    ("line", "name"),
    [("    trainer.py  the loop", "trainer.py"), ("    remote/   judges elsewhere", "remote/"), ("    a.py one", None)],
)
def test_a_line_of_a_map_is_known_by_its_form(line: str, name: str | None):
    match = LINE.search(line)
    assert (match["name"] if match else None) == name
