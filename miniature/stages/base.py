"""Stage 3: the UNet, on captions that name kinds only. v-prediction, SDXL's schedule, captions dropped in 10 %."""

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import clip, world, world_words
from . import noise
from .encoders import Encoders
from .latents import Shards
from .precision import autocast
from .words import Words

BATCH = 32
DROPPED = 0.1


class Conditioner:
    """Captions to what SDXL's UNet reads: hidden states of both encoders, and the pooled text with the size."""

    def __init__(self, encoders: Encoders, words: Words, device: torch.device):
        self.encoders, self.words, self.device = encoders, words, device
        self.size = size_vector(world.SIZE).to(device)

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Context [B, 77, 128] and vector [B, 80 + 6·256]."""
        rows = [self.words.rows(captions, pad, clip.LENGTH).to(self.device) for pad in (clip.PAD_L, clip.PAD_G)]
        context, pooled, _ = self.encoders.text(*rows)
        return context, torch.cat([pooled, self.size.expand(len(pooled), -1)], 1)


def size_vector(size: int) -> Tensor:
    """[1, 6·256] what SDXL's vector says of a square, uncropped picture: height, width, crops, target."""
    rates = torch.exp(-math.log(10_000) * torch.arange(128) / 128)
    angles = torch.tensor([size, size, 0, 0, size, size])[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1).reshape(1, -1)


class Example(NamedTuple):
    x: Tensor  # [B, 4, h, w] noisy latents
    target: Tensor  # [B, 4, h, w] v
    steps: Tensor  # [B]
    captions: list[str]
    scenes: world.Scenes


class Base:
    name, rate, total, stop, ema_decay = "base", 6e-4, 16_000, 5_275, 0.9995
    matrix_rate = 2e-3

    def __init__(self, model: nn.Module, call: Callable, shards: Shards, condition: Conditioner, wide: int = 1):
        """`call(model, x, steps, context, vector)` is how the host's UNet is asked."""
        self.model, self.call = model.to(condition.device), call
        self.shards, self.condition, self.device, self.wide = shards, condition, condition.device, wide

    def loss(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.error(self.example(step))

    def example(self, step: int) -> Example:
        """What step number `step` learns from."""
        latents, scenes = self.shards.batch(step * BATCH, BATCH * self.wide)
        rng, g = random.Random(step), torch.Generator().manual_seed(step)
        captions = [
            "" if rng.random() < DROPPED else world_words.caption(scenes.present(i), rng) for i in range(len(scenes))
        ]
        steps = torch.randint(noise.STEPS, (len(scenes),), generator=g).to(self.device)
        eps = torch.randn(latents.shape, generator=g).to(self.device)
        return Example(*noise.noisy(latents, eps, steps), steps, captions, scenes)

    def error(self, given: Example) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of v, and the same by noise."""
        answer, steps = self.predict(given.x, given.steps, given.captions), given.steps
        error = F.mse_loss(answer, given.target, reduction="none").mean((1, 2, 3))
        parts = {"low": steps < 300, "middle": (steps >= 300) & (steps < 700), "high": steps >= 700}
        log = {part: (error * at).sum() / at.sum().clamp(min=1) for part, at in parts.items()}
        return error.mean(), log

    def predict(self, x: Tensor, steps: Tensor, captions: Sequence[str]) -> Tensor:
        """v [B, 4, h, w] of noisy latents at step numbers [B]."""
        context, vector = self.condition(captions)
        with autocast(self.device):
            return self.call(self.model, x, steps, context, vector).float()

    @torch.no_grad()
    def draw(self, captions: Sequence[str], seed: int, guidance: float = 3.0, count: int = 20) -> Tensor:
        """Latents for captions, with classifier-free guidance."""
        g = torch.Generator().manual_seed(seed)
        start = torch.randn(len(captions), 4, world.SIZE // 8, world.SIZE // 8, generator=g).to(self.device)

        def guided(x: Tensor, steps: Tensor) -> Tensor:
            both = self.predict(x.repeat(2, 1, 1, 1), steps.repeat(2), [*captions, *[""] * len(captions)])
            cond, uncond = both.chunk(2)
            return uncond + guidance * (cond - uncond)

        return noise.sample(guided, start, count)
