"""Outputs of the official implementation, read from tests/data/golden."""

from __future__ import annotations

import torch
from safetensors import safe_open
from torch import Tensor

from .paths import DATA

FOLDER = DATA / "golden"


def read(name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a golden file."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Norm of the error over the norm of the expected tensor."""
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def host_unet() -> torch.nn.Module:
    """The golden UNet as a ComfyUI model in float32. Call it after the `host` fixture."""
    import comfy.model_base
    import comfy.ops
    import comfy.supported_models
    import comfy.utils

    config = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": (1, 1, 2),
        "num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 1, 1, 2, 2],
        "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "transformer_depth_middle": 2,
        "context_dim": 48, "adm_in_channels": 32 + 1536, "num_classes": "sequential", "num_head_channels": 16,
        "num_heads": -1, "use_linear_in_transformer": True, "use_spatial_transformer": True, "legacy": False,
        "use_temporal_attention": False,
    }  # fmt: skip
    model_config = comfy.supported_models.SDXL(dict(config))
    model_config.unet_config = dict(config)
    model_config.custom_operations = comfy.ops.disable_weight_init
    model_config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.SDXL(model_config, device="cpu").eval()
    keys = comfy.utils.unet_to_diffusers({**config, "num_res_blocks": [2, 2, 2]})
    weights, _ = read("unet_diffusers")
    state = {keys[key]: value.float() for key, value in weights.items()}
    missing, unexpected = model.diffusion_model.load_state_dict(state, strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    return model
