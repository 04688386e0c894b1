"""The fusion head: a trained gate that says where image features should speak (paper §3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_LOGIT = -80.0  # exp(-80) is still a normal float32


def fusion_gate(z_text: Tensor, weight: Tensor, strength: float = 1.0) -> Tensor:
    """g̃ = g / mean_n g with g = sigmoid(w . Z_text).

    z_text: [B, N, C], Z_text, the text attention before to_out.
    weight: [C], the site's `text_to_weight` row.
    strength: blends linearly from 1 (at 0) to g̃ (at 1); the mean stays 1.
    Returns [B, N] float32 with mean 1 over the positions.
    """
    # float32, because g may be small everywhere before the division. MIN_LOGIT prevents 0/0.
    gate = torch.sigmoid(torch.matmul(z_text, weight).float().clamp(min=MIN_LOGIT))
    gate = gate / gate.mean(-1, keepdim=True)
    return gate if strength == 1.0 else torch.lerp(torch.ones_like(gate), gate, strength)
