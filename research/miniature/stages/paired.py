"""Scenes with a reference picture of every object, encoded once: the training data of adapters.

Scenes and references are drawn, encoded and kept on disk, a shard at a time, as for the base (latents.py). References
show the same kind and look in another pose on white. Captions and object texts name kinds only, so the looks can come
only from the references.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ....common.atomic_io import atomic_file
from ....common.rng import generator, seed_of
from ....miniature import config, world, world_words
from ....training.config import TrainConfig
from ....training.trainer import Stopped
from .. import clip
from .latents import Shards, weights_checksum

SHARD, SHARDS = 2048, 8
SEED, SEED_HELD_OUT = 2_000_000, 3_000_000_000
BATCH = 128  # pictures encoded at once


@dataclass(frozen=True)
class Scene:
    """One scene of a step.

    index: its number in the endless sequence of samples.
    row: among the scenes.
    names: the object texts.
    drop_text, drop_image: drop the caption, drop the references.
    broken: always empty; the trainer asks for it.
    """

    id: str
    index: int
    row: int
    caption: str
    names: tuple[str, ...]
    drop_text: bool = False
    drop_image: bool = False
    broken: tuple[tuple[str, str], ...] = ()


class Paired:
    """`paired[index]` for any index from 0 on, as the trainer expects. It depends on (seed, index) alone.

    latents: [S, 4, 16, 16].
    masks: [S, 16, 16], the share of each latent position that objects cover.
    embeds: [ΣM, 80] and hidden: [ΣM, 65, 96], the image encoder's two outputs for the references of all scenes, one
        after another. Those of scene s begin at row starts[s].
    """

    def __init__(
        self, vae: nn.Module, vision: nn.Module, folder: Path, recipe: TrainConfig, shards: int = SHARDS,
        size: int = SHARD, held_out: bool = False, asked_to_stop: Callable[[], bool] = lambda: False,
    ):  # fmt: skip
        """asked_to_stop: called before each shard is encoded, which takes minutes. `Stopped` is raised if so."""
        self.recipe, self.held_out, self.asked_to_stop = recipe, held_out, asked_to_stop
        self.device = next(vision.parameters()).device
        self.encoder = Shards(vae, folder, self.device)
        self.vision, self.folder = vision, folder
        self.objects = tuple(range(recipe.min_objects, recipe.max_objects + 1))
        self.scenes = [self._draw(shard, size) for shard in range(shards)]
        self.kinds = [scenes.present(i) for scenes in self.scenes for i in range(len(scenes))]
        self.starts = [0, *itertools.accumulate(map(len, self.kinds))]
        # What the trainer asks of `Samples`: drawn scenes need no ids, and none is broken.
        self.ids, self.broken, self.total = tuple[str, ...](), dict[str, str](), len(self.kinds)

    def __len__(self) -> int:
        return len(self.kinds)

    def __getitem__(self, index: int) -> Scene:
        recipe = self.recipe
        epoch, slot = divmod(index, len(self))
        row = int(_permutation(recipe.seed, epoch, len(self))[slot])
        rng = random.Random(seed_of(recipe.seed, "scene", index))
        caption, names = world_words.caption(self.kinds[row], rng), self._names(row)
        draw, image, text, both = rng.random(), recipe.drop_image, recipe.drop_text, recipe.drop_both
        drop_image = draw < image or image + text <= draw < image + text + both
        drop_text = image <= draw < image + text + both
        return Scene(str(row), index, row, caption, names, drop_text, drop_image)

    def plain(self, row: int) -> Scene:
        """A scene for measuring, with nothing dropped."""
        rng = random.Random(seed_of("plain", row))
        return Scene(str(row), row, row, world_words.caption(self.kinds[row], rng), self._names(row))

    def _names(self, row: int) -> tuple[str, ...]:
        return tuple(world_words.object_text(kind) for kind in self.kinds[row])

    def _draw(self, shard: int, size: int) -> world.Scenes:
        return world.sample(size, self._seed(shard), self.objects, self.held_out)

    def _seed(self, shard: int) -> int:
        return (SEED_HELD_OUT if self.held_out else SEED) + 1000 * self.objects[-1] + shard

    @cached_property
    def latents(self) -> Tensor:
        return self._all("latents", self.encoder.folder.name, self.encoder.encode)

    @cached_property
    def masks(self) -> Tensor:
        return self._all("masks", self.encoder.folder.name, self._silhouettes)

    @cached_property
    def embeds(self) -> Tensor:
        return self._all("embeds", f"{weights_checksum(self.vision):016x}", lambda scenes: self._see(scenes, 1))

    @cached_property
    def hidden(self) -> Tensor:
        return self._all("hidden", f"{weights_checksum(self.vision):016x}", lambda scenes: self._see(scenes, 0))

    def features(self, rows: list[int], output: str) -> Tensor:
        """The image encoder's output for the references of these scenes, one after another. output: its name."""
        own: Mapping[str, Any] = {"image_embeds": "embeds", "penultimate_hidden_states": "hidden"}
        at = [each for row in rows for each in range(self.starts[row], self.starts[row + 1])]
        return getattr(self, own[output])[at].float()

    def _all(self, what: str, encoder: str, encode) -> Tensor:
        """The results of `encode` for all shards, read from disk where they are there."""
        parts = []
        for shard, scenes in enumerate(self.scenes):
            file = self.folder / encoder / f"{what}-{self._seed(shard)}-{len(scenes)}.pt"
            if not file.exists():
                if self.asked_to_stop():
                    raise Stopped(f"stopped before shard {shard + 1} of the scenes' {what}, as asked")
                made = encode(scenes).to("cpu", torch.float16)
                with atomic_file(file) as temporary:
                    torch.save(made, temporary)
            parts.append(torch.load(file, weights_only=True))
        return torch.cat(parts)

    @torch.no_grad()
    def _see(self, scenes: world.Scenes, output: int) -> Tensor:
        """Hidden states (output 0) or embeddings (1) of the references of all objects."""
        pictures = world.references(scenes, int(scenes.kinds.sum()))
        there = (pictures.kinds[:, 0] >= 0).nonzero().flatten()
        parts = []
        for rows in there.split(BATCH):
            pixels = world.render(pictures.rows(rows), config.CLIP_VISION["image_size"], self.device).images
            parts.append(self.vision(clip.normalised(pixels))[output].cpu())
        return torch.cat(parts)

    def _silhouettes(self, scenes: world.Scenes) -> Tensor:
        parts = []
        for rows in torch.arange(len(scenes)).split(BATCH):
            masks = world.render(scenes.rows(rows), device=self.device).masks.any(1)  # [B, S, S]
            parts.append(F.avg_pool2d(masks.float(), masks.shape[-1] // config.UNET["image_size"]))
        return torch.cat(parts)


def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch))
