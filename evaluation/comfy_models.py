"""Models from Hugging Face folders, managed by ComfyUI.

ComfyUI moves them to the GPU when they run, and off it when other models need the memory.
"""

from __future__ import annotations

import comfy.model_management as management
import torch
from comfy.model_patcher import ModelPatcher
from torch import nn

from .model_folder import Ready

# Peak memory divided by the memory of the inputs. Measured: ViT-L/14 at 224 pixels 43, OWLv2 121, Grounding DINO 138.
ACTIVATIONS = 150


class _Held(nn.Module):
    """A wrapper on which ComfyUI can set attributes such as `device`; those of transformers' models are read-only."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.held = model


def managed(model: nn.Module) -> Ready:
    """A Keeper that hands the model to ComfyUI's model management.

    The dtype is float16 where ComfyUI would use it (GPUs), and float32 elsewhere.
    """
    device, offload = management.get_torch_device(), management.text_encoder_offload_device()
    dtype = torch.float16 if management.should_use_fp16(device, prioritize_performance=False) else torch.float32
    held = _Held(model.to(offload, dtype))
    patcher = ModelPatcher(held, load_device=device, offload_device=offload)

    def ready(size: int) -> torch.device:
        # Full load: ComfyUI runs only its own layers from main memory one by one, and these are not its own.
        management.load_models_gpu([patcher], memory_required=size * ACTIVATIONS, force_full_load=True)
        if any(each.device != device for each in held.parameters()):  # --novram loads no model in full
            held.to(device)
        return device

    return ready
