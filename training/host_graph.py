"""Training with what a workflow has loaded: MODEL, CLIP, VAE, CLIP_VISION and an adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management as management
import torch

from ..weights.adapter import Adapter
from ..weights.sites import check_sites, unet_sites
from .config import Recipe
from .dataset import SubjectFolder
from .host_model import HostModel
from .student import TrainedAdapter
from .trainer import Outcome, Progress, train


def train_in_graph(
    model: Any,
    clip: Any,
    vae: Any,
    clip_vision: Any,
    adapter: Adapter,
    dataset_folder: str | Path,
    recipe: Recipe,
    on_step: Callable[[Progress], None] | None = None,
    *,
    folder: Path | None = None,
    validate: Callable[[int, TrainedAdapter], None] | None = None,
) -> Outcome:
    """Train `adapter` for `model` on a folder in the training-data layout; `model` samples as before afterwards.

    on_step is called with a Progress after every step. An Exception that it raises ends training, and so does the
    host's interrupt, which any layer of a model may raise: what was learnt is in Outcome.adapter, the exception in
    Outcome.stopped. Outcome.losses has one number a step (`curve_picture.loss_picture` draws them), Outcome.adapter its
    own metadata (`save.save_adapter`, `save.save_head`). folder: where checkpoints go, None for none.
    Raises ValueError with a sentence for the artist.
    """
    with torch.inference_mode(False), torch.enable_grad():
        check_sites(adapter.spec, adapter.name, unet_sites(model.model.diffusion_model))
        samples = SubjectFolder(dataset_folder, recipe)
        frozen = HostModel(model, clip, vae, clip_vision, recipe)
        about = {"start": adapter.name, "base_weights_sha256": frozen.base_sha256()}
        return train(
            frozen,
            samples,
            adapter,
            recipe,
            folder=folder,
            on_step=on_step,
            validate=validate,
            interrupts=management.InterruptProcessingException,
            about=about,
        )
