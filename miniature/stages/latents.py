"""Scenes as latents: drawn and encoded once, kept on disk, and seen several times with other words and noise.

Encoding a scene costs as much as training on it. So scenes come in shards; a window of shards is gone
through a few times before the next window is made. Which scenes a step sees follows from its number alone.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import world
from .precision import autocast

SHARD = 2048  # scenes
WINDOW, PASSES = 4, 12  # shards a window, times through it
OBJECTS = (1, 2, 2, 2, 2, 3, 3, 3, 4, 4)  # mostly several, so that words must mean places


class Batch(NamedTuple):
    latents: Tensor  # [B, 4, 16, 16], about unit deviation
    scenes: world.Scenes


class Shards:
    def __init__(self, vae: Any, folder: Path, device: torch.device, size: int = SHARD):
        self.vae, self.device, self.size = vae, device, size
        self.folder = folder / f"{fingerprint(vae.taesd_encoder):016x}"
        self.read = lru_cache(WINDOW)(self._read)

    def batch(self, start: int, count: int) -> Batch:
        """`count` scenes from place `start` of the endless row of passes; `count` divides a shard.

        Each pass through a shard shows each of its scenes once, in another order.
        """
        visit, place = divmod(start, self.size)
        window, number = visit // (WINDOW * PASSES), visit % WINDOW
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(visit))
        rows = order[place : place + count]
        scenes, latents = self.read(window * WINDOW + number)
        return Batch(latents[rows].to(self.device).float(), scenes.rows(rows))

    def _read(self, shard: int) -> tuple[world.Scenes, Tensor]:
        scenes = world.sample(self.size, seed=1_000_000 + shard, objects=OBJECTS)
        file = self.folder / f"{shard}-{self.size}.pt"
        if not file.exists():
            latents = self.encode(scenes).to("cpu", torch.float16)
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(latents, file.with_suffix(".part"))
            file.with_suffix(".part").replace(file)
        return scenes, torch.load(file, weights_only=True)

    @torch.no_grad()
    def encode(self, scenes: world.Scenes, at_once: int = 32) -> Tensor:
        """Model-space latents [B, 4, 16, 16] of scenes."""
        parts = []
        for rows in torch.arange(len(scenes)).split(at_once):
            pixels = world.render(scenes.rows(rows), device=self.device).images.contiguous(
                memory_format=torch.channels_last
            )
            with autocast(self.device):
                parts.append(self.vae.taesd_encoder(pixels).float())
        return torch.cat(parts)


def fingerprint(model: nn.Module) -> int:
    """A number that changes when the weights do, so that latents of another encoder are not taken for ours."""
    total = 0
    for value in model.state_dict().values():
        bits = value.detach().float().cpu().contiguous().view(torch.int32).flatten().long()
        place = torch.arange(1, len(bits) + 1)
        total = (total * 1_000_003 + int((bits * place).sum())) % 2**64
    return total
