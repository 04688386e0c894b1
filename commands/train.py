"""`python mip.py train`: a training run from a TOML file, alone or under `accelerate launch`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..common.comfy_path import prepare_host
from ..common.hashing import file_sha256
from ..training.checkpoints import as_begun
from ..training.dataset import SubjectFolder
from ..training.processes import Accelerated, Alone
from ..training.run_config import RunConfig, read_run_config
from ..training.save import save_adapter, save_head
from ..training.trainable import init_adapter
from ..training.trainer import Progress, train
from ..weights.adapter import Adapter, load_adapter
from ..weights.sites import check_sites, cross_attentions, unet_sites
from .comfy_base import Parts, load_base


def main(argv: list[str]) -> int:
    """0 when the run is complete, 1 for an error, 143 when it was asked to stop and can go on."""
    parser = argparse.ArgumentParser(
        prog="mip.py train", description="Train an adapter or its fusion head. The same command resumes a stopped run."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the run, see training/example.toml")
    parser.add_argument("--cpu", action="store_true", help="train on the CPU")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        job = read_run_config(options.config)
        prepare_host(options.cpu or not torch.cuda.is_available())
        return run(job, options.cpu)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def run(job: RunConfig, cpu: bool = False) -> int:
    """Train, save, report."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    processes = Accelerated(cpu or not torch.cuda.is_available()) if several else Alone()
    folder, first = Path(job.output.folder), processes.rank == 0
    folder.mkdir(parents=True, exist_ok=True)
    job = replace(job, recipe=as_begun(folder, job.recipe))
    parts = load_base(job.base)
    adapter = start_adapter(job, parts)
    samples = SubjectFolder(job.data, job.recipe)
    if first:
        say(f"{job.data}: {samples}")

    from ..training.comfy_model import HostModel

    model = HostModel(*parts, job.recipe)
    file = Path(job.base.checkpoint)
    base = {"base_sha256": file_sha256(file), "base": file.name} if file.is_file() else {"base": job.base.checkpoint}
    outcome = train(
        model,
        samples,
        adapter,
        job.recipe,
        folder=folder,
        processes=processes,
        on_step=show,
        validate=_validator(job, parts, folder, adapter),
        asked_to_stop=stop_signal(),
        about={"start": adapter.name, "base_weights_sha256": model.base_sha256(), **base},
    )
    if outcome.stopped is not None:
        if first:
            say(f"Training {outcome.stopped}; the same command goes on from there.")
        return 143
    if first:
        write = save_head if job.recipe.train == "head" else save_adapter
        say(f"Saved {write(outcome.adapter, folder, job.output.name)}")
    processes.wait()
    return 0


def start_adapter(job: RunConfig, parts: Parts) -> Adapter:
    unet, clip_vision = parts[0].model.diffusion_model, parts[3]
    if job.start.file:
        adapter = load_adapter(job.start.file)
        check_sites(adapter.spec, adapter.name, unet_sites(unet))
        return adapter
    with torch.inference_mode():
        width = clip_vision.encode_image(torch.zeros(1, 224, 224, 3))["image_embeds"].shape[-1]
    return init_adapter(unet_sites(unet), cross_attentions(unet), width, job.start.tokens, job.recipe.seed)


def _validator(job: RunConfig, parts: Parts, folder: Path, start: Adapter) -> Any:
    if not (job.validation and job.recipe.validate_every):
        return None
    from ..training.comfy_validation import validator

    return validator(parts, job.validation, job.recipe, folder, start)


def show(progress: Progress) -> None:
    """A line for the first steps and then every tenth."""
    if progress.step <= 3 or progress.step % 10 == 0 or progress.step == progress.steps:
        left = f"{progress.eta / 3600:.1f} h" if progress.eta > 5400 else f"{progress.eta / 60:.1f} min"
        say(
            f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f} (mean {progress.smooth:.4f})  "
            f"{progress.seconds_per_step:.2f} s a step, {left} left"
        )


def say(line: str) -> None:
    """On standard output. A log on a full disk, or a pipe that nobody reads any more, is no reason to end a run."""
    with suppress(OSError):
        print(line, flush=True)


def stop_signal() -> Callable[[], bool]:
    """Whether SIGTERM or Ctrl-C came. A second Ctrl-C ends the process at once."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, note)
    return lambda: bool(came)
