"""Checkpoints of a run, and the folder that holds them.

A checkpoint is written under a temporary name and then renamed, so a killed run leaves only complete ones. A training
in the graph finds its folder again by its settings.
"""

from __future__ import annotations

import json
import logging
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..common.atomic_io import atomic_file
from ..common.hashing import digest
from ..common.text import brief, some
from ..weights.pickles import View
from ..weights.torch_files import read_torch
from .config import RESUMABLE, TrainConfig
from .earlier_rules import run_identity, with_every_setting, with_old_defaults

log = logging.getLogger(__name__)
MOST_STEPS = 10**8
_STEP = re.compile(r"step-(\d{1,9})\.pt")
DATASET = "dataset"  # the one entry of a run's origin that may change when the run is resumed


def write_state(folder: Path, state: dict[str, Any], keep: int) -> Path:
    """Write `checkpoints/step-N.pt`, then remove all but the newest `keep` checkpoints. Raises OSError.

    Only one process writes into a folder, so an unfinished file found there was left by a killed process.
    """
    target = folder / "checkpoints" / f"step-{state['step']:08d}.pt"
    for half in target.parent.glob(".step-*.pt.*.tmp"):
        with suppress(OSError):  # a file that stays costs only disk space
            half.unlink()
    with atomic_file(target) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # what torch raises when the disk is full
            raise OSError(str(error).splitlines()[0]) from error
        file.flush()
        os.fsync(file.fileno())
    for old in _numbered(folder)[:-keep]:
        old.unlink(missing_ok=True)
    return target


def recipe_to_resume(folder: Path, recipe: TrainConfig) -> TrainConfig:
    """The recipe to go on with in a folder: a run that began before a setting existed goes on without it, as long as
    the recipe leaves the setting at its default."""
    if not (path := newest_checkpoint(folder)):
        return recipe
    begun = with_old_defaults(recipe, _read(path, tensors=False)["recipe"])
    if begun != recipe:
        log.info("The run in %s began by earlier rules and goes on by them, see docs/training-recipe.md.", folder)
    return begun


def load_latest(folder: Path, recipe: TrainConfig, processes: int, origin: Mapping[str, str]) -> dict[str, Any] | None:
    """The newest checkpoint of a run with this recipe; None where there is none.

    processes: how many processes train now.
    origin: digests by name of the starting adapter, the base model and the dataset. Only the dataset may have changed.

    Raises ValueError if the run in the folder differs: in settings that shape the result, in the global batch size, in
    its origin, or if it has already made more steps than the recipe asks for.
    """
    if not (path := newest_checkpoint(folder)):
        return None
    state = _read(path)
    own, saved = recipe.as_dict(), with_every_setting(state["recipe"])
    own = own | {"batch_size": own["batch_size"] * processes}  # of all processes together
    saved = saved | {"batch_size": saved["batch_size"] * state["processes"]}
    if changed := [name for name in own if name not in RESUMABLE and own[name] != saved.get(name)]:
        told = some((f"{name} {saved.get(name)} -> {own[name]}" for name in changed), 8)
        raise ValueError(
            f"{folder} holds a run with another recipe ({told}). Choose another output folder, or set them back."
        )
    if changed := [name for name in origin if name != DATASET and origin[name] != state["origin"].get(name)]:
        raise ValueError(
            f"{folder} holds a run over another {' and another '.join(changed)}. Choose another output folder, or set "
            "it back."
        )
    if state["step"] > recipe.steps:
        raise ValueError(
            f"{folder} holds a run that is trained for {state['step']} steps already, and steps is {recipe.steps}. Set "
            f"steps to {state['step']} or more, or choose another output folder for a shorter run."
        )
    log.info("Found the checkpoint %s.", path)
    return state


