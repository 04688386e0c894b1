"""`python mip.py train`: a training run from a TOML file, alone or under `accelerate launch`."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..common.comfy_path import prepare_host
from ..common.console import exit_status, log_to_console, say
from ..common.hashing import file_sha256
from ..training.checkpoints import recipe_to_resume
from ..training.processes import Accelerated, Alone
from ..training.run_config import BaseModels, RunConfig, read_run_config
from ..training.save import save_adapter, save_head
from ..training.trainable import init_adapter
from ..training.trainer import Progress, train
from ..weights.adapter import Adapter, load_adapter
from ..weights.families import FACE_WIDTH
from ..weights.sites import cross_attentions, unet_sites
from .comfy_base import load_base


def main(argv: list[str]) -> int:
    """Runs the command; returns 0 when training is complete, 1 for an error, 143 if it was stopped and can resume."""
    parser = argparse.ArgumentParser(
        prog="mip.py train", description="Train an adapter or its fusion head. The same command resumes a stopped run."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run, see training/example.toml")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")
    options = parser.parse_args(argv)
    log_to_console()

    def start() -> int:
        config = read_run_config(options.config)
        prepare_host(options.cpu or not torch.cuda.is_available())
        return run(config, options.cpu)

    return exit_status(start)


def run(config: RunConfig, cpu: bool = False) -> int:
    """Trains, saves and reports; returns the exit status of `main`. ComfyUI must be importable."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    processes = Accelerated(cpu or not torch.cuda.is_available()) if several else Alone()
    folder, is_main = Path(config.output.folder), processes.rank == 0
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(config, recipe=recipe_to_resume(folder, config.recipe))
    base = load_base(config.base)
    adapter = start_adapter(config, base)
    from ..training.comfy_model import prepared

    model, samples, about = prepared(base, adapter, config.data, config.recipe)
    if is_main:
        say(f"{config.data}: {samples}")
    file = Path(config.base.checkpoint)
    named = (
        {"base_sha256": file_sha256(file), "base": file.name} if file.is_file() else {"base": config.base.checkpoint}
    )
    outcome = train(
        model,
        samples,
        adapter,
        config.recipe,
        folder=folder,
        processes=processes,
        on_step=show,
        validate=_validator(config, base, folder, adapter),
        asked_to_stop=stop_signal(),
        about=about | named,
    )
    if outcome.stopped is not None:
        if is_main:
            say(f"Training {outcome.stopped}; the same command goes on from there.")
        return 143
    if is_main:
        write = save_head if config.recipe.train == "head" else save_adapter
        say(f"Saved {write(outcome.adapter, folder, config.output.name)}")
    processes.wait()
    return 0


def start_adapter(config: RunConfig, base: BaseModels) -> Adapter:
    """The adapter that training starts from: the configured file, or a new one for this UNet and image encoder, or for
    face embeddings.
    """
    unet = base.model.model.diffusion_model
    if config.start.file:
        return load_adapter(config.start.file)
    start, width = config.start, FACE_WIDTH
    if start.family == "base":
        with torch.inference_mode():
            width = base.clip_vision.encode_image(torch.zeros(1, 224, 224, 3))["image_embeds"].shape[-1]
    seed = config.recipe.seed
    return init_adapter(unet_sites(unet), cross_attentions(unet), width, start.tokens, seed, start.family)


def _validator(config: RunConfig, base: BaseModels, folder: Path, start: Adapter) -> Any:
    if not (config.validation and config.recipe.validate_every):
        return None
    from ..training.comfy_validation import validator

    return validator(base, config.validation, config.recipe, folder, start)


def show(progress: Progress) -> None:
    """Prints a line for the first three steps, every tenth step, and the last."""
    if progress.step <= 3 or progress.step % 10 == 0 or progress.step == progress.steps:
        left = f"{progress.eta / 3600:.1f} h" if progress.eta > 5400 else f"{progress.eta / 60:.1f} min"
        say(
            f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f} (mean {progress.smooth:.4f})  "
            f"{progress.seconds_per_step:.2f} s a step, {left} left"
        )


def stop_signal() -> Callable[[], bool]:
    """Installs signal handlers; the returned function tells whether SIGTERM or Ctrl-C came.

    A second Ctrl-C ends the process at once.
    """
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, note)
    return lambda: bool(came)
