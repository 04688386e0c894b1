"""The miniature as ComfyUI's objects: an SDXL model, CLIP, VAE and CLIP vision with small configs."""

import json
import tempfile
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

from ..common.bundled import MINIATURE, remedy
from . import config

MODELS = ("unet", "clip", "vae", "clip_vision")  # a .safetensors file each

Bundle = tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE, ClipVisionModel]


def load(folder: Path = MINIATURE) -> Bundle:
    """MODEL, CLIP, VAE and CLIP_VISION from the files of a folder. Every call returns new ones.

    Raises ValueError if a file is missing, damaged or of another model. It names the file and how to restore it.
    """
    return _model(folder), _clip(folder), _vae(folder), _clip_vision(folder)


def _weights(folder: Path, part: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of one file, with the keys and shapes of the module. part: one of MODELS."""
    file = folder / f"{part}.safetensors"
    try:
        tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
    except Exception as error:  # a damaged file can raise anything in its reader
        reason = "is missing" if not file.exists() else f"is damaged ({type(error).__name__}: {error})"
        raise ValueError(_mend(file, reason)) from error
    shapes = {key: value.shape for key, value in module.state_dict().items()}
    wrong = [
        key for key in shapes.keys() | tensors.keys() if key not in tensors or tensors[key].shape != shapes.get(key)
    ]
    if wrong:
        raise ValueError(_mend(file, f"is of another model ({min(wrong)} does not fit)"))
    return tensors


def _mend(file: Path, reason: str) -> str:
    return f"The miniature's file {file} {reason}. {remedy(file.name)}"


def _model(folder: Path) -> ModelPatcher:
    settings = comfy.supported_models.SDXL(config.UNET)
    settings.unet_config["num_head_channels"] = config.UNET["num_head_channels"]  # not SDXL's 64
    device, offload = management.get_torch_device(), management.unet_offload_device()
    supported = settings.supported_inference_dtypes
    dtype = management.unet_dtype(supported_dtypes=supported)
    settings.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    kind = comfy.model_base.ModelType.V_PREDICTION  # on SDXL's discrete schedule
    model = comfy.model_base.SDXL(settings, kind, device=offload)
    unet = model.diffusion_model
    unet.load_state_dict(_weights(folder, "unet", unet), strict=True)
    return ModelPatcher(model, load_device=device, offload_device=offload)


class _Target:
    """The attributes that comfy.sd.CLIP reads from a target."""

    params: dict = {}
    clip = comfy.sdxl_clip.SDXLClipModel
    tokenizer = comfy.sdxl_clip.SDXLTokenizer


def _clip(folder: Path) -> comfy.sd.CLIP:
    options = {"clip_l_model_config": config.CLIP_L, "clip_g_model_config": config.CLIP_G}
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(_Target, embedding_directory=embeddings, model_options=options)
    clip.cond_stage_model.load_state_dict(_weights(folder, "clip", clip.cond_stage_model), strict=True)
    return clip


def _vae(folder: Path) -> comfy.sd.VAE:
    layout = comfy.taesd.taesd.TAESD(latent_channels=config.VAE_LATENT_CHANNELS)
    return comfy.sd.VAE(sd=_weights(folder, "vae", layout))


def _clip_vision(folder: Path) -> ClipVisionModel:
    with tempfile.TemporaryDirectory() as made:
        file = Path(made) / "config.json"
        file.write_text(json.dumps(config.CLIP_VISION))
        encoder = ClipVisionModel(str(file))
    encoder.model.load_state_dict(_weights(folder, "clip_vision", encoder.model), strict=True)
    return encoder
