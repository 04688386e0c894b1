"""Stage 1: the autoencoder, on crops of scenes.

Latents are drawn towards mean 0 and deviation 1 a channel, which is what the UNet wants to see, and the
decoder learns from slightly noisy latents, so that the UNet's small errors do not show.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import world
from .precision import autocast

SMALL_UNTIL = 1_900  # at first small pieces, for more steps an hour
SIZES = ((64, 12), (128, 3))  # then in turn: pixels a side and how many, so that edges are not all it knows


class Vae:
    name, rate, total, stop, ema_decay = "vae", 6e-4, 16_000, 4_793, 0.998
    matrix_rate: float | None = None

    def __init__(self, model: Any, device: torch.device, wide: int = 1):
        self.model, self.device, self.wide = model.to(device, memory_format=torch.channels_last), device, wide
        model.vae_scale.requires_grad_(False)
        model.vae_shift.requires_grad_(False)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = crops(step, self.wide).to(self.device, memory_format=torch.channels_last)
        with autocast(self.device):
            latents = self.model.taesd_encoder(pixels).float()
            g = torch.Generator().manual_seed(step)
            spread = 0.1 * torch.rand(len(latents), 1, 1, 1, generator=g)
            noise = (torch.randn(latents.shape, generator=g) * spread).to(self.device)
            again = self.model.taesd_decoder(latents + noise).float()
        error = again - pixels
        edges = F.l1_loss(again.diff(dim=2), pixels.diff(dim=2)) + F.l1_loss(again.diff(dim=3), pixels.diff(dim=3))
        spread = latents.std((0, 2, 3))
        unit = latents.mean((0, 2, 3)).square().mean() + (spread - 1).square().mean()
        loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + 0.02 * unit
        return loss, {"mse": error.square().mean(), "edges": edges, "spread": spread.mean()}


class Decoder(Vae):
    """The decoder alone, over an encoder that later stages already rely on."""

    name, total, stop = "decoder", 2_500, 2_500

    def __init__(self, model: Any, device: torch.device, wide: int = 1):
        super().__init__(model, device, wide)
        model.requires_grad_(False)
        model.taesd_decoder.requires_grad_(True)


def crops(step: int, wide: int = 1) -> Tensor:
    """[B, 3, c, c] pieces of scenes and references, or whole ones: half of them about an object, half anywhere."""
    turn = step // wide
    size, count = SIZES[turn % len(SIZES)] if step >= SMALL_UNTIL else (32, 16)
    count *= wide
    scenes = world.sample(count, step)
    if turn // 2 % 4 == 0:  # one batch in four is of references; the first object's is always there
        scenes = world.references(scenes, step).rows(slice(None, None, world.OBJECTS))
    images = world.render(scenes).images
    g = torch.Generator().manual_seed(step)
    free = world.SIZE - size
    anywhere = (torch.rand(count, 2, generator=g) * (free + 1)).long()
    centres = (scenes.centres[:, 0] + 1) * (world.SIZE / 2)
    jitter = (torch.rand(centres.shape, generator=g) - 0.5) * size
    about = (centres + jitter - size / 2).long().clamp(0, free)
    corners = torch.where(torch.arange(count)[:, None] % 2 == 0, about, anywhere).tolist()
    pieces = zip(images, corners, strict=True)
    return torch.stack([image[:, y : y + size, x : x + size] for image, (x, y) in pieces])
