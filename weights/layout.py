"""Brings the key layouts in which adapters are published to one."""

from __future__ import annotations

import re
from typing import TypeVar

from ..common.text import brief

T = TypeVar("T")

# The prefixes that the official training script saves -> the published ones.
_PREFIXES = (("image_proj_model.", "image_proj."), ("adapter_modules.", "ip_adapter."))
_BARE_SITE = re.compile(r"\d+\.(to_k_ip|to_v_ip|text_to_weight)\.weight")
# XLabs' adapters for FLUX.1: one processor at each double block.
_XLABS_PROJECTION = "ip_adapter_proj_model."
_XLABS_SITE = re.compile(r"double_blocks\.(\d+)\.processor\.ip_adapter_double_stream_([kv])_proj\.(weight|bias)")


def flat_keys(tensors: dict[str, T], name: str) -> dict[str, T]:
    """Rename keys to `image_proj.…` and `ip_adapter.N.…`. A training checkpoint's `unet.…` keys are dropped.

    Keys of other files do not change. Raises ValueError if two keys would become one. name: the file's, for messages.
    """
    training = any(key.startswith(old) for key in tensors for old, _ in _PREFIXES)
    flat: dict[str, T] = {}
    for key, tensor in tensors.items():
        if training and key.startswith("unet."):
            continue
        new = _renamed(key)
        if new in flat:
            raise ValueError(
                f"“{name}” holds '{brief(new)}' twice, in the training and in the published layout. "
                "Save it again with one of them."
            )
        flat[new] = tensor
    return flat


def _renamed(key: str) -> str:
    for old, new in _PREFIXES:
        if key.startswith(old):
            return new + key[len(old) :]
    if key.startswith(_XLABS_PROJECTION):
        return f"image_proj.{key[len(_XLABS_PROJECTION) :]}"
    if site := _XLABS_SITE.fullmatch(key):
        return f"ip_adapter.{site[1]}.to_{site[2]}_ip.{site[3]}"
    return f"ip_adapter.{key}" if _BARE_SITE.fullmatch(key) else key
