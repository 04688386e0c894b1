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

FOLDER = Path(__file__).parent  # trained files lie here
PARTS = ("unet", "clip", "vae", "clip_vision")

Bundle = tuple[ModelPatcher, comfy.sd.CLIP, comfy.sd.VAE, ClipVisionModel]
Seeding = Callable[[seeded.Shapes], dict[str, torch.Tensor]]


def is_trained(folder: Path | None = None) -> bool:
    """Whether trained files are there, or at least some of them."""
    return any(((folder or FOLDER) / f"{part}.safetensors").exists() for part in PARTS)


def load(folder: Path | None = None) -> Bundle:
    """MODEL, CLIP, VAE and CLIP_VISION, new ones on every call, from the trained files of a folder (FOLDER).

    Where there is none at all the numbers are seeded. Raises ValueError, which names the file and how to get it back,
    if one of them is missing, damaged or of another model.
    """
    weights = _Weights(folder or FOLDER)
    return _model(weights), _clip(weights), _vae(weights), _clip_vision(weights)


class _Weights:
    def __init__(self, folder: Path):
        self.folder, self.trained = folder, is_trained(folder)

    def of(self, part: str, module: torch.nn.Module, seed: Seeding | None = None) -> dict[str, torch.Tensor]:
        """Tensors for every key of the module, of its shapes."""
        shapes = {key: value.shape for key, value in module.state_dict().items()}
        if not self.trained:
            return (seed or partial(seeded.fill, part))(shapes)
        file = self.folder / f"{part}.safetensors"
        try:
            tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
        except Exception as error:  # whatever a damaged file makes its reader raise
            reason = "is missing" if not file.exists() else f"is damaged ({type(error).__name__}: {error})"
            raise ValueError(_mend(file, reason)) from error
        wrong = [key for key, shape in shapes.items() if key not in tensors or tensors[key].shape != shape]
        if wrong:
            raise ValueError(_mend(file, f"is of another model ({wrong[0]} is missing or of another shape)"))
        return tensors


def _mend(file: Path, reason: str) -> str:
    return (
        f"The miniature's file {file} {reason}. Get it back with “git checkout -- miniature/{file.name}”, or build it "
        "again with “python miniature/train.py --export miniature”."
    )


def _model(weights: _Weights) -> ModelPatcher:
    settings = comfy.supported_models.SDXL(config.UNET)
    settings.unet_config["num_head_channels"] = config.UNET["num_head_channels"]  # not SDXL's 64
    device, offload = management.get_torch_device(), management.unet_offload_device()
    supported = settings.supported_inference_dtypes
    dtype = management.unet_dtype(supported_dtypes=supported)
    settings.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    kind = comfy.model_base.ModelType.V_PREDICTION  # on SDXL's discrete schedule
    model = comfy.model_base.SDXL(settings, kind, device=offload)
    unet = model.diffusion_model
    unet.load_state_dict(weights.of("unet", unet, seeded.unet), strict=True)
    return ModelPatcher(model, load_device=device, offload_device=offload)


class _Target:
    """What comfy.sd.CLIP asks of a target."""

    params: dict = {}
    clip = comfy.sdxl_clip.SDXLClipModel
    tokenizer = comfy.sdxl_clip.SDXLTokenizer


def _clip(weights: _Weights) -> comfy.sd.CLIP:
    options = {"clip_l_model_config": config.CLIP_L, "clip_g_model_config": config.CLIP_G}
    embeddings = folder_paths.get_folder_paths("embeddings")
    clip = comfy.sd.CLIP(_Target, embedding_directory=embeddings, model_options=options)
    clip.cond_stage_model.load_state_dict(weights.of("clip", clip.cond_stage_model), strict=True)
    return clip


def _vae(weights: _Weights) -> comfy.sd.VAE:
    layout = comfy.taesd.taesd.TAESD(latent_channels=config.VAE_LATENT_CHANNELS)
    return comfy.sd.VAE(sd=weights.of("vae", layout, seeded.vae))


def _clip_vision(weights: _Weights) -> ClipVisionModel:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config.CLIP_VISION))
        encoder = ClipVisionModel(str(file))
    encoder.model.load_state_dict(weights.of("clip_vision", encoder.model), strict=True)
    return encoder
