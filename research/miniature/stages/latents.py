"""Scenes as latents: drawn and encoded once, then used many times with other captions and noise.

Encoding a scene costs as much as a training step on it. So scenes come in shards, and a window of shards is used many
times before the next window is made. The scenes of a step follow from its number alone.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....common.atomic_io import atomic_file
from ....miniature import config, world
from .precision import autocast

SHARD = 2048  # scenes
WINDOW, PASSES = 64, 48  # shards of a window, passes through it
OBJECTS = (1, 2, 2, 2, 2, 3, 3, 3, 4, 4)  # mostly several, so that words must learn places


class ShardRows(NamedTuple):
    """The scenes of a batch: a shard and rows of it."""

    shard: int
    rows: Tensor  # [B]


class Shards:
    """The encoded scenes, cached on disk by the encoder's weights."""

    def __init__(self, vae: Any, folder: Path, device: torch.device, size: int = SHARD, window: int = WINDOW):
        self.vae, self.device, self.size, self.window = vae, device, size, window
        self.folder = folder / f"{weights_checksum(vae.taesd_encoder):016x}"
        self.scenes = lru_cache(window)(self._scenes)
        self.pictures = lru_cache(window)(self._pictures)

    def rows_at(self, start: int, count: int) -> ShardRows:
        """`count` scenes from number `start` of the endless sequence of passes. `count` divides a shard.

        Each pass through a shard shows each of its scenes once, in a new order.
        """
        visit, first = divmod(start, self.size)
        window, number = visit // (self.window * PASSES), visit % self.window
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(visit))
        return ShardRows(window * self.window + number, order[first : first + count])

    def batch(self, which: ShardRows) -> tuple[Tensor, Tensor]:
        """Latents [B, 4, 16, 16] with a deviation of about 1, and masks [B, M, 16, 16]: the share that each object
        covers.
        """
        rows = which.rows.to(self.device)
        latents, masks = (each[rows].float() for each in self.pictures(which.shard))
        return latents, masks

    def _scenes(self, shard: int) -> world.Scenes:
        return world.sample(self.size, seed=1_000_000 + shard, objects=OBJECTS)

    def _pictures(self, shard: int) -> tuple[Tensor, Tensor]:
        """Latents and masks of a shard, in half precision on the device, read from disk if they are there."""
        file = self.folder / f"{shard}-{self.size}.pt"
        if not file.exists():
            scenes = self.scenes(shard)
            made = (self.encode(scenes).half(), self._masks(scenes).half())
            with atomic_file(file) as temporary:
                torch.save(made, temporary)
        return torch.load(file, weights_only=True, map_location=self.device)

    @torch.no_grad()
    def encode(self, scenes: world.Scenes) -> Tensor:
        """Model-space latents [B, 4, 16, 16] of scenes."""
        parts = []
        for rows in torch.arange(len(scenes)).split(self._at_once):
            pixels = world.render(scenes.rows(rows), device=self.device).images.contiguous(
                memory_format=torch.channels_last
            )
            with autocast(self.device):
                parts.append(self.vae.taesd_encoder(pixels).float())
        return torch.cat(parts)

    def _masks(self, scenes: world.Scenes) -> Tensor:
        side, parts = config.UNET["image_size"], []
        for rows in torch.arange(len(scenes)).split(self._at_once):
            parts.append(F.avg_pool2d(world.render(scenes.rows(rows), 2 * side, self.device).masks, 2))
        return torch.cat(parts)

    @property
    def _at_once(self) -> int:
        return 32 if self.device.type == "cpu" else 256


def weights_checksum(model: nn.Module) -> int:
    """A number that depends on all weights, so that latents of another encoder are never reused."""
    total = 0
    for value in model.state_dict().values():
        bits = value.detach().float().cpu().contiguous().view(torch.int32).flatten().long()
        place = torch.arange(1, len(bits) + 1)
        total = (total * 1_000_003 + int((bits * place).sum())) % 2**64
    return total
