"""Seeded weights of untrained adapters: the same numbers on every machine."""

import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ...miniature import config

Shapes = Mapping[str, Iterable[int]]


def normal(name: str, shape: Iterable[int], std: float = 1.0) -> Tensor:
    """Normal numbers that depend on the name alone, so the order of keys and additional keys do not matter."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return torch.randn(tuple(shape), generator=generator) * std


def fill(part: str, shapes: Shapes) -> dict[str, Tensor]:
    """Weights for every key: norms 1, biases 0, matrices normal with variance 1 / fan-in."""
    return {key: _tensor(f"{part}/{key}", key, tuple(shape)) for key, shape in shapes.items()}


def _tensor(name: str, key: str, shape: tuple[int, ...]) -> Tensor:
    if len(shape) < 2:
        if key.endswith("class_embedding"):
            return normal(name, shape)
        return torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
    if key.endswith("position_embedding.weight"):
        return normal(name, shape, 0.3)
    if key.endswith("token_embedding.weight"):
        return normal(name, shape)
    return normal(name, shape, 1 / math.sqrt(math.prod(shape[1:])))


def base_adapter() -> dict[str, Tensor]:
    """The base family in its official layout, with a fusion head and a linear projection to 4 tokens."""
    width, tokens = config.CONTEXT_DIM, config.BASE_TOKENS
    shapes = {
        "image_proj.proj.weight": (tokens * width, config.CLIP_VISION["projection_dim"]),
        "image_proj.proj.bias": (tokens * width,),
        "image_proj.norm.weight": (width,),
        "image_proj.norm.bias": (width,),
    }
    return fill("base", shapes) | _sites("base")


def plus_adapter() -> dict[str, Tensor]:
    """The plus family in its official layout, with a fusion head."""
    return plus_projection("plus") | _sites("plus")


def plus_projection(part: str) -> dict[str, Tensor]:
    """A Resampler to 16 tokens. A different `part` gives different numbers."""
    dim, inner = config.RESAMPLER["dim"], config.RESAMPLER["dim"] * config.RESAMPLER["ff_mult"]
    width = config.CONTEXT_DIM
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, config.PLUS_TOKENS, dim),
        "proj_in.weight": (dim, config.CLIP_VISION["hidden_size"]),
        "proj_in.bias": (dim,),
        "proj_out.weight": (width, dim),
        "proj_out.bias": (width,),
        "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }
    for i in range(config.RESAMPLER["depth"]):
        for norm in (f"layers.{i}.0.norm1", f"layers.{i}.0.norm2", f"layers.{i}.1.0"):
            shapes |= {f"{norm}.weight": (dim,), f"{norm}.bias": (dim,)}
        shapes |= {
            f"layers.{i}.0.to_q.weight": (dim, dim),
            f"layers.{i}.0.to_kv.weight": (2 * dim, dim),
            f"layers.{i}.0.to_out.weight": (dim, dim),
            f"layers.{i}.1.1.weight": (inner, dim),
            f"layers.{i}.1.3.weight": (dim, inner),
        }
    weights = fill(part, {f"image_proj.{key}": shape for key, shape in shapes.items()})
    weights["image_proj.latents"] = normal(f"{part}/latents", shapes["latents"])
    return weights


def _sites(part: str) -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, int]] = {}
    for number, width in config.sites():
        shapes[f"ip_adapter.{number}.to_k_ip.weight"] = (width, config.CONTEXT_DIM)
        shapes[f"ip_adapter.{number}.to_v_ip.weight"] = (width, config.CONTEXT_DIM)
        shapes[f"ip_adapter.{number}.text_to_weight.weight"] = (1, width)
    return fill(part, shapes)


ADAPTERS = {"miniature_base.safetensors": base_adapter, "miniature_plus.safetensors": plus_adapter}


def write_adapters(folder: Path) -> list[Path]:
    """Write the seeded adapters into a folder, made if missing. Returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ADAPTERS]
    for path in paths:
        save_file(ADAPTERS[path.name](), path, metadata={"format": "pt", "origin": "seeded, untrained"})
    return paths
