"""Stage 1: the autoencoder, on crops of scenes.

Latents are drawn towards mean 0 and deviation 1 a channel, which is what the UNet wants to see, and the
decoder learns from slightly noisy latents, so that the UNet's small errors do not show.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import world

SMALL, LARGE, SMALL_UNTIL = 32, 64, 4_000  # pixels a side; small ones first, for more steps an hour
BATCH = 16


class Vae:
    name, rate, total, ema_decay = "vae", 1e-3, 12_000, 0.998

    def __init__(self, model: nn.Module, device: torch.device):
        self.model, self.device = model.to(device, memory_format=torch.channels_last), device
        model.vae_scale.requires_grad_(False)
        model.vae_shift.requires_grad_(False)

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = crops(step).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16):
            latents = self.model.taesd_encoder(pixels).float()
            g = torch.Generator().manual_seed(step)
            spread = 0.1 * torch.rand(len(latents), 1, 1, 1, generator=g)
            noise = (torch.randn(latents.shape, generator=g) * spread).to(self.device)
            again = self.model.taesd_decoder(latents + noise).float()
        error = again - pixels
        edges = sum(F.l1_loss(again.diff(dim=d), pixels.diff(dim=d)) for d in (2, 3))
        spread = latents.std((0, 2, 3))
        unit = latents.mean((0, 2, 3)).square().mean() + (spread - 1).square().mean()
        loss = error.abs().mean() + 2 * error.square().mean() + 0.5 * edges + 0.02 * unit
        return loss, {"mse": error.square().mean(), "edges": edges, "spread": spread.mean()}


def crops(step: int) -> Tensor:
    """[BATCH, 3, c, c] pieces of scenes and references: half of them about an object, half anywhere."""
    size = SMALL if step < SMALL_UNTIL else LARGE
    scenes = world.sample(BATCH // 2, step)
    if step % 4 == 0:  # one batch in four is of references; the first object's is always there
        white = world.references(scenes, step)
        scenes = world.Scenes(**{name: value[:: world.OBJECTS] for name, value in vars(white).items()})
    images = world.render(scenes).images
    g = torch.Generator().manual_seed(step)
    free = world.SIZE - size
    anywhere = (torch.rand(len(images), 2, generator=g) * (free + 1)).long()
    centres = (scenes.centres[:, 0] + 1) * (world.SIZE / 2)
    jitter = (torch.rand(centres.shape, generator=g) - 0.5) * size
    about = (centres + jitter - size / 2).long().clamp(0, free)
    corners = torch.cat([about, anywhere]).tolist()
    pieces = zip(images.repeat(2, 1, 1, 1), corners, strict=True)
    return torch.stack([image[:, y : y + size, x : x + size] for image, (x, y) in pieces])
