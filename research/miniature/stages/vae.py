"""Stage 1: the autoencoder, on crops of scenes.

The loss pulls each channel of the latents towards mean 0 and deviation 1, which suits the UNet. The decoder is trained
on slightly noisy latents, so that the UNet's small errors do not show.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ....miniature import world
from .precision import autocast

SMALL_UNTIL = 300  # steps with small crops, which are faster
SMALL, LATER = (32, 4), ((64, 4), (128, 1))  # side in pixels, and crops per unit of batch_size; LATER alternates


class Vae:
    name, rate, total, stop, ema_decay = "vae", 1e-3, 3_000, 3_000, 0.998
    matrix_rate: float | None = None
    batch_size = 48  # full pictures; of smaller crops there are more

    def __init__(self, model: Any, device: torch.device):
        self.model, self.device = model.to(device, memory_format=torch.channels_last), device
        model.vae_scale.requires_grad_(False)
        model.vae_shift.requires_grad_(False)

    def batch(self, step: int) -> tuple[Tensor, ...]:
        pixels = crops(step, self.batch_size, self.device).contiguous(memory_format=torch.channels_last)
        g = torch.Generator(self.device).manual_seed(step)
        spread = 0.1 * torch.rand(len(pixels), 1, 1, 1, generator=g, device=self.device)
        side = pixels.shape[-1] // 8
        return pixels, spread * torch.randn(len(pixels), 4, side, side, generator=g, device=self.device)

    def loss(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(self.device):
            latents = self.model.taesd_encoder(pixels).float()
            again = self.model.taesd_decoder(latents + noise).float()
        error = again - pixels
        edges = F.l1_loss(again.diff(dim=2), pixels.diff(dim=2)) + F.l1_loss(again.diff(dim=3), pixels.diff(dim=3))
        spread = latents.std((0, 2, 3))
        unit = latents.mean((0, 2, 3)).square().mean() + (spread - 1).square().mean()
        loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + 0.02 * unit
        return loss, {"mse": error.square().mean(), "edges": edges, "spread": spread.mean()}


def crops(step: int, batch_size: int, device: torch.device | str = "cpu") -> Tensor:
    """[B, 3, c, c] crops of scenes or references. Every other one is about an object, the others are anywhere."""
    size, each = LATER[step % len(LATER)] if step >= SMALL_UNTIL else SMALL
    count = each * batch_size
    scenes = world.sample(count, step)
    if step // 2 % 4 == 0:  # one batch in four is of references; the first object's is always there
        scenes = world.references(scenes, step).rows(slice(None, None, world.OBJECTS))
    images = world.render(scenes, device=device).images
    g = torch.Generator().manual_seed(step)
    free = world.SIZE - size
    anywhere = (torch.rand(count, 2, generator=g) * (free + 1)).long()
    centres = (scenes.centres[:, 0] + 1) * (world.SIZE / 2)
    jitter = (torch.rand(centres.shape, generator=g) - 0.5) * size
    about = (centres + jitter - size / 2).long().clamp(0, free)
    corners = torch.where(torch.arange(count)[:, None] % 2 == 0, about, anywhere).tolist()
    pieces = zip(images, corners, strict=True)
    return torch.stack([image[:, y : y + size, x : x + size] for image, (x, y) in pieces])
