"""`mip.py concept101` by several processes: shared out, killed, gone on with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mip_adapter.evaluation.concept101.dataset import load, read_pairs
from PIL import Image

from ...support.bounded import needs_fork
from ...support.concept101 import assert_same_table, line, table, write_dataset
from ...support.forks import forked, four
from ...support.paths import ROOT
from ...support.subprocesses import started, wait_for


def test_two_processes_make_the_same_table(alone: Path, data: Path, encoders, tmp_path: Path, monkeypatch, capsys):
    """One after the other here; whoever comes last writes the table."""
    from mip_adapter.commands.concept101.command import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        assert not (tmp_path / "concept101.json").exists()
        assert main(line(data, tmp_path, encoders)) == 0
        said = capsys.readouterr().out
        assert ("2 of 3 pairs are scored; the last process" in said) == (rank == "0")
    assert_same_table(table(tmp_path), table(alone))
    for file in alone.glob("pictures/*/*.png"):
        assert file.read_bytes() == (tmp_path / file.relative_to(alone)).read_bytes()


@pytest.mark.slow
@needs_fork
def test_four_processes_that_know_nothing_of_each_other(alone: Path, data: Path, encoders, tmp_path: Path):
    """Each makes all that is missing; what one has made no other one replaces."""
    from mip_adapter.commands.concept101.command import main

    asked = [*line(data, tmp_path / "run", encoders), "--pairs", "1", "--prompts", "1"]
    assert four(lambda: main(asked), tmp_path) == [0] * 4
    (picture,) = (tmp_path / "run").rglob("*.png")
    expected = load(alone / picture.relative_to(tmp_path / "run"))
    assert np.abs(np.asarray(load(picture), float) - np.asarray(expected)).max() < 3  # threads add in another order
    assert len(table(tmp_path / "run")["pairs"]) == 1


@pytest.mark.slow
@needs_fork
def test_two_processes_are_killed_and_one_goes_on(host, alone: Path, data: Path, encoders, tmp_path: Path):
    from mip_adapter.commands.concept101.command import main

    def share(rank: int) -> int:
        os.environ.update(RANK=str(rank), WORLD_SIZE="2")
        return main(line(data, tmp_path, encoders))

    pictures = tmp_path / "pictures"
    with forked(lambda: share(0)) as process, forked(lambda: share(1)):
        while process.is_alive() and not both_began(pictures):
            time.sleep(0.01)
    before = {file: file.stat().st_mtime_ns for file in pictures.glob("*/*.png")}
    assert both_began(pictures) and not (tmp_path / "concept101.json").exists()
    assert main(line(data, tmp_path, encoders)) == 0
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())
    assert_same_table(table(tmp_path), table(alone))


def both_began(pictures: Path) -> bool:
    return all(any(pictures.glob(f"{number:03d} */*.png")) for number in (0, 1))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_two_processes_are_killed_while_scoring_and_two_go_on(host, encoders, tmp_path: Path):
    """With pictures of another method, so that there is nothing but scoring."""
    from mip_adapter.commands.concept101.command import main

    data, random = write_dataset(tmp_path / "data", times=12), np.random.default_rng(1)
    for pair in read_pairs(data):
        folder = tmp_path / "alone" / "pictures" / pair.name
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(random.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{number:02d}.png")
    killed = shutil.copytree(tmp_path / "alone", tmp_path / "killed")
    assert main(line(data, tmp_path / "alone", encoders)) == 0

    def scores() -> dict[Path, int]:
        return {file: file.stat().st_mtime_ns for file in killed.glob("scores-*/0*.jsonl")}

    with launched(host, line(data, killed, encoders)) as process:
        wait_for(process, lambda: len(scores()) > 1)
    before = scores()
    assert 1 < len(before) < 36 and not (killed / "concept101.json").exists()
    with launched(host, line(data, killed, encoders)) as process:
        assert process.wait() == 0
    assert len(scores()) == 36 and before.items() <= scores().items()
    assert_same_table(table(killed), table(tmp_path / "alone"))


def launched(host, arguments: list[str]) -> AbstractContextManager[Any]:
    """As two processes, by accelerate."""
    two = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    variables = os.environ | {"MIP_ADAPTER_PYTHON": sys.executable, "COMFYUI_PATH": str(host.folder)}
    command = [*two, str(ROOT / "mip.py"), "concept101", *arguments]
    return started(command, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
