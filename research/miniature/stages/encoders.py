"""Stage 2: text and image encoders, trained contrastively like CLIP's.

There are three kinds of pairs, each compared within itself: single objects with their looks in words, scenes with
looks, and scenes with kinds only, as in diffusion captions. Half of the described objects differ from another object of
the batch in one property. So the encoders must tell stripes from bands, and red on blue from blue on red. The token
tables keep their seeded values, because random vectors are far apart already.
"""

import random
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....miniature import config, world
from ....miniature.world_looks import PATTERNS, PLAIN, palette
from ....miniature.world_shapes import KINDS
from .. import clip, seeded
from .captions import Words
from .precision import autocast

LENGTH = 48  # tokens; no caption of the world is longer


class Tower(nn.Module):
    """One text encoder, nested as in ComfyUI's SDXL text model."""

    def __init__(self, settings: dict):
        super().__init__()
        self.transformer = clip.Text(settings)


class Encoders(nn.Module):
    """Both text encoders and the image encoder.

    The image embeddings live in CLIP-G's space, as with SDXL. CLIP-L is trained through a projection of the image that
    is not needed afterwards.
    """

    def __init__(self):
        super().__init__()
        self.clip = nn.ModuleDict({"clip_l": Tower(config.CLIP_L), "clip_g": Tower(config.CLIP_G)})
        self.vision = clip.Vision(config.CLIP_VISION)
        self.project_l = nn.Linear(config.CLIP_VISION["hidden_size"], config.CLIP_L["hidden_size"], bias=False)
        self.temperature = nn.Parameter(torch.tensor([2.6, 2.6]))
        self._settle()

    def _settle(self) -> None:
        """Initial weights: small ones for positions, as CLIP's; the seeded table for tokens, which is not trained."""
        for name, parameter in self.named_parameters():
            if name.endswith("token_embedding.weight"):
                key = name.removeprefix("clip.")
                parameter.data = seeded.normal(f"clip/{key}", parameter.shape)
                parameter.requires_grad_(False)
            elif name.endswith("position_embedding.weight"):
                nn.init.normal_(parameter, std=0.1)

    def text(self, rows_l: Tensor, rows_g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Penultimate states side by side [B, L, 128] (SDXL's context), the pooled text of G (SDXL's) and that of L."""
        clip: Any = self.clip
        hidden_l, pooled_l = clip["clip_l"].transformer(rows_l)
        hidden_g, pooled_g = clip["clip_g"].transformer(rows_g)
        return torch.cat([hidden_l, hidden_g], -1), pooled_g, pooled_l


class EncoderStage:
    name, rate, total, stop, ema_decay = "encoders", 1e-3, 8_000, 2_374, 0.998
    matrix_rate: float | None = None
    single_count, scene_count = 96, 48  # pairs of each kind in a batch

    def __init__(self, model: Encoders, words: Words, device: torch.device):
        self.model, self.words, self.device = model.to(device), words, device

    def batch(self, step: int) -> tuple[Tensor, ...]:
        rng = random.Random(step)
        singles = references(varied(world.sample(self.single_count, 3 * step, objects=(1,)), step), step)
        scenes = varied(world.sample(self.scene_count, 3 * step + 1, objects=(2, 3)), step)
        plain = world.sample(self.scene_count, 3 * step + 2, objects=(1, 2, 2, 3, 4))
        return (
            *self._pairs(singles, singles.captions(rng, with_looks=True), True),
            *self._pairs(scenes, scenes.captions(rng, with_looks=True), True),
            *self._pairs(plain, plain.captions(rng), False),
        )

    def _pairs(self, scenes: world.Scenes, captions: list[str], looks: bool) -> tuple[Tensor, ...]:
        """Pictures, token ids of their captions for both text encoders, and which of the captions mean the same."""
        images = clip.normalised(world.render(scenes, config.CLIP_VISION["image_size"], self.device).images)
        rows = (self.words.rows(captions, pad, LENGTH).to(self.device) for pad in (clip.PAD_L, clip.PAD_G))
        return images, *rows, same_meaning(scenes, looks).to(self.device)

    def loss(self, *batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        single, single_hits = self._compare(*batch[:4])
        scene, scene_hits = self._compare(*batch[4:8])
        kind, kind_hits = self._compare(*batch[8:])
        log = {"singles": single_hits, "scenes": scene_hits, "kinds": kind_hits}
        return single + scene + kind, log

    def _compare(self, images: Tensor, rows_l: Tensor, rows_g: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
        """The contrastive loss of pictures and their captions, and how often a picture finds its own caption."""
        with autocast(self.device):
            _, pooled = self.model.vision.hidden(images)
            image_g, image_l = self.model.vision.visual_projection(pooled), self.model.project_l(pooled)
            _, text_g, text_l = self.model.text(rows_l, rows_g)
        scale = self.model.temperature.clamp(max=4.6).exp()
        loss_g, hits = contrast(image_g, text_g, scale[0], same)
        loss_l, _ = contrast(image_l, text_l, scale[1], same)
        return loss_g + loss_l, hits


class VisionStage(EncoderStage):
    """The image encoder alone, against the texts that later stages already depend on."""

    name, rate, total, stop = "vision", 5e-4, 4_000, 4_000

    def __init__(self, model: Encoders, words: Words, device: torch.device):
        super().__init__(model, words, device)
        model.requires_grad_(False)
        for part in (model.vision, model.project_l):
            part.requires_grad_(True)


def contrast(images: Tensor, texts: Tensor, scale: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """CLIP's loss in both directions over [B, D] pairs, and the share of pictures that find their own text.

    same: [B, B], pairs with the same meaning. They are never compared with each other.
    """
    logits = scale * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    logits = logits.masked_fill(same & ~torch.eye(len(same), dtype=torch.bool, device=same.device), -1e4)
    own = torch.arange(len(logits), device=logits.device)
    hits = (logits.argmax(1) == own).float().mean()
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2, hits


def same_meaning(scenes: world.Scenes, looks: bool) -> Tensor:
    """[B, B] whether two scenes' captions mean the same, in whatever order they name the objects. looks: compare looks
    too.
    """
    objects = scenes.kinds
    if looks:
        pattern, first, second = scenes.looks.unbind(-1)
        objects = torch.where(objects < 0, -1, ((objects * 100 + pattern) * 100 + first) * 100 + second)
    objects = objects.sort(-1).values
    return (objects[:, None] == objects[None]).all(-1)


def varied(scenes: world.Scenes, seed: int) -> world.Scenes:
    """Scenes whose second half copies the first half with one change, which the encoders must learn to see.

    The change is in the first object: its kind, its pattern, its first colour, or its two colours swapped; or, if there
    is a second object, the two objects' looks are exchanged. A change that would give a look kept for tests is not
    made.
    """
    half = len(scenes) // 2
    g = torch.Generator().manual_seed(seed)
    kinds, looks = scenes.kinds[:half].clone(), scenes.looks[:half].clone()
    change = torch.randint(5, (half,), generator=g)
    used = kinds[:, :, None] == torch.arange(len(KINDS))
    free = torch.rand(half, len(KINDS), generator=g).masked_fill(used.any(1), -1).argmax(1)
    kinds[:, 0] = torch.where(change == 0, free, kinds[:, 0])
    pattern, first, second = looks[:, 0].clone().unbind(-1)
    other = 1 + torch.randint(len(PATTERNS) - 1, (half,), generator=g)
    new = torch.stack([torch.where((change == 1) & (pattern != PLAIN), other, pattern), first, second], -1)
    colour = torch.randint(len(palette()), (half,), generator=g)
    plain = pattern == PLAIN
    fresh = (change == 2) & (plain | (colour != second))
    new[:, 1] = torch.where(fresh, colour, first)
    new[:, 2] = torch.where(fresh & plain, colour, second)
    new = torch.where((change == 3)[:, None], new[:, [0, 2, 1]], new)
    allowed = ~world.split.reserved_look(*new.unbind(-1)) & ~world.split.has_reserved_pair(kinds)
    looks[:, 0] = torch.where(allowed[:, None], new, looks[:, 0])
    swap = (change == 4) & (kinds[:, 1] >= 0)
    looks[:, :2] = torch.where(swap[:, None, None], looks[:, :2].flip(1), looks[:, :2])
    kinds = torch.where(world.split.has_reserved_pair(kinds)[:, None], scenes.kinds[:half], kinds)
    looks = torch.cat([scenes.looks[:half], looks])
    noise = scenes.colours - palette()[scenes.looks[..., 1:]]
    return replace(
        scenes,
        kinds=torch.cat([scenes.kinds[:half], kinds]),
        looks=looks,
        colours=(palette()[looks[..., 1:]] + noise).clamp(0, 1),
        centres=torch.cat([scenes.centres[:half]] * 2),
        radii=torch.cat([scenes.radii[:half]] * 2),
    )


def references(scenes: world.Scenes, seed: int) -> world.Scenes:
    """One-object scenes, every other one as a reference picture on white."""
    first = world.references(scenes, seed).rows(slice(None, None, world.OBJECTS))
    on_white = (torch.arange(len(scenes)) + seed) % 2 == 0
    ground = torch.where(on_white[:, None], first.ground, scenes.ground)
    texture = scenes.texture * ~on_white[:, None, None, None]
    return replace(first, ground=ground, texture=texture)
