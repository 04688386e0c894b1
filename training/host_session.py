"""A training as one node runs it: its progress bar with the loss, its checkpoints, interrupted and gone on with."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import numpy as np
import torch
from torch import Tensor

from ..attention.host_encode import check_encoders
from ..weights.adapter import Adapter
from .config import Recipe
from .curve_picture import SIZE, loss_picture
from .host_graph import train_in_graph
from .host_weights import model_parts
from .run_folder import earlier_losses, reached, run_folder
from .student import TrainedAdapter, flat_tensors
from .trainer import Progress

log = logging.getLogger(__name__)
PREVIEW_EVERY = 1.0  # seconds
LOG_EVERY = 30.0


def dataset_path(name: str) -> Path:
    """A folder (or a list of kept pictures) by its path, or below ComfyUI's input folder. ValueError if missing."""
    name = name.strip().strip("\"'")
    if not name:
        raise ValueError(
            "dataset_folder is empty: give the folder that holds images/, masks/ and jsons/ of the training pictures."
        )
    path = Path(folder_paths.get_input_directory()) / Path(name).expanduser()
    if not path.exists():
        raise ValueError(
            f"There is no training data at {path}: give the whole path of a folder with images/, masks/ and jsons/, or "
            "its name below ComfyUI's input folder."
        )
    return path


def train_session(
    model: Any, clip: Any, vae: Any, clip_vision: Any, adapter: Adapter, dataset: Path, recipe: Recipe
) -> tuple[TrainedAdapter, Tensor]:
    """The trained adapter and the loss curve [1, H, W, 3].

    An interrupt leaves a checkpoint and raises the host's exception; the same settings then go on from there.
    """
    check_encoders(clip, clip_vision, adapter)
    vae.throw_exception_if_invalid()
    base = Path(folder_paths.get_output_directory()) / "mip_adapter_training"
    frozen = [model_parts(patcher) for patcher in (model, clip.patcher, vae.patcher, clip_vision.patcher)]
    folder = run_folder(base, recipe, adapter.name, flat_tensors(adapter), str(dataset.resolve()), frozen)
    if before := reached(folder):
        log.info("Training goes on from step %d of an earlier run, kept in %s.", before, folder)
    watch = _Watch(recipe.steps, earlier_losses(folder, before))
    outcome = train_in_graph(model, clip, vae, clip_vision, adapter, dataset, recipe, watch, folder=folder)
    step = len(outcome.losses)
    if outcome.stopped is not None and step:
        log.warning(
            "Training was interrupted after step %d of %d; what it learnt is kept in %s. Queue the same settings again "
            "to go on, or set steps to %d to take the adapter as it is now.",
            step, recipe.steps, folder, step,
        )  # fmt: skip
    if outcome.stopped is not None:
        raise outcome.stopped
    log.info("Trained %d steps; checkpoints and the loss curve are in %s.", step, folder)
    picture = np.array(loss_picture(outcome.losses, recipe.steps))
    return outcome.adapter, torch.from_numpy(picture).float().unsqueeze(0) / 255


class _Watch:
    """After every step: the host's progress bar, with the curve as its preview; an interrupt is raised from here."""

    def __init__(self, steps: int, earlier: list[float]) -> None:
        self.bar = comfy.utils.ProgressBar(steps)
        self.losses = earlier
        self.shown, self.logged = 0.0, time.monotonic()

    def __call__(self, progress: Progress) -> None:
        management.throw_exception_if_processing_interrupted()
        now, preview = time.monotonic(), None
        self.losses.append(progress.loss)
        if now - self.shown > PREVIEW_EVERY or progress.step == progress.steps:
            title = f"step {progress.step} of {progress.steps}, {_duration(progress.eta)} left"
            preview, self.shown = ("JPEG", loss_picture(self.losses, progress.steps, title), max(SIZE)), now
        if now - self.logged > LOG_EVERY:
            self.logged = now
            log.info(
                "Step %d of %d, loss %.4f, %.2f s a step, %s left.",
                progress.step, progress.steps, progress.smooth, progress.seconds_per_step, _duration(progress.eta),
            )  # fmt: skip
        self.bar.update_absolute(progress.step, progress.steps, preview)


def _duration(seconds: float) -> str:
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
