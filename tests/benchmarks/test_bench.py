"""`mip.py bench --step`, at its smallest: it drives the sampling path without the host's samplers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from mip_adapter.launcher.package import arguments_for

from ..support.subprocesses import finished

pytestmark = pytest.mark.usefixtures("host")


def test_a_step_is_timed_with_the_patch_and_the_record(tmp_path: Path) -> None:
    """It refuses to report records that recorded nothing."""
    file = tmp_path / "bench.json"
    line = [sys.executable, *arguments_for("benchmarks.bench"), "--step", "--small", "--pixels", "64"]
    done = finished([*line, "--rounds", "1", "--json", file])
    assert done.returncode == 0, done.stderr
    assert "M 4, T 16, recorded" in done.stdout and file.is_file() and json.loads(file.read_text())
