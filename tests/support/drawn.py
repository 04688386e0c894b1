"""Drawn scenes of the miniature's world as a graph has them: pictures, references and true detections.

The encoder here only counts colours, so a test knows what it must find.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mip_adapter.attention.reference import Reference, make_reference
from mip_adapter.evaluation.detection.detections import Detection, Detections
from mip_adapter.miniature import world
from mip_adapter.miniature.world_shapes import KINDS
from torch import Tensor


@dataclass(frozen=True)
class Drawn:
    """Drawn scenes with the same objects.

    images: [B, S, S, 3].
    references: of the objects of the first scene, whose colours all scenes use.
    detections: the true boxes and masks.
    """

    images: Tensor
    references: tuple[Reference, ...]
    detections: Detections
    looks: Tensor  # [M, 3] pattern and colours of the first scene's objects


def draw(seed: int, objects: int = 3, pictures: int = 1, looks: Sequence[Sequence[int]] | None = None) -> Drawn:
    """Scenes with the same objects at different places.

    pictures: how many scenes.
    looks: for every picture, whose look each object has.
    """
    scene = first = world.sample(1, seed, objects=(objects,))
    texts = tuple(KINDS[kind] for kind in scene.present(0))
    shown = world.render(world.references(scene, seed + 1)).images.movedim(1, -1)
    chain = tuple(make_reference(shown[m : m + 1], text) for m, text in enumerate(texts))
    images, found = [], []
    for b in range(pictures):
        if b:
            scene = world.sample(1, seed + 1000 * b, objects=(objects,))
        order = [*(looks[b] if looks else range(objects)), *range(objects, world.OBJECTS)]
        scene = replace(scene, kinds=first.kinds, looks=first.looks[:, order], colours=first.colours[:, order])
        picture = world.render(scene)
        boxes = world.boxes(picture.masks)[0].tolist()
        images.append(picture.images[0].movedim(0, -1))
        found.append(tuple((thing(boxes[m], 0.9, picture.masks[0, m]),) for m in range(objects)))
    detections = Detections(texts, world.SIZE, world.SIZE, tuple(found))
    return Drawn(torch.stack(images), chain, detections, first.looks[0, :objects])


def thing(box: Sequence[float], score: float = 0.9, mask: Tensor | None = None) -> Detection:
    x0, y0, x1, y1 = map(float, box)
    return Detection((x0, y0, x1, y1), score, mask)


class Colours:
    """An encoder: the share of each of 64 colours among the pixels that are not white."""

    name = "colour counter"

    def images(self, pictures: Sequence[Any]) -> Tensor:
        return torch.tensor(np.stack([self._count(picture) for picture in pictures]), dtype=torch.float32)

    @staticmethod
    def _count(picture: Any) -> np.ndarray:
        pixels = np.asarray(picture.convert("RGB") if hasattr(picture, "convert") else picture).reshape(-1, 3)
        pixels = pixels[pixels.min(1) < 245]
        counts = np.bincount(pixels // 64 @ np.array([16, 4, 1]), minlength=64)
        return counts / max(counts.sum(), 1) + 0.01
