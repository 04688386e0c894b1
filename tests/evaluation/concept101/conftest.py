"""A dataset, encoders, and a run that nobody disturbed."""

from __future__ import annotations

from pathlib import Path

import pytest

from ...support import tiny_clip, tiny_models
from ...support.concept101 import line, write_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("concept101"))


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = tmp_path_factory.mktemp("encoders")
    return tiny_clip.write(base / "tiny-clip"), tiny_models.dino(base / "tiny-dino")


@pytest.fixture(scope="session")
def alone(host, data: Path, encoders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that nobody disturbed."""
    from mip_adapter.commands.concept101.command import main

    output = tmp_path_factory.mktemp("alone")
    assert main(line(data, output, encoders)) == 0
    return output
