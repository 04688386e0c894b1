"""Which run a latent or a picture came from: by what is where in it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SAME_LAYOUT = 0.7  # correlation; an upscaled picture stays above, a crop below
GOOD_FIT, POOR_FIT = 0.6, 0.35  # see `explained`; a picture of another scene gives about 0.1
SAME = 5e-4  # tolerance relative to a fingerprint's largest value: rounding stays below, another sampling above


def fingerprint(latent: Tensor) -> Tensor:
    """Local means of a latent [..., h, w], on the CPU. They identify it on whatever device the host keeps it."""
    return F.adaptive_avg_pool2d(latent.flatten(0, -3).float(), 8).cpu()


def explained(mark: Tensor, images: Tensor) -> float:
    """How much of what is where in pictures [B, H, W, 3] their latent explains linearly: 0 nothing, 1 all.

    A latent's channels are nearly linear in the colours, whatever VAE made it. mark: the latent's `fingerprint`.
    """
    brightness = images[..., :3].float().cpu().mean(-1)
    seen = F.adaptive_avg_pool2d(brightness, 8).flatten(1).unsqueeze(-1)  # [B, 64, 1]
    channels = mark.unflatten(0, (len(images), -1)).flatten(2).transpose(1, 2)  # [B, 64, C]
    seen, channels = (each - each.mean(1, keepdim=True) for each in (seen, channels))
    left = seen - channels @ torch.linalg.lstsq(channels, seen).solution
    return float(1 - left.square().sum() / seen.square().sum().clamp_min(torch.finfo(torch.float32).tiny))


def layout(latent: Tensor) -> Tensor:
    """What is where in the pictures of a latent [B, C, h, w]: [B, n], normalised, so that products are correlations."""
    means = fingerprint(latent).unflatten(0, (len(latent), -1))
    return F.normalize((means - means.mean((-2, -1), keepdim=True)).flatten(1), dim=1)


def alike(one: Tensor, other: Tensor) -> bool:
    """Whether two fingerprints are of the same latent, up to rounding."""
    rounding = SAME * float(one.nan_to_num(0, 0, 0).abs().max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0, atol=rounding, equal_nan=True)


def same_picture(start: Tensor, result: Tensor) -> bool:
    """Whether each picture of a latent [B, C, h, w] shows what one of the results does; result: see `layout`."""
    begun = layout(start)
    return begun.shape[1] == result.shape[1] and bool(((begun @ result.T).amax(1) > SAME_LAYOUT).all())
