"""What the base sees of a drawn scene under noise: one UNet call through ComfyUI's own sampler."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def conditioning(clip: Any, text: str) -> list:
    """A prompt as ComfyUI's CONDITIONING."""
    context, pooled = clip.encode_from_tokens(clip.tokenize(text), return_pooled=True)
    return [[context, {"pooled_output": pooled}]]


def look(model: Any, latent: Tensor, noise: Tensor, level: int, positive: list) -> None:
    """Call the UNet once on the latent at a noise level, out of 1000, without guidance."""
    import comfy.sample
    import comfy.samplers

    sigma = model.get_model_object("model_sampling").sigmas[level]
    sampler = comfy.samplers.sampler_object("euler")
    sigmas = torch.stack([sigma, torch.zeros_like(sigma)])
    comfy.sample.sample_custom(model, noise, 1.0, sampler, sigmas, positive, positive, latent, disable_pbar=True)
