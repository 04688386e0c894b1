"""ComfyUI's own network classes at the miniature's size, ready to be trained from scratch."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...miniature import config

# FLUX.1's class for the stand-in of edit models: small pictures, the miniature's texts, and no embedded guidance.
EDIT = {
    "image_model": "flux",
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": 4,
    "vec_in_dim": config.CLIP_G["projection_dim"],
    "context_in_dim": config.CONTEXT_DIM,
    "hidden_size": 128,
    "mlp_ratio": 4.0,
    "num_heads": 4,
    "depth": 2,
    "depth_single_blocks": 3,
    "axes_dim": [4, 14, 14],
    "theta": 100,  # FLUX.1's 10,000 would leave most channels unturned over so few positions
    "qkv_bias": True,
    "guidance_embed": False,
}


def use_host(folder: Path) -> None:
    """Make ComfyUI importable. Without a GPU it must be told to use the CPU before any of it is imported."""
    sys.path.insert(0, str(folder))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()


def vae() -> nn.Module:
    """TAESD: `taesd_encoder` maps pixels in 0..1 to latents, `taesd_decoder` maps them back."""
    from comfy.taesd.taesd import TAESD

    return initialise(TAESD(latent_channels=config.VAE_LATENT_CHANNELS))


def unet() -> nn.Module:
    """SDXL's UNet class at the miniature's size. Its last layers start at zero, so its first output is 0."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    model = initialise(UNetModel(**config.UNET, dtype=torch.float32, operations=comfy.ops.disable_weight_init))
    module: Any  # the names below are layers with weight and bias
    for name, module in model.named_modules():
        if name.endswith(("out_layers.3", "proj_out", "out.2")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
    return model


def edit_config() -> dict[str, Any]:
    """`EDIT`, as the host's version wants it."""
    from comfy.ldm.flux.model import FluxParams

    newer = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__annotations__ else {}
    return {**EDIT, **newer}


def edit() -> nn.Module:
    """FLUX.1's class at `EDIT`'s size. Its blocks start as the identity, and its first output is 0."""
    import comfy.ops
    from comfy.ldm.flux.model import Flux

    model = initialise(Flux(**edit_config(), dtype=torch.float32, operations=comfy.ops.disable_weight_init))
    module: Any
    for name, module in model.named_modules():
        if name.endswith(("_mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear")):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        if name.endswith(("query_norm", "key_norm")):
            nn.init.ones_(next(module.parameters()))
        if isinstance(module, nn.LayerNorm):
            # The host's blocks add to their input in place, and the norm's gradient needs the input as it was.
            module.register_forward_pre_hook(lambda _, given: (given[0].clone(),))
    return model


@cache
def _tokenizer():
    from comfy.sdxl_clip import SDXLTokenizer

    return SDXLTokenizer().clip_l


def tokenize(text: str) -> list[int]:
    """CLIP's token ids of a text with start and end, from ComfyUI's tokenizer."""
    return [number for number, _ in _tokenizer().tokenize_with_weights(text)[0]]


def initialise(model: nn.Module) -> nn.Module:
    """Initialise a model and allow gradients. ComfyUI's layers skip initialisation to load faster."""
    kinds: tuple[Any, ...] = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GroupNorm)
    for module in model.modules():
        for kind in kinds:
            if isinstance(module, kind):
                kind.reset_parameters(module)
    return model.requires_grad_(True)


def run_unet(unet: nn.Module, x, timesteps, context, vector, options: Mapping[str, Any] | None = None):
    """The UNet's output, computed in the dtype of its weights. options: additional transformer_options of ComfyUI."""
    options = {**(options or {}), "optimized_attention_override": lambda _, *given, **more: attention(*given)}
    x, context, vector = (each.to(unet.dtype) for each in (x, context, vector))
    return unet(x, timesteps.float(), context=context, y=vector, transformer_options=options)


def run_edit(
    model: nn.Module,
    x: Tensor,
    sigmas: Tensor,
    texts: tuple[Tensor, Tensor],
    references: Sequence[Tensor],
    watch: Callable[[Tensor, Tensor], None] | None = None,
) -> Tensor:
    """The velocity that FLUX.1's class predicts.

    sigmas: [B], noise levels from 0 to 1.
    texts: context [B, L, X] and pooled text [B, Y].
    references: pictures [B, 3, h, w] that stand behind the picture's tokens.
    watch: called with the queries and keys [B, h, S, d] of every block.
    """

    def attend(_: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **more: Any) -> Tensor:
        if watch is not None:
            watch(q, k)
        return _attended(q, k, v)

    context, pooled = texts
    options = {"optimized_attention_override": attend}
    given = {"ref_latents": list(references)} if references else {}
    with _training(torch.is_grad_enabled()):
        return model(x, sigmas, context, pooled, **given, transformer_options=options)


@contextmanager
def _training(on: bool) -> Iterator[None]:
    """Newer hosts turn queries and keys by a kernel without gradients, unless they are told of a training."""
    import comfy.model_management as management

    host: Any = management
    before = getattr(host, "in_training", False)
    host.in_training = on
    try:
        yield
    finally:
        host.in_training = before


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *_: Any) -> Tensor:
    """Attention of [B, N, h·d] to [B, L, h·d]."""
    return _attended(*(t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v)))


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of [B, h, N, d] to [B, h, L, d], as [B, N, h·d].

    On a CPU it is computed as plain products, which train faster there than the fused kernel.
    """
    if q.is_cuda:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        out = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).to(v) @ v
    return out.transpose(1, 2).flatten(2)