def _numbered(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last. Files of other names, and pipes, are none."""
    found = ((_STEP.fullmatch(path.name), path) for path in (folder / "checkpoints").glob("step-*.pt"))
    return [path for _, path in sorted((int(name[1]), path) for name, path in found if name and path.is_file())]


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder; None if there is none."""
    return next(reversed(_numbered(folder)), None)


def _read(path: Path, tensors: bool = True) -> dict[str, Any]:
    """What a checkpoint holds, checked. tensors: whether its tensors are read too.

    Raises ValueError, in one sentence, for whatever is no checkpoint of a training.
    """
    try:
        loaded, tensor = read_torch(path, zipfile.is_zipfile(path))
        if not isinstance(loaded, dict):
            raise ValueError("it holds no named values")
        # Copies: the file may be removed while the run goes on.
        state = _mapped(loaded, lambda view: tensor(view).clone()) if tensors else loaded
        _check(state, tensors)
    except (Exception, MemoryError) as error:  # a damaged file can raise anything in zipfile and pickletools
        raise ValueError(
            f"{path} is no checkpoint that training can go on from ({brief(error)}): remove it, so that the one before "
            "it is used, or choose another output folder."
        ) from error
    return state


def _mapped(value: Any, tensor: Callable[[View], Tensor], depth: int = 0) -> Any:
    """The value with a tensor in place of every View."""
    if isinstance(value, View):
        return tensor(value)
    if depth > 6:
        raise ValueError("its values are nested too deeply")
    if isinstance(value, dict):
        return {key: _mapped(each, tensor, depth + 1) for key, each in value.items()}
    return [_mapped(each, tensor, depth + 1) for each in value] if isinstance(value, list) else value


def _check(state: dict[str, Any], tensors: bool) -> None:
    """Raises ValueError unless the state is what `Trainer` writes, apart from what depends on the adapter."""

    def need(right: object, what: str) -> None:
        if not right:
            raise ValueError(f"its {what} is none that training writes")

    recipe: dict[str, Any] = state.get("recipe") or {}
    need(isinstance(recipe, dict) and isinstance(recipe.get("filters"), dict), "recipe")
    known = TrainConfig().as_dict()
    for saved, own in ((recipe, known), (recipe["filters"], known["filters"])):
        need(all(name in own and _alike(value, own[name]) for name, value in saved.items()), "recipe")
    if not tensors:
        return
    step, losses = state.get("step"), state.get("losses")
    need(type(step) is int and 0 <= step <= MOST_STEPS, "step")
    need(isinstance(losses, Tensor) and losses.shape == (step,) and losses.isfinite().all(), "list of losses")
    need(type(state.get("processes")) is int and 1 <= state["processes"] <= 1 << 20, "number of processes")
    need(type(state.get("updates")) is int and 0 <= state["updates"] <= step, "number of updates")
    for name in ("origin", "broken"):
        words = state.get(name)
        need(isinstance(words, dict) and all(isinstance(each, str) for each in (*words, *words.values())), name)
    need(isinstance(recipe.get("batch_size"), int), "recipe")


def _alike(value: Any, own: Any) -> bool:
    return type(value) is type(own) or (type(own) is float and type(value) is int)


def run_folder(base: Path, recipe: TrainConfig, *parts: Any) -> Path:
    """The folder `base/name-digest` for a recipe and for everything else that decides the result (`parts`).

    The number of steps is not part of the digest, so that a finished training can be continued with more steps. If the
    run there is already past `recipe.steps`, the number of steps is appended and the run gets a folder of its own.
    """
    folder = base / f"{recipe.train}-{digest(json.dumps(run_identity(recipe), sort_keys=True), parts)[:12]}"
    return folder if last_step(folder) <= recipe.steps else base / f"{folder.name}-{recipe.steps}"


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint; 0 if there is none."""
    path = newest_checkpoint(folder)
    name = _STEP.fullmatch(path.name) if path else None
    return int(name[1]) if name else 0


def earlier_losses(folder: Path, steps: int) -> list[float]:
    """The losses of the first `steps` steps of an earlier run in this folder; empty if they cannot be read."""
    try:
        lines = (folder / "loss.csv").read_text("utf-8").splitlines()[1 : steps + 1]
        return [float(line.split(",")[1]) for line in lines]
    except (OSError, ValueError, IndexError):
        return []  # only the picture of the curve needs them
