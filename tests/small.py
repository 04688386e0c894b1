"""The golden UNet with encoders to match, as the host's own objects: an SDXL of a few hundred KB.

Call after the `host` fixture.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .golden import host_unet

CLIP_L = {
    "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3,
    "projection_dim": 16, "hidden_act": "quick_gelu",
}  # fmt: skip
CLIP_G = {**CLIP_L, "hidden_size": 32, "projection_dim": 32, "hidden_act": "gelu"}
VISION = {
    **CLIP_G, "model_type": "clip_vision_model", "hidden_size": 40, "projection_dim": 40, "image_size": 28,
    "patch_size": 14, "num_channels": 3,
}  # fmt: skip


def patcher(model: torch.nn.Module, kind: Any = None) -> Any:
    """The MODEL of a host's model; kind: a subclass of ModelPatcher."""
    import comfy.model_patcher

    kind = kind or comfy.model_patcher.ModelPatcher
    return kind(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def model(kind: Any = None) -> Any:
    return patcher(host_unet(), kind)


def stored_as(dtype: torch.dtype, compute: torch.dtype | None) -> Any:
    """The same UNet as the host builds it for a dtype; compute: what it casts weights to while they run."""
    import comfy.model_base
    import comfy.supported_models

    original = host_unet()
    config = original.model_config.unet_config
    settings = comfy.supported_models.SDXL(copy.deepcopy(config))
    settings.unet_config = copy.deepcopy(config)
    settings.set_inference_dtype(dtype, compute)
    same = comfy.model_base.SDXL(settings, device=torch.device("cpu")).eval()
    same.diffusion_model.load_state_dict(original.diffusion_model.state_dict())
    assert same.get_dtype() == dtype
    return patcher(same)


def clip() -> Any:
    import comfy.sd
    import comfy.sdxl_clip
    import folder_paths

    class Target:
        params: dict = {}
        clip = comfy.sdxl_clip.SDXLClipModel
        tokenizer = comfy.sdxl_clip.SDXLTokenizer

    options = {"clip_l_model_config": CLIP_L, "clip_g_model_config": CLIP_G}
    embeddings = folder_paths.get_folder_paths("embeddings")
    made = comfy.sd.CLIP(Target, embedding_directory=embeddings, model_options=options)
    fill(made.cond_stage_model)
    return made


def vision(**changes: int) -> Any:
    import comfy.clip_vision

    with TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps({**VISION, **changes}))
        made = comfy.clip_vision.ClipVisionModel(str(file))
    fill(made.model)
    return made


def fill(module: torch.nn.Module) -> None:
    """Weights where the host leaves empty memory: norms 1, biases 0, matrices normal over the root of their fan-in."""
    seeded = torch.Generator().manual_seed(0)
    for key, weight in module.state_dict().items():
        if weight.ndim < 2:
            weight.copy_(torch.full_like(weight, float(key.endswith(("norm.weight", "norm1.weight", "norm2.weight")))))
        elif "embedding" in key:
            weight.copy_(torch.randn(weight.shape, generator=seeded))
        else:
            weight.copy_(torch.randn(weight.shape, generator=seeded) / math.sqrt(math.prod(weight.shape[1:])))
