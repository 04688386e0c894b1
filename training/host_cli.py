"""`python mip.py train`: a training run from a TOML file, alone or under `accelerate launch`."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..common.comfy_path import prepare_host
from ..common.hashing import file_sha256
from ..weights.adapter import Adapter, load_adapter
from ..weights.sites import check_sites, cross_attentions, unet_sites
from .dataset import SubjectFolder
from .fresh import fresh_adapter
from .job import MINIATURE, Job, read_job
from .processes import Accelerated, Alone
from .save import save_adapter, save_head
from .trainer import Progress, train

Parts = tuple[Any, Any, Any, Any]  # MODEL, CLIP, VAE, CLIP_VISION


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
        job = read_job(options.config)
        prepare_host(options.cpu or not torch.cuda.is_available())
        return run(job, options.cpu)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def run(job: Job, cpu: bool = False) -> int:
    """Train, save, report."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    processes = Accelerated(cpu or not torch.cuda.is_available()) if several else Alone()
    folder, first = Path(job.output.folder), processes.rank == 0
    folder.mkdir(parents=True, exist_ok=True)
    parts = load_parts(job)
    adapter = start_adapter(job, parts)
    samples = SubjectFolder(job.data, job.recipe)
    if first:
        say(f"{job.data}: {samples}")

    from .host_model import HostModel

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


def load_parts(job: Job) -> Parts:
    """With the host's own loaders."""
    if job.base.checkpoint == MINIATURE:
        from ..miniature import host_bundle

        return host_bundle.load()
    import comfy.clip_vision
    import comfy.sd
    import comfy.utils

    try:
        model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(job.base.checkpoint)
    except RuntimeError as error:
        raise ValueError(f"{job.base.checkpoint} is no checkpoint that ComfyUI knows ({error}).") from error
    if job.base.vae:
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(job.base.vae))
    clip_vision = comfy.clip_vision.load(job.base.clip_vision)
    for part, name in ((model, "UNet"), (clip, "text encoder"), (vae, "VAE")):
        if part is None:
            raise ValueError(f"{job.base.checkpoint} holds no {name}: training needs a whole checkpoint in one file.")
    if clip_vision is None:
        raise ValueError(f"{job.base.clip_vision} is no CLIP vision model that ComfyUI knows.")
    return model, clip, vae, clip_vision


def start_adapter(job: Job, parts: Parts) -> Adapter:
    unet, clip_vision = parts[0].model.diffusion_model, parts[3]
    if job.start.file:
        adapter = load_adapter(job.start.file)
        check_sites(adapter.spec, adapter.name, unet_sites(unet))
        return adapter
    with torch.inference_mode():
        width = clip_vision.encode_image(torch.zeros(1, 224, 224, 3))["image_embeds"].shape[-1]
    return fresh_adapter(unet_sites(unet), cross_attentions(unet), width, job.start.tokens, job.recipe.seed)


def _validator(job: Job, parts: Parts, folder: Path, start: Adapter) -> Any:
    if not (job.validation and job.recipe.validate_every):
        return None
    from .host_validation import validator

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
