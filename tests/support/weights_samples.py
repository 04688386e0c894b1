"""Adapters of every family as tensors: of real shapes (on the meta device or unwritten), or small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .paths import DATA

GOLDEN = DATA / "golden"

SDXL_WIDTHS = (*[640] * 4, *[1280] * 50, *[640] * 6, *[1280] * 10)
SSD_1B_WIDTHS = (*[640] * 4, *[1280] * 8, *[1280] * 18, *[640] * 4)
SD15_WIDTHS = (320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320, 1280)

Fill = Callable[..., Tensor]


@dataclass(frozen=True)
class Sample:
    """The shape of an adapter.

    context: X.
    encoder: width of the image encoder's output.
    widths: C of every site.
    head: whether it has a fusion head.
    tokens: image tokens per picture.
    dim, heads, depth: of the Resampler.
    lora: rank of the LoRA inside; 0: none.
    """

    family: str
    context: int
    encoder: int
    widths: tuple[int, ...]
    head: bool = False
    tokens: int = 4
    dim: int = 0
    heads: int = 0
    depth: int = 4
    lora: int = 0


_SDXL_PLUS = Sample("plus", 2048, 1280, SDXL_WIDTHS, tokens=16, dim=1280, heads=20)
_SD15_PLUS = Sample("plus", 768, 1280, SD15_WIDTHS, tokens=16, dim=768, heads=12)

FAMILIES = {  # all published weights that must load
    "MIP-Adapter model_sdxl": Sample("base", 2048, 1280, SDXL_WIDTHS, head=True),
    "MIP-Adapter model_sdxl_plus": replace(_SDXL_PLUS, head=True),
    "ip-adapter_sdxl": Sample("base", 2048, 1280, SDXL_WIDTHS),
    "ip-adapter_sdxl_vit-h": Sample("base", 2048, 1024, SDXL_WIDTHS),
    "ip-adapter-plus_sdxl_vit-h": _SDXL_PLUS,
    "ip-adapter-plus-face_sdxl_vit-h": _SDXL_PLUS,
    "ip-adapter_sd15": Sample("base", 768, 1024, SD15_WIDTHS),
    "ip-adapter_sd15_light": Sample("base", 768, 1024, SD15_WIDTHS),
    "ip-adapter-plus_sd15": _SD15_PLUS,
    "ip-adapter-plus-face_sd15": _SD15_PLUS,
    "ip-adapter-full-face_sd15": Sample("full-face", 768, 1280, SD15_WIDTHS),
    "ip-adapter-faceid_sd15": Sample("faceid", 768, 512, SD15_WIDTHS, lora=128),
    "ip-adapter-faceid_sdxl": Sample("faceid", 2048, 512, SDXL_WIDTHS, lora=128),
    "ip-adapter-faceid-plus_sd15": Sample("faceid-plus", 768, 1280, SD15_WIDTHS, heads=12, lora=128),
    "ip-adapter-faceid-plusv2_sd15": Sample("faceid-plusv2", 768, 1280, SD15_WIDTHS, heads=12, lora=128),
    "ip-adapter-faceid-plusv2_sdxl": Sample("faceid-plusv2", 2048, 1280, SDXL_WIDTHS, heads=32, lora=128),
    "ip-adapter-faceid-portrait-v11_sd15": Sample("portrait", 768, 512, SD15_WIDTHS, tokens=16),
    "ip-adapter-faceid-portrait_sdxl": Sample("portrait", 2048, 512, SDXL_WIDTHS, tokens=16),
    "ip-adapter-faceid-portrait_sdxl_unnorm": replace(_SDXL_PLUS, family="portrait-unnorm", encoder=512),
}

SMALL = {  # the same families in a few KB
    "base": Sample("base", 12, 10, (8, 8, 16), head=True),
    "plus": Sample("plus", 12, 10, (8, 8, 16), head=True, tokens=3, dim=16, heads=2, depth=2),
    "full-face": Sample("full-face", 12, 10, (8, 8, 16)),
    "faceid": Sample("faceid", 12, 6, (8, 8, 16), lora=2),
    "faceid-plusv2": Sample("faceid-plusv2", 12, 10, (8, 8, 16), heads=2, depth=2, lora=2),
    "portrait": Sample("portrait", 12, 6, (8, 8, 16), tokens=16),
    "portrait-unnorm": Sample("portrait-unnorm", 12, 512, (8, 8, 16), tokens=3, dim=16, heads=2, depth=2),
}


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta", dtype=torch.float16)


def unwritten(*shape: int) -> Tensor:
    """Memory that is asked for and not touched."""
    return torch.empty(shape, dtype=torch.float16)


def random(seed: int = 0, dtype: torch.dtype = torch.float32) -> Fill:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator).to(dtype)


def flat(sample: Sample, fill: Fill | None = None) -> dict[str, Tensor]:
    """Flat keys, as in a published .safetensors."""
    fill = fill or random()
    make = {
        "base": _base, "plus": _plus, "full-face": _full_face, "faceid": _mlp, "portrait": _mlp,
        "portrait-unnorm": _plus, "faceid-plus": _face_plus, "faceid-plusv2": _face_plus,
    }  # fmt: skip
    projection = make[sample.family](sample, fill)
    tensors = {f"image_proj.{key}": tensor for key, tensor in projection.items()}
    for position, width in enumerate(sample.widths):
        site = f"ip_adapter.{2 * position + 1}"
        tensors[f"{site}.to_k_ip.weight"] = fill(width, sample.context)
        tensors[f"{site}.to_v_ip.weight"] = fill(width, sample.context)
        if sample.head:
            tensors[f"{site}.text_to_weight.weight"] = fill(1, width)
        if sample.lora:
            tensors |= _lora(2 * position, width, width, sample.lora, fill)
            tensors |= _lora(2 * position + 1, width, sample.context, sample.lora, fill)
    return tensors


def _lora(number: int, width: int, source: int, rank: int, fill: Fill) -> dict[str, Tensor]:
    """The LoRA of one attention, which reads keys and values from a sequence `source` wide."""
    tensors = {}
    for part, reads in (("q", width), ("k", source), ("v", source), ("out", width)):
        tensors[f"ip_adapter.{number}.to_{part}_lora.down.weight"] = fill(rank, reads)
        tensors[f"ip_adapter.{number}.to_{part}_lora.up.weight"] = fill(width, rank)
    return tensors


def nested(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Two levels, as in a published .bin."""
    out: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in tensors.items():
        part, rest = key.split(".", 1)
        out[part][rest] = tensor
    return out


