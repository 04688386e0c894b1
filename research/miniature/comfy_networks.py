"""The host's own network classes, built small and ready to be trained from nothing."""

import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...miniature import config


def use_host(folder: Path) -> None:
    """Make ComfyUI importable; without a GPU it must be told so before anything of it is imported."""
    sys.path.insert(0, str(folder))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def vae() -> nn.Module:
    """TAESD: `taesd_encoder` maps 0…1 pixels to latents, `taesd_decoder` maps them back."""
    from comfy.taesd.taesd import TAESD

    return initialise(TAESD(latent_channels=config.VAE_LATENT_CHANNELS))


def unet() -> nn.Module:
    """SDXL's UNet class at the miniature's size; its last layers start at zero, so it starts by saying 0."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model = initialise(UNetModel(**config.UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init))
    module: Any  # of the three kinds that end so, each with weight and bias
    for name, module in model.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


@cache
def _tokenizer():
    from comfy.sdxl_clip import SDXLTokenizer

    return SDXLTokenizer().clip_l


def tokenize(text: str) -> list[int]:
    """CLIP's token numbers of a text, with start and end, as the host makes them."""
    return [number for number, _ in _tokenizer().tokenize_with_weights(text)[0]]


def initialise(model: nn.Module) -> nn.Module:
    """The host's layers skip their initialisation to load faster: make up for it, and allow gradients."""
    kinds: tuple[Any, ...] = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GroupNorm)
    for module in model.modules():
        for kind in kinds:
            if isinstance(module, kind):
                kind.reset_parameters(module)
    return model.requires_grad_(True)


def run_unet(unet: nn.Module, x, steps, context, vector, options: Mapping[str, Any] | None = None):
    """The UNet's answer, computed in the dtype of its weights. options: more of the host's transformer_options."""
    options = {**(options or {}), "optimized_attention_override": lambda _, *given, **more: attention(*given)}
    x, context, vector = (each.to(unet.dtype) for each in (x, context, vector))
    return unet(x, steps.float(), context=context, y=vector, transformer_options=options)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any) -> Tensor:
    """Attention of [B, N, h·d] to [B, L, h·d]; on a CPU as plain products, which it trains faster than the fused
    kernel."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    if q.is_cuda:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v) @ v
    return out.transpose(1, 2).flatten(2)
