"""Puts ComfyUI on Python's path, for commands that run outside of it."""

from __future__ import annotations

import os
import sys


def prepare_host(cpu: bool) -> None:
    """Make ComfyUI importable, from the folder in COMFYUI_PATH if it is set.

    cpu: run on the CPU. ComfyUI must know this before its other modules are imported.
    Raises ValueError if ComfyUI is not found.
    """
    if folder := os.environ.get("COMFYUI_PATH"):
        sys.path.insert(0, folder)
    try:
        from comfy.cli_args import args
    except ImportError as error:
        raise ValueError("ComfyUI was not found: set COMFYUI_PATH to its folder.") from error
    args.cpu = args.cpu or cpu
