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
Definition = ast.FunctionDef | ast.ClassDef
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
        if isinstance(node, Definition):
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
    """Every folder with code has a line; every file that is named there exists, and none is left out."""
    folder, listed, named = Path(), set(), set()
    for line in block(ARCHITECTURE, "The tree"):
        if line[0] != " ":
            folder = Path(line.split()[0])
            listed.add(folder)
            assert (ROOT / folder).is_dir(), folder
        else:
            for name in line.split():
                named.add(folder / (name if "." in name else f"{name}.py"))
    assert all((ROOT / path).is_file() for path in named)
    assert {path.parent for path in FILES} - {Path()} <= listed
    assert {path for path in FILES if path.parent != Path() and path.name != "__init__.py"} <= named


def test_the_words_of_the_method_are_explained() -> None:
    """Every class of the method's floors, but those that one file keeps to itself."""
    for path in FILES:
        if path.parts[0] in ("weights", "attention", "relevance", "patching"):
            classes = [n for n in ast.parse((ROOT / path).read_text("utf-8")).body if isinstance(n, ast.ClassDef)]
            unknown = {each.name for each in classes if each.name[0] != "_" and f"`{each.name}`" not in ARCHITECTURE}
            assert not unknown, f"{path}: {unknown} are not in the tables of docs/architecture.md"


JOURNEYS = re.findall(
    r"^### (.+?)$(.*?)(?=^##)",
    re.findall(r"^## Five journeys$.*?(?=^## )", ARCHITECTURE, re.MULTILINE | re.DOTALL)[0] + "##",
    re.MULTILINE | re.DOTALL,
)


@cache
def mentioned(file: str, name: str) -> set[str]:
    """All names in the body of a function, a class, or a method (`Class.method`) of a file."""
    body: ast.AST = ast.parse((ROOT / file).read_text("utf-8"))
    for part in name.split("."):
        (body,) = [each for each in ast.iter_child_nodes(body) if isinstance(each, Definition) and each.name == part]
    return {each.id for each in ast.walk(body) if isinstance(each, ast.Name)} | {
        each.attr for each in ast.walk(body) if isinstance(each, ast.Attribute)
    }


@pytest.mark.parametrize("steps", [steps for _, steps in JOURNEYS], ids=[heading for heading, _ in JOURNEYS])
def test_a_journey_is_a_tree_of_calls(steps: str) -> None:
    """Every function exists, and a function above names those that stand below it."""
    file, above = "", list[tuple[str, str]]()
    lines = re.findall(r"^( *)- (?:`([\w/]+\.py)`: )?((?:`[\w.]+`(?:, )?)+)", steps, re.MULTILINE)
    assert len(lines) == len(re.findall(r"^ *- ", steps, re.MULTILINE)) > 12
    for indent, named, functions in lines:
        file, depth = named or file, len(indent) // 2
        assert depth <= len(above)
        called = re.findall(r"`([\w.]+)`", functions)
        assert set(called) <= names(file), file
        for function in called if depth else ():
            caller = above[depth - 1]
            assert function.rpartition(".")[2] in mentioned(*caller), f"{caller} does not name {function}"
        above[depth:] = [(file, called[0])]


def test_there_are_five_journeys() -> None:
    assert len(JOURNEYS) == 5
