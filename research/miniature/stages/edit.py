"""Stage edit: a stand-in for edit models, FLUX.1's class with two references in its own sequence.

It draws a scene of two objects from a caption that names their kinds and from a reference of each, as FLUX.1 Kontext
does: the references' clean tokens stand behind the picture's, in any order. It works on small pictures themselves, so
that no scene is seen twice. It is trained by rectified flow:

    x = σ ε + (1 − σ) x₀,   v = ε − x₀

Sometimes a reference is left out. Then the caption alone says what to draw, so that the words are not idle. As in the
stage `places`, the relevance of the caption's own tokens is pulled towards the objects' masks (word_grounding.py): a
crutch, since so short a training hardly teaches words their places.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....attention.joint import joint_relevance
from ....attention.shared_text import averages
from ....miniature import world, world_words
from ....miniature.world_shapes import KINDS
from .. import clip
from .base import DROPPED, Conditioner
from .precision import autocast

SIDE, REFERENCE_SIDE = 32, 20  # pixels; an object has about the same size in both
OBJECTS = 2
LENGTH = 12  # tokens; no caption of two kinds is longer
MEAN, SPREAD = 0.75, 0.28  # of the world's pixels
SEED = 40_000_000
BACKGROUND = 0.3  # weight of the loss where no object is, as for the adapters
SHOWN = (0, 1, 2, 2, 2, 2, 2, 2)  # numbers of references in the steps, in turn
HIGHER = 0.8  # the noise level is sigmoid(HIGHER + a normal number): more noise than not
PLACES = 0.1  # weight of the words' places; the error has weight 1
NOISIEST = 0.9  # σ above which objects are hidden, so that words cannot know their places yet


class Edit:
    name, rate, total, stop, ema_decay = "edit", 1.5e-3, 9_000, 9_000, 0.998
    matrix_rate: float | None = 1e-2
    batch_size = 32

    def __init__(self, model: Any, call: Callable, condition: Conditioner):
        """call: see `comfy_networks.run_edit`."""
        self.model: nn.Module = model.to(condition.device)
        self.call, self.side = call, SIDE // model.patch_size
        self.condition, self.device = condition, condition.device
        self.kinds = torch.tensor([condition.words.numbers[world_words.object_text(i)] for i in range(len(KINDS))])

    def batch(self, step: int) -> tuple[Tensor, ...]:
        """Pictures, noise, σ, token ids for both text encoders, the words' places in them, masks, references."""
        rng, g = random.Random(step), torch.Generator().manual_seed(step)
        scenes = world.sample(self.batch_size, SEED + step, (OBJECTS,))
        kinds = scenes.kinds[:, :OBJECTS]
        captions = ["" if rng.random() < DROPPED else world_words.caption(each, rng) for each in kinds.tolist()]
        ids = [self.condition.words.rows(captions, pad, LENGTH) for pad in (clip.PAD_L, clip.PAD_G)]
        spots = (ids[0][:, None] == self.kinds[kinds][..., None]).int().argmax(-1)
        drawn = world.render(scenes, SIDE)
        pictures = scaled(drawn.images)
        order = torch.rand(len(scenes), OBJECTS, generator=g).argsort(1)[:, : SHOWN[step % len(SHOWN)]]
        slots = torch.arange(len(scenes))[:, None] * world.OBJECTS + order
        shown = world.references(scenes, SEED + step).rows(slots.flatten())
        references = scaled(world.render(shown, REFERENCE_SIDE).images).unflatten(0, order.shape)
        sigmas = (HIGHER + torch.randn(len(scenes), generator=g)).sigmoid()
        noise = torch.randn(pictures.shape, generator=g)
        given = (pictures, noise, sigmas, *ids, spots, drawn.masks[:, :OBJECTS], references)
        return tuple(each.to(self.device) for each in given)

    def loss(
        self, pictures: Tensor, noise: Tensor, sigmas: Tensor, rows_l: Tensor, rows_g: Tensor, spots: Tensor,
        masks: Tensor, references: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        seen: list[Tensor] = []

        def watch(q: Tensor, k: Tensor) -> None:
            average = averages([1] * OBJECTS, q.shape[1]).to(q.device)
            picture = slice(LENGTH, LENGTH + self.side**2)
            seen.append(joint_relevance(q[:, :, picture], k[:, :, :LENGTH], spots, average))

        noisy = torch.lerp(pictures, noise, sigmas[:, None, None, None])
        with autocast(self.device):
            answer = self.call(self.model, noisy, sigmas, self.encode(rows_l, rows_g), references.unbind(1), watch)
        answer = answer.float()
        weight = BACKGROUND + (1 - BACKGROUND) * masks.sum(1, keepdim=True)
        error = ((answer - (noise - pictures)).square() * weight).mean() / weight.mean()
        cover = F.adaptive_avg_pool2d(masks, self.side).flatten(2)
        lost, right = displaced(torch.stack(seen), cover, (spots > 0).all(1) & (sigmas < NOISIEST))
        return error + PLACES * lost, {"error": error, "places": lost, "right": right}

    @torch.no_grad()
    def encode(self, rows_l: Tensor, rows_g: Tensor) -> tuple[Tensor, Tensor]:
        """Context [B, L, 128] and pooled text [B, 80] of token ids."""
        context, pooled, _ = self.condition.encoders.text(rows_l, rows_g)
        return context, pooled


def scaled(images: Tensor) -> Tensor:
    """Pictures in 0…1 as the stand-in works on them: numbers with a mean of about 0 and a deviation of about 1."""
    return (images - MEAN) / SPREAD


def unscaled(pictures: Tensor) -> Tensor:
    """The reverse of `scaled`, clipped to 0…1."""
    return (pictures * SPREAD + MEAN).clamp(0, 1)


def displaced(seen: Tensor, cover: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over blocks and the objects' positions of −log (A_owner / Σ_j A_j), and how often the owner's is the larger.

    seen: A, [blocks, M, B, N].
    cover: [B, M, N], the share of each position that an object covers.
    there: [B], which rows count.
    """
    most, owner = cover.max(1)  # [B, N]
    weight = (most > 0.5) * there[:, None]
    shares = seen / seen.sum(1, keepdim=True)
    own = shares.gather(1, owner.expand(len(seen), 1, -1, -1))[:, 0]  # [blocks, B, N]
    lost, won = (
        (each.mean(0) * weight).sum() / weight.sum().clamp(min=1)
        for each in (-own.clamp(min=1e-6).log(), (own > 0.5).float())
    )
    return lost, won
