"""Trained stages as the four files that the miniature's loader reads, in half precision, under ComfyUI's names."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ....common.atomic_io import atomic_file
from ....miniature import config


def write(folder: Path, models: Mapping[str, Any], facts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Write unet, clip, vae and clip_vision .safetensors and weights.json. Returns each file's sha256.

    models: by file name. clip and clip_vision are `Encoders`.
    facts: stage, step and seconds of each model, stored in its metadata.

    A file that holds the same numbers already is not written again.
    """
    scale = {f"{name}.logit_scale": torch.tensor(4.6055) for name in models["clip"].clip}
    shift = {"vae_scale": torch.tensor(config.VAE_SCALE), "vae_shift": torch.tensor(0.0)}
    parts: dict[str, dict[str, Tensor]] = {
        "unet": models["unet"].state_dict(),
        "clip": models["clip"].clip.state_dict() | scale,
        "vae": models["vae"].state_dict() | shift,
        "clip_vision": models["clip_vision"].vision.state_dict(),
    }
    files = {name: folder / f"{name}.safetensors" for name in parts}
    for name, tensors in parts.items():
        _save({k: v.detach().half().contiguous().cpu() for k, v in tensors.items()}, files[name], facts[name])
    digests = {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}
    about = {file.name: {"sha256": digests[name], **facts_of(file)} for name, file in files.items()}
    (folder / "weights.json").write_text(json.dumps(about, indent=1) + "\n")
    return digests


def facts_of(file: Path) -> dict[str, Any]:
    """Stage, step and seconds of an exported file."""
    with safe_open(file, "pt") as tensors:
        return json.loads((tensors.metadata() or {}).get("training", "{}"))


def _save(tensors: dict[str, Tensor], file: Path, facts: Mapping[str, Any]) -> None:
    if file.is_file():
        there = load_file(file)
        if there.keys() == tensors.keys() and all(torch.equal(there[key], tensors[key]) for key in there):
            return
    with atomic_file(file) as temporary:
        save_file(tensors, temporary, {"format": "pt", "training": json.dumps(facts)})
