"""Image embeddings to image tokens: the adapter's image projection as functions, in float32.

Each weight is moved to the embeddings' device when it is used and is not kept there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .adapter import Adapter
from .families import DIM_HEAD, depth
from .spec import ENCODERS


class _Weights:
    """The projection's tensors by key, as float32 on one device."""

    def __init__(self, adapter: Adapter, device: torch.device) -> None:
        self.tensors, self.device = adapter.image_proj, device

    def get(self, key: str) -> Tensor:
        return self.tensors[key].to(self.device, torch.float32)

    def linear(self, x: Tensor, key: str) -> Tensor:
        bias = self.get(f"{key}.bias") if f"{key}.bias" in self.tensors else None
        return F.linear(x, self.get(f"{key}.weight"), bias)

    def norm(self, x: Tensor, key: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.get(f"{key}.weight"), self.get(f"{key}.bias"))


def project(adapter: Adapter, embeds: Tensor) -> Tensor:
    """embeds [B, E] (base, xlabs, instantx) or [B, P, E] (plus, full-face) -> image tokens [B, T, X], float32.

    Raises ValueError, naming the required encoder, if the embeddings come from another one.
    """
    _check_encoder(adapter, embeds)
    weights = _Weights(adapter, embeds.device)
    x = embeds.to(torch.float32)
    if adapter.spec.family == "instantx":
        x = F.gelu(weights.linear(x, "proj.0"))
        return weights.norm(weights.linear(x, "proj.2").unflatten(-1, (-1, adapter.spec.context_dim)), "norm")
    if adapter.spec.family in ("base", "xlabs"):
        tokens = weights.linear(x, "proj").reshape(x.shape[0], -1, adapter.spec.context_dim)  # [B, T, X]
        return weights.norm(tokens, "norm")
    if adapter.spec.family == "full-face":
        return weights.norm(weights.linear(F.gelu(weights.linear(x, "proj.0")), "proj.2"), "proj.3")
    return _resample(weights, x)


def _resample(weights: _Weights, x: Tensor) -> Tensor:
    """IP-Adapter plus: learned queries read the hidden states. x [B, P, E] -> [B, T, X]."""
    x = weights.linear(x, "proj_in")
    latents = weights.get("latents").expand(x.shape[0], -1, -1)  # [B, T, D]
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
        got = ENCODERS.get((need.output, embeds.shape[-1]))
        raise ValueError(
            f"“{adapter.name}” needs {need.name} ({need.output} {need.width} wide), got an image encoder "
            f"with {embeds.shape[-1]}{f' ({got})' if got else ''}. Load the encoder that it was trained with."
        )
