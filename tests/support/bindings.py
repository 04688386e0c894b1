"""Bindings of drawn scenes, and made ones with chosen margins."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from mip_adapter.evaluation.binding.binding import Binding, PictureBinding
from mip_adapter.evaluation.binding.report import measure_binding

from .drawn import Colours


def measure_one(scene, b: int) -> Binding:
    found = replace(scene.detections, found=(scene.detections.found[b],))
    return measure_binding(scene.images[b : b + 1], scene.references, found, Colours())


def made(margins, counts=None, objects: int = 2) -> PictureBinding:
    """A picture whose objects have these margins; None: not found."""
    crop_of: list[int | None] = []
    rows, found_as = [], []
    for m, margin in enumerate(margins):
        crop_of.append(None if margin is None else len(rows))
        if margin is not None:
            row = [0.5] * objects
            row[m] += margin
            rows.append(row)
            found_as.append(m)
    for m, count in enumerate(counts or ()):
        for _ in range(count - 1):
            rows.append([0.5] * objects)
            found_as.append(m)
    similarity = torch.tensor(rows).reshape(-1, objects)
    boxes = tuple((10.0 * i, 0.0, 10.0 * i + 9, 9.0) for i in range(len(rows)))
    crops = tuple(np.full((8, 8, 3), 100, np.uint8) for _ in rows)
    look = torch.nn.functional.one_hot(torch.tensor(found_as, dtype=torch.long), objects).float()
    return PictureBinding(crops, boxes, tuple(found_as), similarity, look, tuple(crop_of))


def batch(*pictures: PictureBinding, names=("cat", "dog"), weights=None, has_region=None) -> Binding:
    thumbnails = tuple(np.full((8, 8, 3), 15 * m, np.uint8) for m in range(len(names)))
    images = np.full((len(pictures), 50, 100, 3), 200, np.uint8)
    weights, has_region = weights or (1.0,) * len(names), has_region or (False,) * len(names)
    return Binding(tuple(names), weights, has_region, thumbnails, images, "encoder", pictures)
