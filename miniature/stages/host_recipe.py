"""Which stage needs what: opens checkpoints, builds models, runs a stretch."""

import sys
from pathlib import Path

import torch
from torch import nn

from .. import host_models
from . import stretch
from .base import Base, Conditioner
from .encoders import Encoders, EncoderStage
from .latents import Shards
from .vae import Vae
from .words import Words


def train(stage: str, work: Path, minutes: float, quick: bool, threads: int) -> None:
    """Train one stage, or all in order, for so many minutes each."""
    torch.set_num_threads(threads)
    find_host()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in BUILD if stage == "all" else (stage,):
        file = work / ("quick" if quick else "") / f"{name}.pt"
        progress = open_stage(name, file.parent, device)
        stretch.run(progress, file, 15 if quick else 60 * minutes, say)


def open_stage(name: str, folder: Path, device: torch.device) -> stretch.Progress:
    """A stage where its last checkpoint left it, or at its beginning."""
    torch.manual_seed(0)  # the first weights
    progress = stretch.Progress(BUILD[name](folder, device))
    file = folder / f"{name}.pt"
    if file.exists():
        progress.restore(torch.load(file, weights_only=True, map_location=device))
    return progress


def finished(name: str, folder: Path, device: torch.device) -> nn.Module:
    """An earlier stage's model for a later one: its running mean, frozen."""
    if not (folder / f"{name}.pt").exists():
        raise ValueError(f"No checkpoint of stage {name} in {folder}: run train.py --stage {name} first.")
    progress = open_stage(name, folder, device)
    progress.use_mean()
    return progress.stage.model.eval().requires_grad_(False)


def _vae(folder: Path, device: torch.device) -> Vae:
    return Vae(host_models.vae(), device)


def _encoders(folder: Path, device: torch.device) -> EncoderStage:
    return EncoderStage(Encoders(), Words(host_models.tokenize), device)


def _base(folder: Path, device: torch.device) -> Base:
    shards = Shards(finished("vae", folder, device), folder / "latents", device)
    condition = Conditioner(finished("encoders", folder, device), Words(host_models.tokenize), device)
    return Base(host_models.unet(), host_models.run_unet, shards, condition)


BUILD = {"vae": _vae, "encoders": _encoders, "base": _base}


def find_host() -> None:
    """Make ComfyUI importable: COMFYUI_PATH, or the one that `mip.py` unpacked."""
    mip = sys.modules["mip"]
    host_models.use_host(mip.given_host() or mip.unpacked_host_folder())


def say(text: str) -> None:
    print(text, flush=True)
