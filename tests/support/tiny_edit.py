"""A FLUX.2 and a Qwen-Image-Edit of a few hundred KB with a language model for their words, as ComfyUI's own objects.

Call these after the `host` fixture.
"""

from __future__ import annotations

from typing import Any

import torch

from . import small, tiny_flux

HEADS, WIDTH, TEXT = 2, 32, 64


def _made(model_class: str, settings_class: str, config: dict, latent_format: str) -> Any:
    import comfy.latent_formats
    import comfy.model_base
    import comfy.ops
    import comfy.supported_models

    settings = getattr(comfy.supported_models, settings_class)(dict(config))
    settings.unet_config = dict(config)
    settings.custom_operations = comfy.ops.disable_weight_init
    settings.latent_format = getattr(comfy.latent_formats, latent_format)()
    settings.set_inference_dtype(torch.float32, None)
    made = getattr(comfy.model_base, model_class)(settings, device=torch.device("cpu")).eval()
    small.fill(made.diffusion_model)
    return small.patcher(made)


def flux2() -> Any:
    """A MODEL of FLUX.2's kind: global modulation, four axes of positions, latents of 128 channels."""
    config = {
        "image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1, "vec_in_dim": None,
        "context_in_dim": TEXT, "hidden_size": WIDTH, "mlp_ratio": 3.0, "num_heads": HEADS, "depth": 2,
        "depth_single_blocks": 2, "axes_dim": [4, 4, 4, 4], "theta": 2000, "qkv_bias": False, "guidance_embed": True,
        "global_modulation": True, "mlp_silu_act": True, "ops_bias": False, "default_ref_method": "index",
        "ref_index_scale": 10.0, "txt_ids_dims": [3],
    }  # fmt: skip
    if not tiny_flux._knows_text_axes():
        config.pop("txt_ids_dims")
    return _made("Flux2", "Flux2", config, "Flux2")


def qwen() -> Any:
    """A MODEL of Qwen-Image-Edit's kind: latents [B, 16, 1, h, w]."""
    config = {
        "image_model": "qwen_image", "patch_size": 2, "in_channels": 64, "out_channels": 16, "num_layers": 3,
        "attention_head_dim": WIDTH // HEADS, "num_attention_heads": HEADS, "joint_attention_dim": TEXT,
        "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    return _made("QwenImage", "QwenImage", config, "Wan21")


def clip() -> Any:
    """A CLIP with the host's tokenizer and system prompt of Qwen-Image, and a language model of two small layers."""
    import comfy.sd
    import comfy.text_encoders.llama
    import comfy.text_encoders.qwen_image as host
    import folder_paths
    from comfy import sd1_clip

    class Words(sd1_clip.SDClipModel):
        def __init__(self, device="cpu", layer="last", layer_idx=None, dtype=None, model_options=None):
            super().__init__(
                device=device, layer=layer, layer_idx=layer_idx, dtype=dtype, special_tokens={"pad": 151643},
                layer_norm_hidden_state=False, model_class=comfy.text_encoders.llama.Qwen25_3B,
                enable_attention_masks=True, return_attention_masks=True, model_options=model_options or {},
                textmodel_json_config={
                    "hidden_size": TEXT, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1,
                    "num_key_value_heads": 1,
                },
            )  # fmt: skip

    class Model(host.QwenImageTEModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            sd1_clip.SD1ClipModel.__init__(
                self, device=device, dtype=dtype, name="qwen25_7b", clip_model=Words, model_options=model_options or {}
            )

    class Target:
        params: dict = {}
        clip = Model
        tokenizer = host.QwenImageTokenizer

    made = comfy.sd.CLIP(Target, embedding_directory=folder_paths.get_folder_paths("embeddings"))
    small.fill(made.cond_stage_model)
    # As in a trained encoder, a token's embedding says most about its output.
    words = made.cond_stage_model.qwen25_7b.transformer.get_input_embeddings().weight
    with torch.no_grad():
        words.mul_(20)
    return made
