"""A FLUX.1 of a few hundred KB with matching encoders, as ComfyUI's own objects and as diffusers' transformer.

Call these after the `host` fixture.
"""

from __future__ import annotations

from typing import Any

import torch
from mip_adapter.attention.reference import make_reference
from mip_adapter.weights.adapter import build_adapter
from mip_adapter.weights.layout import flat_keys
from torch import Tensor

from . import small

HEADS, WIDTH = 3, 48
DOUBLE, SINGLE = 2, 2
TEXT, POOLED, CHANNELS = 64, 16, 4
AXES = (4, 6, 6)
IMAGE = 10  # width of the image encoder's embedding
T5 = {
    "d_ff": 32, "d_kv": 8, "d_model": TEXT, "dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True,
    "layer_norm_epsilon": 1e-6, "model_type": "t5", "num_heads": 2, "num_layers": 2, "vocab_size": 32128,
    "relative_attention_num_buckets": 32, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip

PROMPT = "a photo of a cat and a red jacket"


def transformer() -> Any:
    """Random weights in diffusers' own model."""
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    torch.manual_seed(0)
    made: Any = FluxTransformer2DModel(
        patch_size=1, in_channels=4 * CHANNELS, num_layers=DOUBLE, num_single_layers=SINGLE, guidance_embeds=True,
        attention_head_dim=WIDTH // HEADS, num_attention_heads=HEADS, joint_attention_dim=TEXT,
        pooled_projection_dim=POOLED, axes_dims_rope=AXES,
    ).eval()  # fmt: skip
    for block in made.transformer_blocks:
        for norm in (block.attn.norm_q, block.attn.norm_k, block.attn.norm_added_q, block.attn.norm_added_k):
            norm.eps = 1e-6  # FLUX.1's own; diffusers leaves its default
    return made


def model(source: Any = None, **changes: Any) -> Any:
    """The same weights as a MODEL."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_detection
    import comfy.ops
    import comfy.supported_models

    config = {
        "image_model": "flux", "in_channels": CHANNELS, "out_channels": CHANNELS, "patch_size": 2,
        "vec_in_dim": POOLED, "context_in_dim": TEXT, "hidden_size": WIDTH, "mlp_ratio": 4.0, "num_heads": HEADS,
        "depth": DOUBLE, "depth_single_blocks": SINGLE, "axes_dim": list(AXES), "theta": 10000, "qkv_bias": True,
        "guidance_embed": True, "txt_ids_dims": [], **changes,
    }  # fmt: skip
    if not _knows_text_axes():
        config.pop("txt_ids_dims")
    settings = comfy.supported_models.Flux(dict(config))
    settings.unet_config = dict(config)
    settings.custom_operations = comfy.ops.disable_weight_init
    settings.latent_format = comfy.latent_formats.SDXL()  # of four channels
    settings.set_inference_dtype(torch.float32, None)
    made = comfy.model_base.Flux(settings, device=torch.device("cpu")).eval()
    # Clones, since the conversion swaps parts of some tensors in place.
    given = {key: weight.clone() for key, weight in (source or transformer()).state_dict().items()}
    weights = comfy.model_detection.convert_diffusers_mmdit(given)
    made.diffusion_model.load_state_dict(weights)
    return small.patcher(made)


def _knows_text_axes() -> bool:
    from dataclasses import fields

    from comfy.ldm.flux.model import FluxParams

    return "txt_ids_dims" in {field.name for field in fields(FluxParams)}


def clip() -> Any:
    """CLIP-L and T5 in one, with the host's tokenizers."""
    import comfy.sd
    import comfy.text_encoders.flux
    import folder_paths

    class Target:
        params: dict = {}
        clip = comfy.text_encoders.flux.flux_clip()
        tokenizer = comfy.text_encoders.flux.FluxTokenizer

    options = {"clip_l_model_config": small.CLIP_L, "t5xxl_model_config": T5}
    made = comfy.sd.CLIP(Target, embedding_directory=folder_paths.get_folder_paths("embeddings"), model_options=options)
    small.fill(made.cond_stage_model)
    # As in a trained encoder, a token's embedding says most about its output.
    words = made.cond_stage_model.t5xxl.transformer.get_input_embeddings().weight
    with torch.no_grad():
        words.mul_(20)
    return made


def xlabs(tokens: int = 4, seed: int = 5) -> dict[str, Tensor]:
    """Tensors of an XLabs adapter, under the keys of its published files."""
    made = _Normal(seed)
    tensors = {
        "ip_adapter_proj_model.proj.weight": made(tokens * TEXT, IMAGE),
        "ip_adapter_proj_model.proj.bias": made(tokens * TEXT),
        "ip_adapter_proj_model.norm.weight": 1 + made(TEXT),
        "ip_adapter_proj_model.norm.bias": made(TEXT),
    }
    for block in range(DOUBLE):
        for part in "kv":
            key = f"double_blocks.{block}.processor.ip_adapter_double_stream_{part}_proj"
            tensors |= {f"{key}.weight": made(WIDTH, TEXT), f"{key}.bias": made(WIDTH)}
    return tensors


def instantx(tokens: int = 5, seed: int = 6) -> dict[str, Tensor]:
    """Tensors of an InstantX adapter, under the keys of its published file, flattened."""
    made = _Normal(seed)
    tensors = {
        "image_proj.proj.0.weight": made(2 * IMAGE, IMAGE), "image_proj.proj.0.bias": made(2 * IMAGE),
        "image_proj.proj.2.weight": made(tokens * TEXT, 2 * IMAGE), "image_proj.proj.2.bias": made(tokens * TEXT),
        "image_proj.norm.weight": 1 + made(TEXT), "image_proj.norm.bias": made(TEXT),
    }  # fmt: skip
    for block in range(DOUBLE + SINGLE):
        for part in "kv":
            tensors[f"ip_adapter.{block}.to_{part}_ip.weight"] = made(WIDTH, TEXT)
    return tensors


class _Normal:
    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) * (0.5 if len(shape) == 1 else shape[-1] ** -0.5)


class Vision:
    """An image encoder: an embedding that follows from the picture's mean colour."""

    def encode_image(self, images, crop="center"):
        generator = torch.Generator().manual_seed(3)
        mix = torch.randn(3, IMAGE, generator=generator)
        embeds = images.mean((1, 2)) @ mix
        return {"image_embeds": embeds, "pooled": embeds}


def adapter(tensors):
    """An adapter of `xlabs` or `instantx`."""
    return build_adapter(flat_keys(tensors, "a"), "a")


def references(*texts: str, **changes):
    """At most three, each a picture of one colour. changes: of `make_reference`."""
    colours = torch.eye(3)
    return tuple(make_reference(colours[i].expand(1, 8, 8, 3).clone(), text, **changes) for i, text in enumerate(texts))


def applied(flux, tensors, chain, model=None, **options):
    """What MIP Apply gives.

    flux: `model` and `clip`.
    tensors: of an adapter.
    """
    from mip_adapter.patching.apply import apply_references

    return apply_references(
        model or flux.model, flux.clip, Vision(), adapter(tensors), chain, **{"scale": 0.8, **options}
    )
