"""`mip.py train`: the file that describes a run, a run over the miniature, and processes that are killed."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from ..support.paths import ROOT, TRAINING_PROCESS
from ..support.subprocesses import started, wait_for
from ..support.training_world import BEFORE, make_early, write_folder
from ..training.test_trainer import equal, one_thread, run  # noqa: F401  (one_thread: a fixture)

JOB = """
data = "data"
[base]
checkpoint = "miniature"
[start]
init = "unet"
[output]
folder = "out"
name = "result"
[recipe]
steps = 2
batch_size = 2
resolution = 64
train = "all"
workers = 0
save_every = 1
validate_every = 2
[[validation]]
prompt = "a cube and a ball"
images = ["data/images/000.png", "data/images/001.png"]
texts = ["cube", "ball"]
side = 64
steps = 1
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    write_folder(tmp_path / "data", 3)
    (tmp_path / "train.toml").write_text(JOB)
    return tmp_path / "train.toml"


def test_a_run_over_the_miniature(host, job: Path, capsys) -> None:
    """From nothing to a file that loads, then the same command again: nothing is left to do, nothing is overwritten."""
    from mip_adapter.commands.train import main
    from mip_adapter.weights.adapter import load_adapter

    assert main(["--config", str(job), "--cpu"]) == 0
    out = job.parent / "out"
    assert load_adapter(out / "result.safetensors").spec.has_head
    assert (out / "validation" / "step-000002-1.png").is_file() and (out / "loss.png").is_file()
    assert main(["--config", str(job), "--cpu"]) == 0
    assert equal(*(load_adapter(out / f"{name}.safetensors") for name in ("result", "result_2")))
    printed = capsys.readouterr().out
    assert "3 of 3 pictures are usable" in printed and "step 2/2  loss" in printed


def test_a_run_from_before_the_official_rules_goes_on_by_its_own(host, job: Path, capsys) -> None:
    from mip_adapter.commands.train import main

    assert main(["--config", str(job), "--cpu"]) == 0
    make_early(job.parent / "out")
    for steps in (3, 4):  # the checkpoint of step 3 names the settings
        job.write_text(JOB.replace("steps = 2", f"steps = {steps}", 1))
        assert main(["--config", str(job), "--cpu"]) == 0
        with safe_open(job.parent / "out" / f"result_{steps - 1}.safetensors", "pt") as file:
            recipe = json.loads(file.metadata()["recipe"])
        assert BEFORE.items() <= recipe.items() and recipe["filters"]["cropped_aspect"] == "w/h"
        printed = capsys.readouterr().out
        assert f"step {steps}/{steps}" in printed and f"step 1/{steps}" not in printed
    job.write_text(JOB.replace("steps = 2", "steps = 3\nnoise_offset = 0.1", 1))
    assert main(["--config", str(job), "--cpu"]) == 1
    assert "another recipe (noise_offset 0.0 -> 0.1)" in capsys.readouterr().err


def test_a_log_that_cannot_be_written_ends_no_run(host, job: Path, monkeypatch) -> None:
    from mip_adapter.commands.train import main

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    assert main(["--config", str(job), "--cpu"]) == 0
    assert (job.parent / "out" / "result.safetensors").is_file()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('"ball"]', '" "]', "Validation picture 1 (“a cube and a ball”) cannot be made: The object text is empty"),
        ('"ball"]', f'"{"a b " * 60}"]', "is longer than"),
        ("data/images/001.png", "data/jsons/001.json", "cannot identify image file"),
        ("side = 64", "side = 64\nscale = -1", "scale is -1"),
    ],
)
def test_validation_that_cannot_be_made_is_told_before_the_first_step(host, job: Path, capsys, old, new, message):
    from mip_adapter.commands.train import main

    job.write_text(JOB.replace(old, new, 1))
    assert main(["--config", str(job), "--cpu"]) == 1
    printed = capsys.readouterr()
    assert message in printed.err and "step 1/2" not in printed.out


