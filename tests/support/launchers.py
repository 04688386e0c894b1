"""mip.py and the launcher of any checkout, and a stand-in for the host."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .paths import ROOT
from .subprocesses import finished

# Of a repository that needs nothing installed.
PYPROJECT = """
[tool.mip-adapter]
host = "tiny-host==1.0"
[dependency-groups]
torch = []
host = [{ include-group = "torch" }]
dev = []
"""

_numbers = itertools.count()


def load(folder: Path) -> SimpleNamespace:
    """The launcher of a checkout, with its own ROOT: its modules by their names."""
    name = f"launcher_{next(_numbers)}"
    init = folder / "launcher" / "__init__.py"
    spec = importlib.util.spec_from_file_location(name, init, submodule_search_locations=[str(init.parent)])
    assert spec and spec.loader
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    modules = ("package", "environment", "comfyui", "server", "commands")
    return SimpleNamespace(**{each: importlib.import_module(f"{name}.{each}") for each in modules})


def run(*arguments: str, root: Path = ROOT) -> Any:
    return finished([sys.executable, root / "mip.py", *arguments])


def fake_host(folder: Path, main: str) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").write_text(main)
    return folder
