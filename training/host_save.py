"""Saving where the host's loaders look: output/mip_adapter, beside what the user keeps in models."""

from __future__ import annotations

import logging
from pathlib import Path

from ..weights.adapter import Adapter
from ..weights.host_files import adapter_names, output_folder
from .save import free_path, save_adapter, save_head

log = logging.getLogger(__name__)
HERE = "mip_adapter/"  # nodes that save name their folder below output; ours is always this one


def save_in_host(adapter: Adapter, prefix: str, head_only: bool = False) -> Path:
    """Writes the adapter or its head; returns the path. The name is one that no adapter of any folder has, so that the
    loader opens this file by it. Raises ValueError for names that leave the folder."""
    folder = output_folder()
    name = wanted = prefix.strip().replace("\\", "/").removeprefix(HERE).removesuffix(".safetensors")
    free_path(folder, wanted)
    taken, number = {known.replace("\\", "/") for known in adapter_names()}, 2
    while f"{name}.safetensors" in taken or (folder / f"{name}.safetensors").exists():
        name, number = f"{wanted}_{number}", number + 1
    path = (save_head if head_only else save_adapter)(adapter, folder, name)
    log.info("Saved %s", path)
    return path
