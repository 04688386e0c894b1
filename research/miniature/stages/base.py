"""Stage 3: the UNet, on captions that name kinds only.

It predicts v, with SDXL's noise schedule. 10 % of the captions are dropped.
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....miniature import world, world_words
from ....miniature.world_shapes import KINDS
from .. import clip
from . import noise_schedule
from .captions import Words
from .encoders import Encoders
from .latents import ShardRows, Shards
from .precision import autocast
from .prefetch import Prefetcher

DROPPED = 0.1  # share of the captions
WORKERS = 8  # processes that prepare batches for a GPU


class Conditioner:
    """Captions to what SDXL's UNet reads: hidden states of both text encoders, and pooled text with the size
    conditioning.
    """

    def __init__(self, encoders: Encoders, words: Words, device: torch.device):
        self.encoders, self.words, self.device = encoders, words, device
        self.size = size_vector(world.SIZE).to(device)

    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context [B, 77, 128] and vector [B, 80 + 6·256]."""
        return self.encode(*(rows.to(self.device) for rows in self.rows(captions)))

    def rows(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids [B, 77] for each of the two text encoders."""
        rows_l, rows_g = (self.words.rows(captions, pad, clip.LENGTH) for pad in (clip.PAD_L, clip.PAD_G))
        return rows_l, rows_g

    @torch.no_grad()
    def encode(self, rows_l: Tensor, rows_g: Tensor) -> tuple[Tensor, Tensor]:
        """The same as calling it, from token ids."""
        context, pooled, _ = self.encoders.text(rows_l, rows_g)
        return context, torch.cat([pooled, self.size.expand(len(pooled), -1)], 1)


def size_vector(size: int) -> Tensor:
    """[1, 6·256] SDXL's size conditioning of a square, uncropped picture: height, width, crop, target size."""
    rates = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    angles = torch.tensor([size, size, 0, 0, size, size])[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1).reshape(1, -1)


class Lesson(NamedTuple):
    """What a step trains on. It follows from the step's number alone."""

    which: ShardRows
    timesteps: Tensor  # [B]
    rows_l: Tensor  # [B, 77] token ids of the captions, for each of the two text encoders
    rows_g: Tensor
    spots: Tensor  # [B, M] index of the caption's token that names the object; 0 if none does


class Base:
    name, rate, total, stop, ema_decay = "base", 4e-4, 3_500, 2_326, 0.998
    matrix_rate = 4e-3
    batch_size = 512

    def __init__(self, model: nn.Module, call: Callable, shards: Shards, condition: Conditioner):
        """call: `call(model, x, timesteps, context, vector)` runs ComfyUI's UNet."""
        self.model, self.call = model.to(condition.device), call
        self.shards, self.condition, self.device = shards, condition, condition.device
        self.lessons = Prefetcher(self.lesson, 0 if self.device.type == "cpu" else WORKERS)
        self.kinds = torch.tensor([condition.words.numbers[world_words.object_text(i)] for i in range(len(KINDS))])

    def lesson(self, step: int) -> Lesson:
        which = self.shards.rows_at(step * self.batch_size, self.batch_size)
        scenes = self.shards.scenes(which.shard).rows(which.rows)
        rng, g = random.Random(step), torch.Generator().manual_seed(step)
        captions = [
            "" if rng.random() < DROPPED else world_words.caption(scenes.present(i), rng) for i in range(len(scenes))
        ]
        rows_l, rows_g = self.condition.rows(captions)
        named = rows_l[:, None] == self.kinds[scenes.kinds.clamp(min=0)][..., None]  # [B, M, 77]
        spots = named.int().argmax(-1) * (scenes.kinds >= 0)
        return Lesson(
            which, torch.randint(noise_schedule.TIMESTEPS, (len(scenes),), generator=g), rows_l, rows_g, spots
        )

    def batch(self, step: int) -> tuple[Tensor, ...]:
        lesson = self.lessons(step)
        latents, masks = self.shards.batch(lesson.which)
        g = torch.Generator(self.device).manual_seed(step)
        eps = torch.randn(latents.shape, generator=g, device=self.device)
        given = (lesson.timesteps, lesson.rows_l, lesson.rows_g, lesson.spots)
        return (latents, eps, *(each.to(self.device, non_blocking=True) for each in given), masks)

    def loss(
        self, latents: Tensor, eps: Tensor, timesteps: Tensor, rows_l: Tensor, rows_g: Tensor, *_: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.error(latents, eps, timesteps, *self.condition.encode(rows_l, rows_g))

    def error(
        self, latents: Tensor, eps: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of v, and the same by range of timesteps for the log."""
        x, target = noise_schedule.noisy(latents, eps, timesteps)
        answer = self.answer(x, timesteps, context, vector)
        error = F.mse_loss(answer, target, reduction="none").mean((1, 2, 3))
        parts = {"low": timesteps < 300, "middle": (timesteps >= 300) & (timesteps < 700), "high": timesteps >= 700}
        log = {part: (error * at).sum() / at.sum().clamp(min=1) for part, at in parts.items()}
        return error.mean(), log

    def predict(self, x: Tensor, timesteps: Tensor, captions: Sequence[str]) -> Tensor:
        """v [B, 4, h, w] of noisy latents at timesteps [B]."""
        return self.answer(x, timesteps, *self.condition(captions))

    def answer(self, x: Tensor, timesteps: Tensor, context: Tensor, vector: Tensor) -> Tensor:
        with autocast(self.device):
            return self.call(self.model, x, timesteps, context, vector).float()

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seed: int, guidance: float = 3.0, count: int = 20) -> Tensor:
        """Sampled latents for captions, with classifier-free guidance. count: steps."""
        g = torch.Generator().manual_seed(seed)
        start = torch.randn(len(captions), 4, world.SIZE // 8, world.SIZE // 8, generator=g).to(self.device)
        context, vector = self.condition([*captions, *[""] * len(captions)])

        def guided(x: Tensor, timesteps: Tensor) -> Tensor:
            cond, uncond = self.answer(x.repeat(2, 1, 1, 1), timesteps.repeat(2), context, vector).chunk(2)
            return uncond + guidance * (cond - uncond)

        return noise_schedule.sample(guided, start, count)
