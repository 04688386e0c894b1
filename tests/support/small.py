"""Small models of every kind as ComfyUI's own objects, with weights that are drawn.

Call these after the `host` fixture.
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

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
    """The MODEL of one of ComfyUI's models. kind: a subclass of ModelPatcher."""
    import comfy.model_patcher

    kind = kind or comfy.model_patcher.ModelPatcher
    return kind(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def model(kind: Any = None) -> Any:
    """The small UNet as a MODEL: of SDXL's class the least that has all that matters to us, faster than the golden one.

    It has 6 sites in input, middle and output, two of them in one block, at the golden UNet's widths and resolutions.
    """
    return patcher(_unet(torch.float32, None), kind)


def _unet(dtype: torch.dtype, compute: torch.dtype | None) -> Any:
    import comfy.model_base
    import comfy.supported_models

    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": (1, 1, 2),
        "num_res_blocks": [1, 1, 1], "transformer_depth": [0, 1, 1], "transformer_depth_output": [0, 0, 0, 1, 0, 1],
        "transformer_depth_middle": 2, "context_dim": 48, "adm_in_channels": 32 + 1536, "num_classes": "sequential",
        "num_head_channels": 16, "num_heads": -1, "use_linear_in_transformer": True, "use_spatial_transformer": True,
        "legacy": False, "use_temporal_attention": False,
    }  # fmt: skip
    settings = comfy.supported_models.SDXL(copy.deepcopy(config))
    settings.unet_config = copy.deepcopy(config)
    settings.set_inference_dtype(dtype, compute)
    made = comfy.model_base.SDXL(settings, device=torch.device("cpu")).eval()
    fill(made.diffusion_model)
    return made


def fitted(adapter: Any, model: Any) -> Any:
    """An adapter with the sites of a MODEL: at each the weights of the first unused site that is as wide."""
    from mip_adapter.training.trainable import flat_tensors
    from mip_adapter.weights.adapter import build_adapter
    from mip_adapter.weights.sites import unet_sites

    tensors = flat_tensors(adapter)
    chosen = {key: tensor for key, tensor in tensors.items() if key.startswith("image_proj.")}
    left = list(adapter.spec.site_widths)
    for site in unet_sites(model.model.diffusion_model):
        number, _ = left.pop(next(i for i, (_, width) in enumerate(left) if width == site.width))
        own, new = f"ip_adapter.{number}.", f"ip_adapter.{site.number}."
        chosen |= {new + key[len(own) :]: tensor for key, tensor in tensors.items() if key.startswith(own)}
    return build_adapter(chosen, adapter.name)


def stored_as(dtype: torch.dtype, compute: torch.dtype | None) -> Any:
    """The same UNet as ComfyUI builds it for a dtype. compute: the dtype to which it casts weights while they run."""
    made = _unet(dtype, compute)
    assert made.get_dtype() == dtype
    return patcher(made)


def sd15(dtype: torch.dtype = torch.float32) -> Any:
    """A UNet with SD1.5's blocks: 16 sites, one transformer per block, convolutions around them, no pooled text."""
    import comfy.model_base
    import comfy.supported_models

    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": (1, 1, 2, 2),
        "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "num_heads": 4,
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
        "context_dim": 48, "adm_in_channels": None, "num_head_channels": -1, "use_linear_in_transformer": False,
        "use_spatial_transformer": True, "legacy": False, "use_temporal_attention": False,
    }  # fmt: skip
    settings = comfy.supported_models.SD15(copy.deepcopy(config))
    settings.unet_config = copy.deepcopy(config)
    settings.set_inference_dtype(dtype, None)
    made = comfy.model_base.BaseModel(settings, device=torch.device("cpu")).eval()
    fill(made.diffusion_model)
    return patcher(made)


def sdxl(context: int = 2048, pooled: int = 1280, dtype: torch.dtype = torch.float32) -> Any:
    """A UNet with all of SDXL's blocks and transformers, 70 sites, and narrow layers.

    context, pooled: the widths of the text; SDXL's own by default.
    """
    import comfy.model_base
    import comfy.supported_models

    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2, 4],
        "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10], "num_heads": -1,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "transformer_depth_middle": 10,
        "context_dim": context, "num_classes": "sequential", "adm_in_channels": pooled + 1536, "num_head_channels": 32,
        "use_linear_in_transformer": True, "use_spatial_transformer": True, "legacy": False,
        "use_temporal_attention": False,
    }  # fmt: skip
    settings = comfy.supported_models.SDXL(copy.deepcopy(config))
    settings.unet_config = copy.deepcopy(config)
    settings.set_inference_dtype(dtype, None)
    made = comfy.model_base.SDXL(settings, device=torch.device("cpu")).eval()
    fill(made.diffusion_model)
    return patcher(made)


def base_adapter(model: Any, name: str, tokens: int = 4) -> Any:
    """An IP-Adapter of the base family without a head, for the sites of a MODEL and the encoder of `vision`."""
    from mip_adapter.weights.adapter import build_adapter
    from mip_adapter.weights.sites import unet_sites

    sites = unet_sites(model.model.diffusion_model)
    width, seeded = sites[0].context_dim, torch.Generator().manual_seed(len(name))
    shapes = {"proj.weight": (tokens * width, VISION["projection_dim"]), "proj.bias": (tokens * width,)}
    shapes = {f"image_proj.{key}": shape for key, shape in shapes.items()}
    for site in sites:
        shapes |= {f"ip_adapter.{site.number}.to_{x}_ip.weight": (site.width, width) for x in "kv"}
    tensors = {key: torch.randn(shape, generator=seeded) / math.sqrt(shape[-1]) for key, shape in shapes.items()}
    norm = {"image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width)}
    return build_adapter(tensors | norm, name)


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
    """Fill the memory that ComfyUI leaves uninitialised: norms 1, biases 0, matrices normal over the root of their
    fan-in.
    """
    seeded = torch.Generator().manual_seed(0)
    for key, weight in module.state_dict().items():
        if weight.ndim < 2:
            weight.copy_(torch.full_like(weight, float(key.endswith("weight"))))
        elif "embedding" in key:
            weight.copy_(torch.randn(weight.shape, generator=seeded))
        else:
            weight.copy_(torch.randn(weight.shape, generator=seeded) / math.sqrt(math.prod(weight.shape[1:])))
