"""Trained stages as the four files that the miniature's loader reads, in half precision, under the host's names."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import config
from .encoders import Encoders


def write(folder: Path, unet: nn.Module, encoders: Encoders, vision: Encoders, vae: nn.Module) -> dict[str, str]:
    """Write unet, clip, vae and clip_vision .safetensors; returns each file's sha256."""
    scale = {f"{name}.logit_scale": torch.tensor(4.6055) for name in encoders.clip}
    parts = {
        "unet": unet.state_dict(),
        "clip": encoders.clip.state_dict() | scale,
        "vae": vae.state_dict() | {"vae_scale": torch.tensor(config.VAE_SCALE), "vae_shift": torch.tensor(0.0)},
        "clip_vision": vision.vision.state_dict(),
    }
    return {name: _save(tensors, folder / f"{name}.safetensors") for name, tensors in parts.items()}


def _save(tensors: dict[str, Tensor], file: Path) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().half().contiguous().cpu() for k, v in tensors.items()}, file, {"format": "pt"})
    return hashlib.sha256(file.read_bytes()).hexdigest()
