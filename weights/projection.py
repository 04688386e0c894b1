"""Image or face embeddings to image tokens: the adapter's image projection as functions, in float32.

Each weight is moved to the embeddings' device when it is used and is not kept there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapter import Adapter
from .families import DIM_HEAD, PERCEIVER, depth, under_prefix
from .spec import ENCODER_NAMES


class _Weights:
    """The projection's tensors by key, as float32 on one device."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.tensors, self.device = tensors, device

    def get(self, key: str) -> Tensor:
        return self.tensors[key].to(self.device, torch.float32)

    def linear(self, x: Tensor, key: str) -> Tensor:
        bias = self.get(f"{key}.bias") if f"{key}.bias" in self.tensors else None
        return F.linear(x, self.get(f"{key}.weight"), bias)

    def norm(self, x: Tensor, key: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.get(f"{key}.weight"), self.get(f"{key}.bias"))


def project(adapter: Adapter, embeds: Tensor, faces: Tensor | None = None, structure: float = 1.0) -> Tensor:
    """What the adapter's encoder gives -> image tokens [B, T, X], float32.

    embeds: [B, P, E] (plus, full-face, faceid-plus, -plusv2) or [B, E] (all others).
    faces: [B, F], for faceid-plus and -plusv2: the face embeddings of the pictures in `embeds`.
    structure: s, for faceid-plusv2: how much the crops' hidden states add to the face embedding's tokens.

    Raises ValueError, naming the required encoder, if the embeddings come from another one.
    """
    _check_encoder(adapter, embeds)
    weights = _Weights(adapter.image_proj, embeds.device)
    x, family = embeds.to(torch.float32), adapter.spec.family
    if family in ("base", "xlabs"):
        tokens = weights.linear(x, "proj").reshape(x.shape[0], -1, adapter.spec.context_dim)  # [B, T, X]
        return weights.norm(tokens, "norm")
    if family == "full-face":
        return weights.norm(weights.linear(F.gelu(weights.linear(x, "proj.0")), "proj.2"), "proj.3")
    if family in ("faceid", "portrait", "instantx"):
        return _mlp_tokens(weights, x, adapter.spec.context_dim)
    if family in ("faceid-plus", "faceid-plusv2"):
        assert faces is not None and len(faces) == len(x), "every picture needs its face embedding"
        tokens = _mlp_tokens(weights, faces.to(x), adapter.spec.context_dim)
        read = _resample(_Weights(under_prefix(adapter.image_proj, PERCEIVER), x.device), x, tokens)
        return tokens + structure * read if family == "faceid-plusv2" else read
    x = x.unsqueeze(1) if family == "portrait-unnorm" else x  # a sequence of one face
    return _resample(weights, x, weights.get("latents").expand(x.shape[0], -1, -1))


def _mlp_tokens(weights: _Weights, x: Tensor, context: int) -> Tensor:
    """FaceID and InstantX: an MLP on an embedding. x [B, E] -> [B, T, X]."""
    hidden = F.gelu(weights.linear(x, "proj.0"))
    return weights.norm(weights.linear(hidden, "proj.2").reshape(x.shape[0], -1, context), "norm")


def _resample(weights: _Weights, x: Tensor, latents: Tensor) -> Tensor:
    """Queries read a sequence: IP-Adapter plus reads hidden states with learned ones. x [B, P, E], latents [B, T, D] ->
    [B, T, X]."""
    x = weights.linear(x, "proj_in")
    for layer in range(depth(weights.tensors)):
        latents = latents + _perceive(weights, f"layers.{layer}.0", x, latents)
        hidden = weights.norm(latents, f"layers.{layer}.1.0")
        hidden = F.gelu(weights.linear(hidden, f"layers.{layer}.1.1"))
        latents = latents + weights.linear(hidden, f"layers.{layer}.1.3")
    return weights.norm(weights.linear(latents, "proj_out"), "norm_out")


def _perceive(weights: _Weights, key: str, x: Tensor, latents: Tensor) -> Tensor:
    """The queries attend to the picture and to themselves. x [B, P, D], latents [B, T, D] -> [B, T, D]."""
    latents = weights.norm(latents, f"{key}.norm2")
    both = torch.cat((weights.norm(x, f"{key}.norm1"), latents), dim=1)  # [B, P + T, D]
    q = _heads(weights.linear(latents, f"{key}.to_q"))
    k, v = (_heads(part) for part in weights.linear(both, f"{key}.to_kv").chunk(2, dim=-1))
    scale = DIM_HEAD**-0.25  # on q and k each, as in training: products stay small
    out = ((q * scale) @ (k * scale).transpose(-2, -1)).softmax(dim=-1) @ v  # [B, h, T, d]
    return weights.linear(out.transpose(1, 2).flatten(2), f"{key}.to_out")


def _heads(x: Tensor) -> Tensor:
    """[B, L, h·d] -> [B, h, L, d]"""
    return x.unflatten(-1, (-1, DIM_HEAD)).transpose(1, 2)


def _check_encoder(adapter: Adapter, embeds: Tensor) -> None:
    need = adapter.spec.encoder
    axes, shape = (3, "[B, P, E]") if need.output == "penultimate_hidden_states" else (2, "[B, E]")
    if embeds.ndim != axes:
        raise ValueError(
            f"“{adapter.name}” reads the image encoder's {need.output} {shape}, got {list(embeds.shape)}. "
            "Connect the encoder's output of that name."
        )
    if embeds.shape[-1] != need.width:
        got = ENCODER_NAMES.get((need.output, embeds.shape[-1]))
        raise ValueError(
            f"“{adapter.name}” needs {need.name} ({need.output} {need.width} wide), got an image encoder "
            f"with {embeds.shape[-1]}{f' ({got})' if got else ''}. Load the encoder that it was trained with."
        )
