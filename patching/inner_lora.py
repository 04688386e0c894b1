"""The LoRA inside a FaceID adapter, applied by the host as it applies any other."""

from __future__ import annotations

from typing import Any

import comfy.lora
import torch
from torch import Tensor

from ..weights.adapter import Adapter
from ..weights.sites import attention_weights

SAME = 1e-2  # relative difference up to which two LoRAs are one: separate files are often in half precision


def with_inner_lora(model: Any, adapter: Adapter, strength: float) -> Any:
    """A clone of `model` (ModelPatcher) with the adapter's LoRA; the model itself if there is nothing to add.

    That is so without a LoRA, with strength 0, and where the model has this LoRA already: from the separate file, or
    from another node with the same adapter.
    """
    if not adapter.lora or strength == 0:
        return model
    weights = attention_weights(model.model.diffusion_model)
    targets = {name: f"diffusion_model.{weight}" for name, weight in weights.items()}
    if _has(model, targets["0.to_q"], adapter.lora["0.to_q_lora.up.weight"], adapter.lora["0.to_q_lora.down.weight"]):
        return model
    clone = model.clone()
    clone.add_patches(comfy.lora.load_lora(dict(adapter.lora), targets), strength)
    return clone


def _has(model: Any, weight: str, up: Tensor, down: Tensor) -> bool:
    """Whether a patch of the model changes a weight by up · down."""
    ours = up.float() @ down.float()
    for _, patch, *_ in model.patches.get(weight, ()):
        given = getattr(patch, "weights", None)
        if given is None or not isinstance(given[0], Tensor) or given[0].shape[0] != up.shape[0]:
            continue
        theirs_up, theirs_down, alpha, *_ = given
        theirs = theirs_up.flatten(1).float() @ theirs_down.flatten(1).float()
        theirs = theirs if alpha is None else theirs * (alpha / theirs_down.shape[0])
        if theirs.shape == ours.shape and bool((theirs.cpu() - ours.cpu()).norm() <= SAME * torch.linalg.norm(ours)):
            return True
    return False
