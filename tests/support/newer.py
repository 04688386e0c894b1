"""Nodes that only newer hosts list. Their pages, words and promises are the same everywhere."""

from __future__ import annotations

NEWER = {"MIPSeveralReferences"}  # where inputs grow: since ComfyUI 0.8 or a little before


def absent() -> set[str]:
    """The nodes that the host of these tests does not list."""
    from comfy_api.latest import io

    return set() if hasattr(io, "Autogrow") else NEWER
