"""Models from folders in the host's care: on the GPU when they are used, moved away when others need the room."""

from __future__ import annotations

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from .model_folder import Ready

# Memory at its peak over that of the inputs, as measured: ViT-L/14 at 224 pixels 43, OWLv2 121, Grounding DINO 138.
ACTIVATIONS = 150


class _Held(nn.Module):
    """The host writes attributes, such as `device`, on the models it manages; transformers' are read-only."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.held = model


def managed(model: nn.Module) -> Ready:
    """A Keeper: float16 where the host would use it (GPUs), float32 elsewhere."""
    device, offload = management.get_torch_device(), management.text_encoder_offload_device()
    dtype = torch.float16 if management.should_use_fp16(device, prioritize_performance=False) else torch.float32
    held = _Held(model.to(offload, dtype))
    patcher = ModelPatcher(held, load_device=device, offload_device=offload)

    def ready(size: int) -> torch.device:
        # Whole or not at all: layers that are not the host's own cannot be run from main memory one by one.
        management.load_models_gpu([patcher], memory_required=size * ACTIVATIONS, force_full_load=True)
        if any(each.device != device for each in held.parameters()):  # --novram loads no model whole
            held.to(device)
        return device

    return ready
