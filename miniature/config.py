"""The miniature's shapes: SDXL's structure with small numbers.

The pack derives sites, tokens and encoder widths from these numbers by the same rules as from SDXL's, so the method
has no special case for the miniature.
"""

# Text encoders. They have the full CLIP vocabulary, so that ComfyUI's tokenizer fits.
CLIP_L = {
    "hidden_size": 48,
    "intermediate_size": 192,
    "num_attention_heads": 3,
    "num_hidden_layers": 4,
    "projection_dim": 48,
    "hidden_act": "quick_gelu",
}
CLIP_G = {
    "hidden_size": 80,
    "intermediate_size": 320,
    "num_attention_heads": 5,
    "num_hidden_layers": 4,
    "projection_dim": 80,
    "hidden_act": "gelu",
}

CONTEXT_DIM = CLIP_L["hidden_size"] + CLIP_G["hidden_size"]  # SDXL: 768 + 1280
ADM_CHANNELS = CLIP_G["hidden_size"] + 6 * 256  # pooled text, then six sizes at 256 each

# The image encoder serves both families: base reads the projection, plus reads the penultimate hidden states.
CLIP_VISION = {
    "model_type": "clip_vision_model",
    "image_size": 112,
    "patch_size": 14,
    "num_channels": 3,
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_attention_heads": 6,
    "num_hidden_layers": 4,
    "projection_dim": 80,  # CLIP-G's space, as with ViT-bigG in SDXL
    "hidden_act": "gelu",
}

# Three levels as in SDXL, but with attention on all of them. At 128 px the finest has 16 × 16 positions, and words
# find their objects there.
UNET = {
    "image_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 64,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 2],
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": CONTEXT_DIM,
    "num_heads": -1,
    "num_head_channels": 32,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "num_classes": "sequential",
    "adm_in_channels": ADM_CHANNELS,
    "legacy": False,
}

VAE_LATENT_CHANNELS = 4
VAE_SCALE = 0.13025  # SDXL's latent scale; the miniature's VAE has TAESD's shape and works on scaled latents

# Adapters.
BASE_TOKENS = 4
PLUS_TOKENS = 16
RESAMPLER = {"dim": 128, "depth": 2, "dim_head": 64, "ff_mult": 4}


def sites() -> tuple[tuple[int, int], ...]:
    """(number, width) of every cross-attention, in the order of checkpoints: down, up, middle. Numbers are odd."""
    widths: list[int] = []
    levels = [UNET["model_channels"] * m for m in UNET["channel_mult"]]
    down = [width for width, n in zip(levels, UNET["num_res_blocks"], strict=True) for _ in range(n)]
    up = [width for width, n in zip(levels, UNET["num_res_blocks"], strict=True) for _ in range(n + 1)]
    for width, depth in zip(down, UNET["transformer_depth"], strict=True):
        widths += [width] * depth
    for width, depth in zip(reversed(up), reversed(UNET["transformer_depth_output"]), strict=True):
        widths += [width] * depth
    widths += [levels[-1]] * UNET["transformer_depth_middle"]
    return tuple((2 * i + 1, width) for i, width in enumerate(widths))
