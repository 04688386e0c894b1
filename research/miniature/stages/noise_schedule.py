"""SDXL's discrete noise schedule and the target of v-prediction, as in ComfyUI's sampling."""

from functools import cache

import torch
from torch import Tensor

TIMESTEPS = 1000


@cache
def alphas(device: torch.device | str = "cpu") -> Tensor:
    """[1000] ᾱ, the share of the picture's variance left at each timestep. The square roots of the betas are linear."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).to(device)


def weights(timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 1, 1, 1] factors of the picture and of the noise at timesteps [B]. Their squares sum to 1."""
    alpha = alphas(timesteps.device)[timesteps].float()[:, None, None, None]
    return alpha.sqrt(), (1 - alpha).sqrt()


def noisy(latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """The network's input and target: x = a·x0 + b·ε and v = a·ε − b·x0."""
    a, b = weights(timesteps)
    return a * latents + b * noise, a * noise - b * latents


def sample(predict, noise: Tensor, count: int = 20) -> Tensor:
    """Latents after `count` deterministic (DDIM) steps. predict: `predict(x, timesteps)` returns v."""
    path = torch.linspace(TIMESTEPS - 1, 0, count + 1).round().long()
    x = latents = noise
    for now, after in zip(path[:-1], path[1:], strict=True):
        a, b = weights(now[None].to(x.device))
        v = predict(x, now.expand(len(x)).to(x.device))
        latents, eps = a * x - b * v, a * v + b * x
        a, b = weights(after[None].to(x.device))
        x = a * latents + b * eps
    return latents