def training(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layout that the official training script saves: other prefixes, and the UNet's weights too."""
    renamed = {
        key.replace("image_proj.", "image_proj_model.").replace("ip_adapter.", "adapter_modules."): tensor
        for key, tensor in tensors.items()
    }
    return {"unet.conv_in.weight": torch.zeros(4, 4, 3, 3), "unet.conv_in.bias": torch.zeros(4)} | renamed


def _base(s: Sample, fill: Fill) -> dict[str, Tensor]:
    rows = s.tokens * s.context
    return {
        "proj.weight": fill(rows, s.encoder),
        "proj.bias": fill(rows),
        "norm.weight": fill(s.context),
        "norm.bias": fill(s.context),
    }


def _full_face(s: Sample, fill: Fill) -> dict[str, Tensor]:
    return {
        "proj.0.weight": fill(s.encoder, s.encoder),
        "proj.0.bias": fill(s.encoder),
        "proj.2.weight": fill(s.context, s.encoder),
        "proj.2.bias": fill(s.context),
        "proj.3.weight": fill(s.context),
        "proj.3.bias": fill(s.context),
    }


def _mlp(s: Sample, fill: Fill, face: int = 0) -> dict[str, Tensor]:
    face = face or s.encoder
    return {
        "proj.0.weight": fill(2 * face, face),
        "proj.0.bias": fill(2 * face),
        "proj.2.weight": fill(s.tokens * s.context, 2 * face),
        "proj.2.bias": fill(s.tokens * s.context),
        "norm.weight": fill(s.context),
        "norm.bias": fill(s.context),
    }


def _face_plus(s: Sample, fill: Fill) -> dict[str, Tensor]:
    resampler = _resampler(replace(s, dim=s.context), fill)
    return _mlp(s, fill, 512) | {f"perceiver_resampler.{key}": tensor for key, tensor in resampler.items()}


def _plus(s: Sample, fill: Fill) -> dict[str, Tensor]:
    return {"latents": fill(1, s.tokens, s.dim)} | _resampler(s, fill)


def _resampler(s: Sample, fill: Fill) -> dict[str, Tensor]:
    inner = 64 * s.heads
    tensors = {
        "proj_in.weight": fill(s.dim, s.encoder),
        "proj_in.bias": fill(s.dim),
        "proj_out.weight": fill(s.context, s.dim),
        "proj_out.bias": fill(s.context),
        "norm_out.weight": fill(s.context),
        "norm_out.bias": fill(s.context),
    }
    for layer in range(s.depth):
        for norm in (f"layers.{layer}.0.norm1", f"layers.{layer}.0.norm2", f"layers.{layer}.1.0"):
            tensors |= {f"{norm}.weight": fill(s.dim), f"{norm}.bias": fill(s.dim)}
        tensors |= {
            f"layers.{layer}.0.to_q.weight": fill(inner, s.dim),
            f"layers.{layer}.0.to_kv.weight": fill(2 * inner, s.dim),
            f"layers.{layer}.0.to_out.weight": fill(s.dim, inner),
            f"layers.{layer}.1.1.weight": fill(4 * s.dim, s.dim),
            f"layers.{layer}.1.3.weight": fill(s.dim, 4 * s.dim),
        }
    return tensors
