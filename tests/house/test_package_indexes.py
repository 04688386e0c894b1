"""A package's docstring lists its files, and every file stands there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from ..support.paths import ROOT
from .test_floors import FILES

PACKAGES = [path.parent for path in FILES if path.name == "__init__.py" and path.parent != Path()]


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_an_index_lists_the_files(package: Path) -> None:
    folder = ROOT / package
    said = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    listed = re.findall(r"^(\w+(?:\.py|/)) +\S", said, re.MULTILINE)
    files = {path.name for path in folder.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    assert sorted(listed) == sorted(files | folders)
