"""Commands that are killed at any moment, and four of them in one folder: nothing is lost, nothing half is taken for
whole.

The commands are the real ones, each in a forked process, which starts at once since everything is imported. Each is
killed five times; MIP_ADAPTER_FUZZ=40 makes 200.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mip_adapter.commands import convert, curate, dataset
from mip_adapter.common.atomic_io import atomic_write
from mip_adapter.training.checkpoints import last_step
from mip_adapter.training.save import save_adapter
from mip_adapter.weights.files import read_tensors
from PIL import Image

from ..support import tiny_clip
from ..support.bounded import LONGER, needs_fork
from ..support.forks import forked, four
from ..support.training_world import small_adapter, write_folder

pytestmark = [needs_fork, pytest.mark.slow]
KILLS = 5 * LONGER


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the forked processes, so that all sums are added up alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def killed(act: Callable[[], Any], done: Callable[[], int], check: Callable[[], Any]) -> None:
    """Runs a command again and again and kills it: at once, or after it has done one thing more, or in the midst of it.

    done: how much there is. It never becomes less. check: is called after each kill.
    """
    rng = random.Random(KILLS)
    for _ in range(KILLS):
        before, at_once = done(), rng.random() < 0.2
        with forked(act) as process:
            while not at_once and done() == before and process.is_alive():
                time.sleep(0.001)
            time.sleep(rng.random() * 0.05)
        assert done() >= before
        check()


def lines_of(folder: Path) -> int:
    """How many parts of a run are finished, each of them whole."""
    parts = sorted(folder.glob("[0-9]*.jsonl"))
    assert all(json.loads(line)["id"] for part in parts for line in part.read_text("utf-8").splitlines())
    return len(parts)


# ---- curating and making training data ----


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"), 12)


@pytest.fixture(scope="module")
def curating(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[[Path], int], list[dict]]:
    """The command for an output, and the table that it makes undisturbed."""
    encoder = tiny_clip.write(tmp_path_factory.mktemp("encoder") / "tiny-clip")
    more = ["--part", "1", "--workers", "1", "--device", "cpu", "--sheet", "2"]

    def run(output: Path) -> int:
        return curate.main([str(data), "--encoder", str(encoder), "--output", str(output), *more])

    alone = tmp_path_factory.mktemp("alone") / "quality.jsonl"
    assert run(alone) == 0
    return run, table(alone)


def table(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [{key: round(each, 4) if isinstance(each, float) else each for key, each in row.items()} for row in rows]


def test_curation_that_is_killed(curating: tuple[Callable, list], tmp_path: Path) -> None:
    (run, alone), output = curating, tmp_path / "quality.jsonl"
    parts = tmp_path / "quality.jsonl.parts"

    def whole() -> None:
        assert not output.exists() or table(output) == alone

    killed(lambda: run(output), lambda: lines_of(parts), whole)
    assert run(output) == 0 and table(output) == alone


def test_four_curate_at_once(curating: tuple[Callable, list], tmp_path: Path) -> None:
    (run, alone), output = curating, tmp_path / "quality.jsonl"
    assert four(lambda: run(output), tmp_path) == [0] * 4
    assert table(output) == alone


@pytest.fixture(scope="module")
def labelling(tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[[Path], int], dict[str, bytes]]:
    """The command for an output, and the files that it makes undisturbed."""
    from mip_adapter.miniature import world, world_words

    folder, scenes = tmp_path_factory.mktemp("drawn"), world.sample(10, 11, (2,))
    for number, image in enumerate(world.render(scenes, 128).images):
        Image.fromarray((image.movedim(0, -1) * 255).round().byte().numpy()).save(folder / f"{number}.png")
        first, second = (world_words.object_text(kind) for kind in scenes.present(number))
        (folder / f"{number}.txt").write_text(f"a drawing of a {first} next to a {second}")

    def run(output: Path) -> int:
        more = ["--part", "1", "--detector", "miniature", "--min-objects", "0", "--sheet", "2"]
        return dataset.main([str(folder), "--output", str(output), *more])

    alone = tmp_path_factory.mktemp("alone") / "made"
    assert run(alone) == 0
    return run, made(alone)


def made(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "plan.json"}


def test_labelling_that_is_killed(labelling: tuple[Callable, dict], tmp_path: Path) -> None:
    (run, alone), output = labelling, tmp_path / "made"

    def check() -> None:
        assert all(content == alone[name] for name, content in made(output).items())

    killed(lambda: run(output), lambda: lines_of(output / "dataset.parts"), check)
    assert run(output) == 0 and made(output) == alone


def test_four_label_at_once(labelling: tuple[Callable, dict], tmp_path: Path) -> None:
    (run, alone), output = labelling, tmp_path / "made"
    assert four(lambda: run(output), tmp_path) == [0] * 4
    assert made(output) == alone


# ---- saves ----


def test_four_convert_and_four_save_at_once(tmp_path: Path) -> None:
    """One of them converts, the others are told; whoever saves gets a file of their own."""
    source = save_adapter(small_adapter(), tmp_path, "source")
    target = tmp_path / "converted.safetensors"
    status = four(lambda: convert.main([str(source), "--output", str(target)]), tmp_path)
    assert sorted(status) == [0, 1, 1, 1] and read_tensors(target).keys() == read_tensors(source).keys()
    said = [(tmp_path / f"{number}").read_text() for number in range(4)]
    assert sum("exists already: use --force" in each for each in said) == 3
    assert four(lambda: save_adapter(small_adapter(), tmp_path / "saved", "same") is None, tmp_path) == [0] * 4
    assert len([read_tensors(file) for file in (tmp_path / "saved").iterdir()]) == 4


def test_four_append_lines_at_once(tmp_path: Path) -> None:
    """As two shards of the same number of `mip.py arms` do."""
    from mip_adapter.research.ablation.command import Run

    batch: Any = [{"key": [number], "more": "x" * 2000} for number in range(16)]
    run: Any = SimpleNamespace(lines=tmp_path / "rows-0-of-1.jsonl")

    def append() -> int:
        for _ in range(100):
            Run._append(run, batch)
        return 0

    assert four(append, tmp_path) == [0] * 4
    lines = [line for line in run.lines.read_text().split("\n") if line]
    assert len(lines) == 4 * 100 * 16 and all(len(json.loads(line)["more"]) == 2000 for line in lines)


def test_saves_that_are_killed(tmp_path: Path) -> None:
    adapter = small_adapter()
    alone = read_tensors(save_adapter(adapter, tmp_path / "alone", "same"))

    def save() -> None:
        while True:
            save_adapter(adapter, tmp_path / "killed", "same")

    def files() -> list[Path]:
        return sorted((tmp_path / "killed").glob("*.safetensors"))

    def whole() -> None:
        for file in files():
            tensors = read_tensors(file)
            assert tensors.keys() == alone.keys() and all(torch.equal(tensors[key], alone[key]) for key in alone)
        for file in files()[20:]:
            file.unlink()

    killed(save, lambda: len(files()), whole)
    assert files()


# ---- training ----

JOB = """
data = "{data}"
base.checkpoint = "miniature"
start.init = "unet"
output = {{ folder = "{out}", name = "result" }}
recipe = {{ steps = {steps}, batch_size = 1, resolution = 64, train = "all", workers = 0, save_every = 1, keep = 2 }}
"""


@pytest.fixture(scope="module")
def training(host, data: Path) -> Callable[[Path, int], int]:
    from mip_adapter.commands.train import main

    def run(folder: Path, steps: int) -> int:
        atomic_write(folder / "train.toml", JOB.format(data=data, out=folder / "out", steps=steps))
        return main(["--config", str(folder / "train.toml"), "--cpu"])

    return run


def test_training_that_is_killed(training: Callable[[Path, int], int], tmp_path: Path) -> None:
    """Each kill costs a step at most, and in the end it is the training that nobody disturbed."""
    out = tmp_path / "killed" / "out"

    def whole() -> None:
        for file in (out / "checkpoints").glob("step-*.pt"):
            assert torch.load(file, weights_only=True)["step"] == int(file.stem.split("-")[1])

    assert training(tmp_path / "alone", 1) == 0  # imports everything
    killed(lambda: training(tmp_path / "killed", 10**6), lambda: last_step(out), whole)
    steps = last_step(out) + 1
    assert steps > KILLS // 2
    for folder in ("killed", "alone"):
        assert training(tmp_path / folder, steps) == 0
    one, two = (read_tensors(tmp_path / name / "out" / file)
                for name, file in (("killed", "result.safetensors"), ("alone", "result_2.safetensors")))  # fmt: skip
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_four_train_at_once(training: Callable[[Path, int], int], tmp_path: Path) -> None:
    """Who finds the folder free trains; the others are told, or come when the work is done."""
    status = four(lambda: training(tmp_path / "run", 3), tmp_path)
    told = [(tmp_path / f"{number}").read_text() for number in range(4)]
    for code, said in zip(status, told, strict=True):
        assert code == 0 and "Saved" in said or code == 1 and "two trainings cannot share a folder" in said, said
    assert 0 in status and last_step(tmp_path / "run" / "out") == 3
    saved = [*(tmp_path / "run" / "out").glob("result*.safetensors")]
    assert len(saved) == status.count(0)
    first, *others = (read_tensors(file) for file in saved)
    assert all(torch.equal(each[key], first[key]) for each in others for key in first)
