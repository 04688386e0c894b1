"""docs/architecture.md and CONTRIBUTING.md say what is: floors, folders, files, functions, words."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from ..support.paths import ROOT
from .test_floors import FILES, FLOORS

ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
NAMED = r"`((?:\w+/)+\w+\.py)`(?:: ((?:`[\w.]+`(?:, )?)+))?"  # `a/b.py`: `name`, `Class.method`


def block(page: str, heading: str) -> list[str]:
    """The lines of the first code block below a heading."""
    (below,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return re.findall(r"^```\n(.*?)^```$", below, re.MULTILINE | re.DOTALL)[0].splitlines()


@cache
def names(file: str) -> set[str]:
    """What a file defines at its top level, and its classes' methods as `Class.method`."""
    found = set()
    for node in ast.parse((ROOT / file).read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            targets = (each for target in node.targets for each in ast.walk(target))
            found |= {each.id for each in targets if isinstance(each, ast.Name)}
    return found


@pytest.mark.parametrize("page", [ARCHITECTURE, CONTRIBUTING], ids=["architecture", "contributing"])
def test_every_named_function_exists(page: str) -> None:
    named = re.findall(NAMED, page)
    for file, those in named:
        missing = set(re.findall(r"`([\w.]+)`", those)) - names(file)
        assert not missing, f"{file}: {missing}"
    assert len(named) > (100 if page is ARCHITECTURE else 5)


def test_the_drawing_shows_the_floors() -> None:
    drawn = [set(re.findall(r"(\w+)/", line[:27])) for line in block(ARCHITECTURE, "The floors")]
    assert tuple(reversed(drawn)) == FLOORS


def test_the_tree_is_the_tree() -> None:
    """Every folder with code has a line; every file that is named there exists."""
    folder, listed = Path(), set()
    for line in block(ARCHITECTURE, "The tree"):
        if line[0] != " ":
            folder = Path(line.split()[0])
            listed.add(folder)
            assert (ROOT / folder).is_dir(), folder
        else:
            for name in line.split():
                assert (ROOT / folder / (name if "." in name else f"{name}.py")).is_file(), folder / name
    assert {path.parent for path in FILES} - {Path()} <= listed


def test_the_words_of_the_method_are_explained() -> None:
    """Every class of the method's floors, but those that one file keeps to itself."""
    for path in FILES:
        if path.parts[0] in ("weights", "attention", "relevance", "patching"):
            classes = [n for n in ast.parse((ROOT / path).read_text("utf-8")).body if isinstance(n, ast.ClassDef)]
            unknown = {each.name for each in classes if each.name[0] != "_" and f"`{each.name}`" not in ARCHITECTURE}
            assert not unknown, f"{path}: {unknown} are not in the tables of docs/architecture.md"


@pytest.mark.parametrize("heading", ["A reference, from the node to the term at a site", "An adapter file, to a plan",
                                     "A picture, to the verdict of the binding report",
                                     "A training sample, to an optimizer step"])  # fmt: skip
def test_a_journey_names_a_function_at_almost_every_step(heading: str) -> None:
    (below,) = re.findall(rf"^### {heading}$(.*?)(?=^##)", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    steps = re.findall(r"^\d+\. (.+)$", below, re.MULTILINE)
    assert 10 <= len(steps) <= 12 and sum("`: `" in step for step in steps) >= len(steps) - 1
