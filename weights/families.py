"""The image projections of the adapter families: how each is recognised and what tensors it needs.

base             proj, norm                       image embedding [B, E] -> T tokens [B, T, X]
plus             Resampler (perceiver)            hidden states [B, P, E] -> T learned queries [B, T, X]
full-face        proj.0, proj.2, proj.3 (MLP)     hidden states [B, P, E] -> as many tokens [B, P, X]
faceid           proj.0, proj.2, norm (MLP)       face embedding [B, F] -> 4 tokens [B, T, X]
portrait         the same                         face embedding [B, F] -> 16 tokens; further faces' tokens follow
portrait-unnorm  Resampler                        face embedding of any length, as a sequence of one -> 16 tokens
faceid-plus      faceid's and perceiver_resampler face embedding; its tokens x read hidden states [B, P, E]: r(x)
faceid-plusv2    the same                         x + s r(x), where faceid-plus gives r(x) alone

Two families are for FLUX.1. They have a site for each block and number them from 0.

xlabs            proj, norm                       as base; the sites' projections have a bias
instantx         proj.0, proj.2 (MLP), norm       pooled embedding [B, E] -> T tokens [B, T, X]; keys and values are
                                                  normed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

from torch import Tensor

DIM_HEAD = 64  # of the Resampler's attention, in every published adapter
FACE_WIDTH = 512  # F, of InsightFace's embeddings
PERCEIVER = "perceiver_resampler."
PORTRAIT_TOKENS = 16  # per face, of a portrait adapter; FaceID has 4

Family = Literal[
    "base", "plus", "full-face", "faceid", "faceid-plus", "faceid-plusv2", "portrait", "portrait-unnorm",
    "xlabs", "instantx",
]  # fmt: skip
FacePlus = Literal["by the file's name", "plus", "plus v2"]
BY_NAME, *_ = FACE_PLUS = get_args(FacePlus)

JOINT_FAMILIES = ("xlabs", "instantx")  # families for models in which text and picture attend together
NORM_EPS = {"instantx": 1e-5}  # epsilon of the norm of keys and values

Shapes = dict[str, tuple[int, ...]]


class Dims(NamedTuple):
    """Widths of a projection."""

    context: int  # X
    tokens: int | None  # T; None: one per token of the encoder
    features: int  # E, of the encoder's output; of the face embedding where the projection reads nothing else
    face: int | None = None  # F, of the face embedding; None: the projection reads none


def family_of(projection: Mapping[str, Tensor], at_sites: Mapping[str, Tensor]) -> Family | None:
    """The family of an adapter, or None if unknown.

    The two versions of FaceID Plus have the same tensors: the answer is “faceid-plusv2” for both, see `plus_version`.

    projection: keys without 'image_proj.'.
    at_sites: the sites' tensors, keys without 'ip_adapter.'.
    """
    if "0.to_k_ip.weight" in at_sites:  # a UNet's number 0 is a self-attention
        if "proj.0.weight" in projection:
            return "instantx"
        return "xlabs" if "proj.weight" in projection else None
    if any(key.startswith(PERCEIVER) for key in projection):
        return "faceid-plusv2"
    if "latents" in projection:
        return "portrait-unnorm" if _size(projection, "proj_in.weight", 1, 2) == FACE_WIDTH else "plus"
    if "proj.3.weight" in projection:
        return "full-face"
    if "proj.2.weight" in projection:
        return "portrait" if _mlp(projection)[0].tokens == PORTRAIT_TOKENS else "faceid"
    return "base" if "proj.weight" in projection else None


def plus_version(name: str, context: int, chosen: FacePlus = BY_NAME) -> Literal["faceid-plus", "faceid-plusv2"]:
    """Which FaceID Plus a file is.

    By its name it is version 1 where the name says “plus” without “v2” and the file is not for SDXL, for which only
    version 2 was published; else it is version 2.

    name: the file's.
    context: X.
    """
    if chosen != BY_NAME:
        return "faceid-plusv2" if chosen == "plus v2" else "faceid-plus"
    plain = name.lower().replace("-", "").replace("_", "").replace(" ", "")
    first = "plus" in plain and "plusv2" not in plain and context != 2048
    return "faceid-plus" if first else "faceid-plusv2"


def projection_shapes(family: str, projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    """The projection's widths, and the shape that every key must have. Both follow from a few leading tensors.

    A missing or misshapen leading tensor gives width 0, so that the later comparison names it.
    """
    table: dict[str, Callable[[Mapping[str, Tensor]], tuple[Dims, Shapes]]] = {
        "base": _base, "plus": _plus, "full-face": _full_face, "faceid": _mlp, "portrait": _mlp,
        "portrait-unnorm": _unnorm, "faceid-plus": _face_plus, "faceid-plusv2": _face_plus,
        "xlabs": _base, "instantx": _instantx,
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
    return Dims(context, queries, embed), {"latents": (1, queries, dim)} | _resampler(projection, dim, embed, context)


def _unnorm(projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    dims, shapes = _plus(projection)
    return dims._replace(face=dims.features), shapes


def _mlp(projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    context = _size(projection, "norm.weight", 0, 1)
    hidden = _size(projection, "proj.0.weight", 0, 2)
    face = _size(projection, "proj.0.weight", 1, 2)
    tokens = max(1, _size(projection, "proj.2.weight", 0, 2) // max(1, context))
    shapes = _linear("proj.0", hidden, face) | _linear("proj.2", tokens * context, hidden) | _norm("norm", context)
    return Dims(context, tokens, face, face), shapes


def _instantx(projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    dims, shapes = _mlp(projection)
    return dims._replace(face=None), shapes


def _face_plus(projection: Mapping[str, Tensor]) -> tuple[Dims, Shapes]:
    dims, shapes = _mlp(projection)
    perceiver = under_prefix(projection, PERCEIVER)
    embed = _size(perceiver, "proj_in.weight", 1, 2)
    resampler = _resampler(perceiver, dims.context, embed, dims.context)
    return dims._replace(features=embed), shapes | {f"{PERCEIVER}{key}": shape for key, shape in resampler.items()}


def _resampler(projection: Mapping[str, Tensor], dim: int, embed: int, context: int) -> Shapes:
    """A Resampler's shapes, its queries aside. dim: D, of the queries; embed: E; context: X."""
    shapes = _linear("proj_in", dim, embed) | _linear("proj_out", context, dim) | _norm("norm_out", context)
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
    return shapes


def under_prefix(projection: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose keys have a prefix, without it."""
    return {key.removeprefix(prefix): tensor for key, tensor in projection.items() if key.startswith(prefix)}


def depth(projection: Mapping[str, Tensor]) -> int:
    """Number of Resampler layers that the keys name."""
    return len({key.split(".")[1] for key in projection if key.startswith("layers.")})
