"""Latents of training pictures, drawn from the VAE's posterior as in the official script.

The host's nodes take the posterior's mean. Its spread is seen on the way, at the module that the moments go through.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from torch import Tensor

from ..common.rng import generator

log = logging.getLogger(__name__)


def sampled_latents(vae: Any, pictures: Tensor, indices: Sequence[int], seed: int) -> Tensor:
    """z = μ + σ ε of pictures [B, H, W, 3] in 0..1: [B, C, H/8, W/8], before the model's own scaling.

    ε depends on (seed, index) alone. A VAE without a posterior, such as TAESD, gives what it encodes.
    """
    regularization: Any = getattr(vae.first_stage_model, "regularization", None)
    if not isinstance(regularization, DiagonalGaussianRegularizer):
        return vae.encode(pictures)
    moments: list[Tensor] = []
    hook = regularization.register_forward_hook(lambda _, given, __: moments.append(given[0]))
    try:
        mean = vae.encode(pictures)
    finally:
        hook.remove()
    spread = [each.chunk(2, 1)[1].float().clamp(-30, 20).mul(0.5).exp().to(mean) for each in moments]
    if sum(map(len, spread)) != len(mean) or any(each.shape[1:] != mean.shape[1:] for each in spread):
        log.warning("The VAE had to encode in tiles: the posterior's means are taken for these latents.")
        return mean
    noise = [torch.randn(mean.shape[1:], generator=generator(seed, "posterior", each)) for each in indices]
    return mean + torch.cat(spread) * torch.stack(noise).to(mean)
