"""Recognises and names files that are often chosen in place of an adapter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

_ADAPTER = "Choose a MIP-Adapter or IP-Adapter file for SDXL, SD1.5 or FLUX.1."
_EMBEDDING = "Write embedding:name into the prompt instead."

_UNSUPPORTED = f"It is not supported. {_ADAPTER}"
_FACE_LORA = re.compile(r"ip_adapter\.\d+\.to_(q|k|v|out)_lora\.(down|up)\.weight")  # part of a FaceID adapter

# (kind; patterns that must occur in the keys; what to do). A line is a list of alternatives, separated by |. Every line
# must match. The first match wins.
_BY_KEY = (
    ("a PuLID adapter", "pulid_encoder.|pulid_ca.|id_adapter|image_proj.mapping_|id_embedding_mapping.",
     _UNSUPPORTED),
    ("an IP-Adapter for Stable Diffusion 3", ".norm_ip.|image_proj.time_embedding.|image_proj.time_proj.",
     _UNSUPPORTED),
    ("an MS-Diffusion adapter", "image_proj.grounding_latents|image_proj.latent_proj.", _UNSUPPORTED),
    ("a LoRA", "lora_unet_|lora_te|.lora_down.|.lora_up.|.lora_A.|.lora_B.|.lora.down.|.lora.up."
     "|.lora_linear_layer.|.hada_w1|.lokr_w|.oft_blocks|.dora_scale|_lora.down.", "Load it with Load LoRA."),
    ("a ControlNet", "control_model.|input_hint_block.|controlnet_cond_embedding.|controlnet_down_blocks."
     "|controlnet_blocks.|zero_convs.", "Load it with Load ControlNet Model."),
    ("a T2I-Adapter", "body.0.in_conv.|body.0.block1.|adapter.body.0.",
     "Load it with Load ControlNet Model."),
    ("an AnimateDiff motion module", "motion_modules.", f"It is no image adapter. {_ADAPTER}"),
    ("a full checkpoint", "model.diffusion_model.\nfirst_stage_model.|cond_stage_model.|conditioner.",
     "Load it with Load Checkpoint."),
    ("a UNet", "input_blocks.|down_blocks.\noutput_blocks.|up_blocks.|middle_block.|mid_block.\nattn2.to_k.",
     "Load it with Load Diffusion Model."),
    ("a diffusion model", "model.diffusion_model.|double_blocks.|joint_blocks.|transformer_blocks.0.attn",
     "Load it with Load Diffusion Model."),
    ("a CLIP image encoder", "vision_model.encoder.|visual.transformer.|visual.conv1.|visual_projection.",
     "Put it into models/clip_vision and load it with Load CLIP Vision."),
    ("a text encoder", "text_model.encoder.|transformer.resblocks.|encoder.block.0.|model.embed_tokens.",
     "Load it with Load CLIP."),
    ("a VAE", "decoder.conv_in.|decoder.up.|decoder.up_blocks.|decoder.mid|taesd_|encoder.down.",
     "Load it with Load VAE."),
    ("a Flux Redux style model", "redux_down.|redux_up.", "Load it with Load Style Model."),
    ("a style model", "style_embedding", "Load it with Load Style Model."),
    ("a textual inversion embedding", "string_to_param|emb_params", _EMBEDDING),
    ("an upscaler", "rdb1.conv1|RDB1.conv1|conv_first.|params_ema.|upsampler.0.|model.1.sub.0.",
     "Load it with Load Upscale Model."),
)  # fmt: skip


def reject_foreign(tensors: Mapping[str, Tensor], name: str) -> None:
    """Raises ValueError if the file is recognised as anything but a supported adapter.

    tensors: by flat key, from `read_tensors`. Files that are not recognised pass.
    """
    kind, remedy = _by_shape(tensors) or _by_key(tensors) or (None, "")
    if kind is not None:
        raise ValueError(f"“{name}” is {kind}, expected a MIP-Adapter or IP-Adapter. {remedy}")


def _by_key(keys: Iterable[str]) -> tuple[str, str] | None:
    if set(keys) and set(keys) <= {"clip_l", "clip_g", "t5xxl"}:
        return "a textual inversion embedding", _EMBEDDING
    text = "\n" + "\n".join(key for key in keys if not _FACE_LORA.fullmatch(key))  # one search through all keys
    for kind, signs, remedy in _BY_KEY:
        if all(any(sign in text for sign in line.split("|")) for line in signs.split("\n")):
            return kind, remedy
    return None


def _by_shape(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Recognises unsupported IP-Adapters that have the keys of a supported one, but other shapes."""

    def shape(key: str) -> tuple[int, ...]:
        return tuple(tensors[key].shape) if key in tensors else ()

    keys = [k for k in tensors if k.endswith(".to_k_ip.weight")]
    contexts = {shape(k)[-1] for k in keys if len(shape(k)) == 2}
    latents = shape("image_proj.latents")
    if 4096 in contexts and "ip_adapter.0.to_k_ip.weight" not in tensors:
        return "an IP-Adapter for Flux of an unknown kind", _UNSUPPORTED
    to_out = shape("image_proj.perceiver_resampler.layers.0.0.to_out.weight")
    if to_out[:1] == (4096,):
        return "an IP-Adapter FaceID Plus for Kolors", _UNSUPPORTED
    if len(latents) == 3 and latents[2] == 2048 and contexts <= {2048}:
        return "an IP-Adapter for Kolors", _UNSUPPORTED
    return None
