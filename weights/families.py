"""The image projections of the adapter families: how each is recognised and what tensors it needs.

base       proj, norm                       image embedding [B, E] -> T tokens [B, T, X]
plus       Resampler (perceiver)            hidden states [B, P, E] -> T learned queries [B, T, X]
full-face  proj.0, proj.2, proj.3 (MLP)     hidden states [B, P, E] -> as many tokens [B, P, X]

Two families are for FLUX.1. They have a site for each block and number them from 0.

xlabs      proj, norm                       as base; the sites' projections have a bias
instantx   proj.0, proj.2 (MLP), norm       pooled embedding [B, E] -> T tokens [B, T, X]; keys and values are normed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from torch import Tensor

DIM_HEAD = 64  # of the Resampler's attention, in every published adapter

JOINT = ("xlabs", "instantx")  # families for models in which text and picture attend together
NORMS = {"instantx": 1e-5}  # epsilon of the norm of keys and values

Shapes = dict[str, tuple[int, ...]]


class Dims(NamedTuple):
    """Widths of a projection."""

    context: int  # X
    tokens: int | None  # T; None: one per token of the encoder
    encoder: int  # E


Family = Literal["base", "plus", "full-face", "xlabs", "instantx"]


def family_of(projection: Mapping[str, Tensor], sites: Mapping[str, Tensor]) -> Family | None:
    """The family of an adapter, or None if unknown.

    projection: keys without 'image_proj.'.
    sites: keys without 'ip_adapter.'.
    """
    if "0.to_k_ip.weight" in sites:  # a UNet's number 0 is a self-attention
        if "proj.0.weight" in projection:
            return "instantx"
        return "xlabs" if "proj.weight" in projection else None
    if "latents" in projection:
        return "plus"
    if "proj.3.weight" in projection:
        return "full-face"
    return "base" if "proj.weight" in projection else None


def projection_shapes(family: str, projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    """The projection's widths, and the shape that every key must have. Both follow from a few leading tensors.

    A missing or misshapen leading tensor gives width 0, so that the later comparison names it.
    """
    table: dict[str, Callable[[Mapping[str, Tensor]], tuple[Dims, Shapes]]] = {
        "base": _base, "plus": _plus, "full-face": _full_face, "xlabs": _base, "instantx": _instantx,
    }  # fmt: skip
    return table[family](projection)


def _size(projection: Mapping[str, Tensor], key: str, axis: int, axes: int) -> int:
    tensor = projection.get(key)
    return tensor.shape[axis] if tensor is not None and tensor.ndim == axes else 0


def _norm(key: str, width: int) -> Shapes:
    return {f"{key}.weight": (width,), f"{key}.bias": (width,)}


def _linear(key: str, rows: int, columns: int) -> Shapes:
    return {f"{key}.weight": (rows, columns), f"{key}.bias": (rows,)}


def _base(projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    context = _size(projection, "norm.weight", 0, 1)
    embed = _size(projection, "proj.weight", 1, 2)
    tokens = max(1, _size(projection, "proj.weight", 0, 2) // max(1, context))
    return Dims(context, tokens, embed), _linear("proj", tokens * context, embed) | _norm("norm", context)


def _instantx(projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    context = _size(projection, "norm.weight", 0, 1)
    hidden = _size(projection, "proj.0.weight", 0, 2)
    embed = _size(projection, "proj.0.weight", 1, 2)
    tokens = max(1, _size(projection, "proj.2.weight", 0, 2) // max(1, context))
    shapes = _linear("proj.0", hidden, embed) | _linear("proj.2", tokens * context, hidden) | _norm("norm", context)
    return Dims(context, tokens, embed), shapes


def _full_face(projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    context = _size(projection, "proj.2.weight", 0, 2)
    hidden = _size(projection, "proj.0.weight", 0, 2)
    embed = _size(projection, "proj.0.weight", 1, 2)
    shapes = _linear("proj.0", hidden, embed) | _linear("proj.2", context, hidden) | _norm("proj.3", context)
    return Dims(context, None, embed), shapes


def _plus(projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    dim = _size(projection, "latents", 2, 3)
    queries = _size(projection, "latents", 1, 3)
    embed = _size(projection, "proj_in.weight", 1, 2)
    context = _size(projection, "proj_out.weight", 0, 2)
    shapes: Shapes = {"latents": (1, queries, dim)}
    shapes |= _linear("proj_in", dim, embed) | _linear("proj_out", context, dim) | _norm("norm_out", context)
    for layer in range(max(1, depth(projection))):
        attention, feed_forward = f"layers.{layer}.0", f"layers.{layer}.1"
        inner = DIM_HEAD * max(1, _size(projection, f"{attention}.to_q.weight", 0, 2) // DIM_HEAD)
        wide = _size(projection, f"{feed_forward}.1.weight", 0, 2)
        shapes |= _norm(f"{attention}.norm1", dim) | _norm(f"{attention}.norm2", dim)
        shapes |= {
            f"{attention}.to_q.weight": (inner, dim),
            f"{attention}.to_kv.weight": (2 * inner, dim),
            f"{attention}.to_out.weight": (dim, inner),
            f"{feed_forward}.1.weight": (wide, dim),
            f"{feed_forward}.3.weight": (dim, wide),
        }
        shapes |= _norm(f"{feed_forward}.0", dim)
    return Dims(context, queries, embed), shapes


def depth(projection: Mapping[str, Tensor]) -> int:
    """Number of Resampler layers that the keys name."""
    return len({key.split(".")[1] for key in projection if key.startswith("layers.")})
