"""Runs and their folders under attack: two trainings at once, made-up checkpoints, saves at the same time, kills."""

from __future__ import annotations

import multiprocessing
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mip_adapter.common.folder_lock import only_here
from mip_adapter.training.checkpoints import last_step, write_state
from mip_adapter.training.data_folder import picture_ids, refuse_other_machine
from mip_adapter.training.save import save_adapter
from mip_adapter.training.trainer import train

from ..support.bounded import LONGER, needs_fork
from ..support.training_world import PlainModel, small_adapter, small_recipe, write_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


def run(data: Path, folder: Path, **changes: Any) -> Any:
    from mip_adapter.training.dataset import SubjectFolder

    recipe = small_recipe(**{"steps": 2, **changes})
    return train(PlainModel(), SubjectFolder(data, recipe), small_adapter(), recipe, folder=folder)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of a checkpoint after two steps."""
    folder = tmp_path_factory.mktemp("run")
    run(data, folder, ema=0.5)
    return torch.load(folder / "checkpoints" / "step-00000002.pt", weights_only=True)


def hold(folder: Path, ready: Any, leave: Any) -> None:
    with only_here(folder, "wait."):
        ready.set()
        leave.wait()


@needs_fork
def test_a_folder_takes_one_training_at_a_time(data: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, leave))
    other.start()
    ready.wait()
    try:
        with pytest.raises(
            ValueError, match=rf"Another process writes into .*process {other.pid}, since .*cannot share"
        ):
            run(data, tmp_path)
        assert not (tmp_path / "checkpoints").exists()
        other.kill()
        other.join()
        assert len(run(data, tmp_path).losses) == 2
    finally:
        other.kill()
        other.join()
    with only_here(tmp_path, "wait."), pytest.raises(ValueError, match=f"this one, process {os.getpid()}"):
        run(data, tmp_path)


@pytest.mark.parametrize("name", ["\\\\somewhere\\share", "\\\\?\\UNC\\somewhere\\share", "//somewhere/share"])
def test_no_other_machine_is_asked_for_data(tmp_path: Path, name: str) -> None:
    """Windows would log in there as soon as anything asks whether the path exists."""
    if name[0] == "/" and os.name != "nt":
        pytest.skip("such a path names no machine here")
    kept = tmp_path / "kept.txt"
    kept.write_text(f"# dataset: {name}\na\n")
    for ask in (lambda: picture_ids(kept), lambda: refuse_other_machine(name)):
        with pytest.raises(ValueError, match="is on another machine: connect its folder as a drive"):
            ask()


def test_a_list_of_kept_pictures_names_no_paths(tmp_path: Path) -> None:
    for away in ("../up", "/etc/passwd", "\\\\somewhere\\share", "C:x"):
        (tmp_path / "kept.txt").write_text(f"# dataset: .\n{away}\n")
        with pytest.raises(ValueError, match="which is a path"):
            picture_ids(tmp_path / "kept.txt")


def edited(state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**state, **changes}


def deep(state: dict[str, Any], *path: Any, value: Any) -> dict[str, Any]:
    """A copy of the state with another value at a place."""
    first, *rest = path
    inner = deep(state[first], *rest, value=value) if rest else value
    if isinstance(state, dict):
        return {**state, first: inner}
    return [inner if i == first else each for i, each in enumerate(state)]  # pyright: ignore[reportReturnType]


MADE_UP: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda state: [state],
    "empty": lambda state: {},
    "no recipe": lambda state: {key: value for key, value in state.items() if key != "recipe"},
    "recipe of words": lambda state: edited(state, recipe="fast"),
    "batch of words": lambda state: deep(state, "recipe", "batch_size", value="4"),
    "unknown setting": lambda state: deep(state, "recipe", "more", value=1),
    "negative step": lambda state: edited(state, step=-2),
    "absurd step": lambda state: edited(state, step=10**15),
    "step of another type": lambda state: edited(state, step=2.0),
    "too few losses": lambda state: edited(state, losses=state["losses"][:1]),
    "losses that are none": lambda state: edited(state, losses=state["losses"] * float("nan")),
    "no process": lambda state: edited(state, processes=0),
    "origin of numbers": lambda state: edited(state, origin={1: 2}),
    "negative updates": lambda state: edited(state, updates=-1),
    "broadcast": lambda state: deep(state, "trained", 0, value=torch.ones(1)),
    "too few tensors": lambda state: edited(state, trained=state["trained"][:-1]),
    "not a number": lambda state: deep(state, "trained", 0, value=state["trained"][0] * float("inf")),
    "no average": lambda state: edited(state, ema=None),
    "no optimizer": lambda state: edited(state, optimizers=[]),
    "broadcast moments": lambda state: deep(state, "optimizers", 0, "state", 0, "exp_avg", value=torch.zeros(1)),
    "negative moments": lambda state: deep(
        state, "optimizers", 0, "state", 0, "exp_avg_sq", value=-torch.ones_like(state["trained"][0])
    ),
    "moments of nobody": lambda state: deep(state, "optimizers", 0, "state", 99, value={}),
    "scaler of words": lambda state: edited(state, scaler={"scale": "x"}),
}


@pytest.mark.parametrize("how", MADE_UP)
def test_a_made_up_checkpoint_is_refused(data: Path, tmp_path: Path, trained: dict[str, Any], how: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save(MADE_UP[how](trained), tmp_path / "checkpoints" / "step-00000002.pt")
    with pytest.raises(ValueError) as caught:
        run(data, tmp_path, steps=3, ema=0.5)
    said = str(caught.value)
    assert said.isprintable() and "weights_only" not in said and "remove it" in said, said


def test_any_damage_gets_a_sentence_or_goes_on(data: Path, tmp_path: Path, trained: dict[str, Any]) -> None:
    rng = random.Random(0)
    file = tmp_path / "checkpoints" / "step-00000002.pt"
    file.parent.mkdir()
    torch.save(trained, file)
    whole = file.read_bytes()
    for case in range(40 * LONGER):
        broken = bytearray(whole[: rng.randrange(len(whole))] if case % 4 == 0 else whole)
        for _ in range(rng.choice((1, 8, 64))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        file.write_bytes(broken)
        try:
            run(data, tmp_path, steps=2, ema=0.5)
        except ValueError as error:
            assert str(error).isprintable() and "weights_only" not in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_what_is_no_checkpoint_by_its_name_or_kind_is_passed_over(data: Path, tmp_path: Path, trained: dict) -> None:
    write_state(tmp_path, trained, keep=2)
    os.mkfifo(tmp_path / "checkpoints" / "step-00000009.pt")
    (tmp_path / "checkpoints" / "step-zzz.pt").write_bytes(b"")
    (tmp_path / "checkpoints" / "step--0000001.pt").write_bytes(b"")
    assert last_step(tmp_path) == 2
    assert len(run(data, tmp_path, steps=3, ema=0.5).losses) == 3
    assert last_step(tmp_path) == 3


def save(folder: Path, gate: Any, value: int) -> None:
    adapter = small_adapter()
    for tensor in (
        *adapter.image_proj.values(),
        *(each for site in adapter.site_weights.values() for each in site[:2]),
    ):
        tensor.fill_(value)
    gate.wait()
    for _ in range(5):
        save_adapter(adapter, folder, "same")


@needs_fork
def test_four_saves_under_one_name_keep_every_file(tmp_path: Path) -> None:
    from mip_adapter.weights.files import read_tensors

    context = multiprocessing.get_context("fork")
    gate = context.Barrier(4)
    four = [context.Process(target=save, args=(tmp_path, gate, value)) for value in range(1, 5)]
    for process in four:
        process.start()
    for process in four:
        process.join()
    assert [process.exitcode for process in four] == [0] * 4
    values = [int(read_tensors(file)["ip_adapter.1.to_k_ip.weight"][0, 0]) for file in tmp_path.iterdir()]
    assert sorted(values) == sorted([1, 2, 3, 4] * 5)
