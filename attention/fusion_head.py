"""The fusion head: a trained gate that says where image features should speak (paper §3.3; step 5 of the method)."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST = -80.0  # of w . Z_text: exp(-80) is still a normal float32


def fusion_gate(text: Tensor, weight: Tensor, strength: float = 1.0) -> Tensor:
    """g̃ = g / mean_n g with g = sigmoid(w . Z_text).

    text [B, N, C] is the text attention before to_out; weight [C] is the site's `text_to_weight` row. Returns [B, N]
    float32 with mean 1 over the positions; `strength` blends linearly from 1 to g̃, which keeps the mean.
    """
    # float32, for a g that is small everywhere still has a mean of 1 after the division; LEAST keeps that from 0/0.
    gate = torch.sigmoid(torch.matmul(text, weight).float().clamp(min=LEAST))
    gate = gate / gate.mean(-1, keepdim=True)
    return gate if strength == 1.0 else torch.lerp(torch.ones_like(gate), gate, strength)
