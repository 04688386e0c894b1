"""A cache for each test, and a repository of the launcher alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ..support.launchers import PYPROJECT
from ..support.paths import ROOT


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """None of mip.py's variables set, but a cache of our own; returns the cache."""
    for name in ("COMFYUI_PATH", "MIP_ADAPTER_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MIP_ADAPTER_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(clean: Path, tmp_path: Path) -> Path:
    """A repository of the launcher alone, whose environment needs nothing installed."""
    folder = tmp_path / "pack"
    folder.mkdir()
    shutil.copy(ROOT / "mip.py", folder)
    shutil.copytree(ROOT / "launcher", folder / "launcher", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "requirements.txt").write_text("")
    return folder
