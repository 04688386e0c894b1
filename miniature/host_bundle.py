"""The miniature as the host's own objects: SDXL model, CLIP, VAE and CLIP vision built from small configs."""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import comfy.model_base
import comfy.model_management as management
import comfy.sd
import comfy.sdxl_clip
import comfy.supported_models
import comfy.taesd.taesd
import comfy.utils
import folder_paths
import torch
from comfy.clip_vision import ClipVisionModel
from comfy.model_patcher import ModelPatcher

from . import config, seeded

FOLDER = Path(__file__).parent  # trained files lie here: unet, clip, vae, clip_vision .safetensors

Bundle = tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE, ClipVisionModel]
Seeding = Callable[[seeded.Shapes], dict[str, torch.Tensor]]


def load() -> Bundle:
    """MODEL, CLIP, VAE and CLIP_VISION, new ones on every call."""
    return _model(), _clip(), _vae(), _clip_vision()


def _weights(part: str, module: torch.nn.Module, seed: Seeding | None = None) -> dict[str, torch.Tensor]:
    """Weights of one part: the trained file beside this one where there is one, else seeded numbers."""
    file = FOLDER / f"{part}.safetensors"
    if file.exists():
        return comfy.utils.load_torch_file(str(file), safe_load=True)
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    return (seed or partial(seeded.fill, part))(shapes)


def _model() -> ModelPatcher:
    settings = comfy.supported_models.SDXL(config.UNET)
    settings.unet_config["num_head_channels"] = config.UNET["num_head_channels"]  # not SDXL's 64
    device, offload = management.get_torch_device(), management.unet_offload_device()
    supported = settings.supported_inference_dtypes
    dtype = management.unet_dtype(supported_dtypes=supported)
    settings.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    kind = comfy.model_base.ModelType.V_PREDICTION  # on SDXL's discrete schedule
    model = comfy.model_base.SDXL(settings, kind, device=offload)
    unet = model.diffusion_model
    unet.load_state_dict(_weights("unet", unet, seeded.unet), strict=True)
    return ModelPatcher(model, load_device=device, offload_device=offload)


class _Target:
    """What comfy.sd.CLIP asks of a target."""

    params: dict = {}
    clip = comfy.sdxl_clip.SDXLClipModel
    tokenizer = comfy.sdxl_clip.SDXLTokenizer


def _clip() -> comfy.sd.CLIP:
    options = {"clip_l_model_config": config.CLIP_L, "clip_g_model_config": config.CLIP_G}
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(_Target, embedding_directory=embeddings, model_options=options)
    clip.cond_stage_model.load_state_dict(_weights("clip", clip.cond_stage_model), strict=True)
    return clip


def _vae() -> comfy.sd.VAE:
    layout = comfy.taesd.taesd.TAESD(latent_channels=config.VAE_LATENT_CHANNELS)
    return comfy.sd.VAE(sd=_weights("vae", layout, seeded.vae))


def _clip_vision() -> ClipVisionModel:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config.CLIP_VISION))
        encoder = ClipVisionModel(str(file))
    encoder.model.load_state_dict(_weights("clip_vision", encoder.model), strict=True)
    return encoder