def test_the_example_is_the_defaults(tmp_path: Path) -> None:
    import tomllib
    from mip_adapter.training.config import TrainConfig, read_table
    from mip_adapter.training.run_config import RunConfig

    text = (ROOT / "training" / "example.toml").read_text("utf-8")
    assert read_table(RunConfig, tomllib.loads(text), "example").recipe == TrainConfig()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('data = "data"', "", "does not say data"),
        ('init = "unet"', "", "must say either start.file"),
        ('init = "unet"', 'file = "none.safetensors"', "files that do not exist: .*none.safetensors"),
        ('init = "unet"', 'init = "zeros"', "the only choice is “unet”"),
        ('train = "all"', "", "image projection must be trained too"),
        ('"miniature"', '"sdxl.safetensors"', "does not say base.clip_vision"),
        ("batch_size = 2", "batch = 2", "has no setting batch"),
        ("steps = 2", "steps = 0", "steps is 0"),
        ('texts = ["cube", "ball"]', 'texts = ["cube"]', "as many texts as images"),
        ("[recipe]", "[recipe", "cannot be read as TOML"),
        ("save_every = 1", "filters = 5", r"train.toml.recipe.filters is 5, a int; expected a table"),
        ('data = "data"', 'data = ["a", "b"]', r"train.toml.data is \['a', 'b'\], a list; expected a str"),
        ("[[validation]]", "[validation]", r"validation is {.*}, a dict; expected a table below \[\[validation\]\]"),
        (
            'texts = ["cube", "ball"]',
            'texts = "cube"',
            r"train.toml.validation.texts is 'cube', a str; expected a list",
        ),
        ('texts = ["cube", "ball"]', 'texts = ["cube", 2]', "train.toml.validation.texts is 2, a int; expected a str"),
    ],
)
def test_files_that_do_not_describe_a_run(job: Path, capsys, old: str, new: str, message: str) -> None:
    import re

    from mip_adapter.commands.train import main

    job.write_text(JOB.replace(old, new, 1))
    assert main(["--config", str(job)]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "text, message", [("recipe = 5", "recipe is 5, a int"), ("validation = [5]", "validation is 5")]
)
def test_values_where_tables_belong(tmp_path: Path, text: str, message: str) -> None:
    from mip_adapter.training.run_config import read_run_config

    (tmp_path / "train.toml").write_text(text)
    with pytest.raises(ValueError, match=f"train.toml.{message}.*; expected a table of settings"):
        read_run_config(tmp_path / "train.toml")


def test_only_the_checkpoint_may_be_the_miniature(job: Path) -> None:
    """Elsewhere it is a file's or folder's name like any other."""
    from mip_adapter.training.run_config import read_run_config

    job.write_text(JOB.replace('data = "data"', 'data = "miniature"').replace('folder = "out"', 'folder = "miniature"'))
    read = read_run_config(job)
    assert read.data == read.output.folder == str(job.parent / "miniature") and read.base.checkpoint == "miniature"
    job.write_text(JOB.replace("[start]", 'vae = "miniature"\n[start]'))
    with pytest.raises(ValueError, match="files that do not exist: .*/miniature"):
        read_run_config(job)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("number, workers", [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGKILL, 2)])
def test_a_killed_process_goes_on_as_if_nothing_had_happened(tmp_path: Path, number: signal.Signals, workers) -> None:
    """The whole process group is signalled, as launchers and terminals do: workers leave the end to the trainer."""
    data, out = write_folder(tmp_path / "data"), tmp_path / "out"
    script = TRAINING_PROCESS
    line = [sys.executable, str(script), str(data), str(out), "2", "100000", str(workers)]
    with started(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL) as process:
        wait_for(process, lambda: any(out.glob("checkpoints/step-0*3.pt")))
        os.killpg(process.pid, number)
        process.wait()
    made = int(sorted(out.glob("checkpoints/step-*.pt"))[-1].stem.split("-")[1])
    assert made >= 3 and process.returncode == (-number if number == signal.SIGKILL else 0)
    resumed = run(data, out, steps=made + 3, accumulate=2, save_every=1)
    whole = run(data, steps=made + 3, accumulate=2)
    assert resumed.losses == whole.losses and equal(resumed.adapter, whole.adapter)
    assert all(torch.isfinite(torch.tensor(whole.losses)))
