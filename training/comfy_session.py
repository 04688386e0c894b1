"""Training with the models that a workflow has loaded, in the middle of its graph.

The node shows a progress bar with the loss curve as preview. An interrupted training leaves a checkpoint and is resumed
from it. Results are saved where the loaders look: in output/mip_adapter, besides the user's own folder in models.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as management
import comfy.utils
import folder_paths
import numpy as np
import torch
from torch import Tensor

from ..common.text import brief, printable
from ..patching.encode import check_encoders
from ..weights.adapter import Adapter
from ..weights.comfy_files import adapter_names, output_folder
from .checkpoints import earlier_losses, last_step, recipe_to_resume, run_folder
from .comfy_model import model_parts, prepared
from .config import TrainConfig
from .data_folder import expanded, refuse_other_machine
from .loss_curve import SIZE, loss_picture
from .run_config import BaseModels
from .save import path_in, save_adapter, save_head
from .trainable import TrainedAdapter, flat_tensors
from .trainer import Outcome, Progress, train

log = logging.getLogger(__name__)
PREVIEW_EVERY = 1.0  # seconds
LOG_EVERY = 30.0


def dataset_path(name: str) -> Path:
    """The path of a folder of training data or of a list of kept pictures. name: absolute, or below ComfyUI's input
    folder.

    Raises ValueError if it is empty or does not exist.
    """
    name = printable(name).strip().strip("\"'")
    if not name:
        raise ValueError(
            "dataset_folder is empty: give the folder that holds images/, masks/ and jsons/ of the training pictures."
        )
    refuse_other_machine(name)
    path = Path(folder_paths.get_input_directory()) / expanded(name)
    if not (path.is_dir() or path.is_file()):
        raise ValueError(
            f"There is no training data at {brief(path, 300)}: give the whole path of a folder with images/, masks/ "
            "and jsons/, or its name below ComfyUI's input folder."
        )
    return path


def train_session(
    model: Any, clip: Any, vae: Any, clip_vision: Any, adapter: Adapter, dataset: Path, recipe: TrainConfig
) -> tuple[TrainedAdapter, Tensor]:
    """Train as the node does. Returns the trained adapter and the loss curve [1, H, W, 3].

    An interrupt leaves a checkpoint and raises ComfyUI's exception. The same settings then resume from the checkpoint.
    """
    check_encoders(clip, clip_vision, adapter)
    vae.throw_exception_if_invalid()
    base = Path(folder_paths.get_output_directory()) / "mip_adapter_training"
    encoders = (each for each in (clip, vae, clip_vision) if each is not None)  # adapters of faces read no pictures
    parts = [model_parts(patcher) for patcher in (model, *(each.patcher for each in encoders))]
    folder = run_folder(base, recipe, adapter.name, flat_tensors(adapter), str(dataset.resolve()), parts)
    if before := last_step(folder):
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
    """Called after every step: updates ComfyUI's progress bar with the curve as its preview, and raises on an
    interrupt.
    """

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


def train_in_graph(
    model: Any,
    clip: Any,
    vae: Any,
    clip_vision: Any,
    adapter: Adapter,
    dataset_folder: str | Path,
    recipe: TrainConfig,
    on_step: Callable[[Progress], None] | None = None,
    *,
    folder: Path | None = None,
    validate: Callable[[int, TrainedAdapter], None] | None = None,
) -> Outcome:
    """Train `adapter` for `model` on a folder in the training-data layout. Afterwards `model` samples as before.

    on_step: called with a Progress after every step. An Exception that it raises ends training.
    folder: where checkpoints go; None for no checkpoints.
    validate: called with the step and the adapter every `recipe.validate_every` steps.

    ComfyUI's interrupt, which any layer of a model may raise, also ends training. The adapter as trained so far is then
    in Outcome.adapter, the exception in Outcome.stopped. Outcome.losses has one number per step
    (`loss_curve.loss_picture` draws them). Outcome.adapter carries its metadata (`save.save_adapter`,
    `save.save_head`).

    Raises ValueError with a sentence for the user.
    """
    with torch.inference_mode(False), torch.enable_grad():
        recipe = recipe if folder is None else recipe_to_resume(folder, recipe)
        base = BaseModels(model, clip, vae, clip_vision)
        host_model, samples, about = prepared(base, adapter, dataset_folder, recipe)
        return train(
            host_model,
            samples,
            adapter,
            recipe,
            folder=folder,
            on_step=on_step,
            validate=validate,
            interrupts=(management.InterruptProcessingException,),  # newer hosts' is no Exception
            about=about,
        )


HERE = "mip_adapter/"  # ComfyUI's saving nodes take a folder below output; here it is always this one


def save_in_host(adapter: Adapter, prefix: str, head_only: bool = False) -> Path:
    """Write the adapter, or only its head; returns the path.

    The file gets a name that no adapter in any folder has, so that the loader finds this file by its name. Raises
    ValueError for a name that leaves the folder.
    """
    folder = output_folder()
    name = wanted = prefix.strip().replace("\\", "/").removeprefix(HERE).removesuffix(".safetensors")
    path_in(folder, wanted)  # raises for such a name
    taken, number = {known.replace("\\", "/") for known in adapter_names()}, 2
    while f"{name}.safetensors" in taken or (folder / f"{name}.safetensors").exists():
        name, number = f"{wanted}_{number}", number + 1
    path = (save_head if head_only else save_adapter)(adapter, folder, name)
    log.info("Saved %s", path)
    return path
