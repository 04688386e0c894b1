"""The crop of a training picture, and its objects cut out as references."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..common.crops import CROP_SIDE, Box, cut_out, window
from .filters import object_value


class SquareCrop(NamedTuple):
    """A square of a picture, in its pixels."""

    left: int
    top: int
    side: int


def whole_box(box: Sequence[float]) -> Box:
    """A box with its edges cut to whole pixels, as the official script takes them for the crop."""
    x0, y0, x1, y1 = (int(edge) for edge in box)
    return x0, y0, x1, y1


def choose_crop(size: tuple[int, int], boxes: Sequence[Box], rng: random.Random) -> SquareCrop:
    """A square of the picture's short side, anywhere that keeps all boxes inside; the middle where no such place
    exists."""
    width, height = size
    side = min(width, height)
    x = (max(0, int(np.ceil(max(b[2] for b in boxes))) - side), min(int(min(b[0] for b in boxes)), width - side))
    y = (max(0, int(np.ceil(max(b[3] for b in boxes))) - side), min(int(min(b[1] for b in boxes)), height - side))
    if x[0] <= x[1] and y[0] <= y[1]:
        return SquareCrop(rng.randint(*x), rng.randint(*y), side)
    return SquareCrop((width - side) // 2, (height - side) // 2, side)


def cropped(box: Box, crop: SquareCrop) -> Box:
    """A box clipped to the crop, in the crop's pixels."""
    left, top, side = crop
    x0, y0, x1, y1 = box
    return (
        min(max(x0 - left, 0), side),
        min(max(y0 - top, 0), side),
        min(max(x1 - left, 0), side),
        min(max(y1 - top, 0), side),
    )


def training_picture(picture: Image.Image, crop: SquareCrop, resolution: int) -> Tensor:
    """The cropped picture, resized: [3, S, S] in 0..1."""
    left, top, side = crop
    box = (left, top, left + side, top + side)
    return _tensor(picture.resize((resolution, resolution), Image.Resampling.BILINEAR, box=box))


def cut_reference(picture: np.ndarray, values: np.ndarray, box: Box, mirrored: bool) -> Tensor | None:
    """One object on white in a square of 224 pixels: [3, 224, 224] in 0..1; None where the mask is empty.

    picture: [H, W, 3] uint8.
    values: the mask [H, W].
    """
    rows, columns = window(box)
    inside = values[rows, columns]
    value = object_value(inside)
    if value is None:
        return None
    pixels, mask = picture[rows, columns], inside == value
    square = cut_out(pixels[:, ::-1], mask[:, ::-1]) if mirrored else cut_out(pixels, mask)
    return _tensor(square.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR))


def latent_mask(values: np.ndarray, boxes: list[Box], resolution: int) -> Tensor:
    """The share of each latent position that the objects of these boxes cover: [S/8, S/8] in 0..1.

    values: the crop's mask [side, side].
    """
    mask = np.zeros(values.shape, bool)
    for box in boxes:
        inside = window(box)
        mask[inside] |= values[inside] == object_value(values[inside])
    places = Image.fromarray(mask).convert("L").resize((resolution // 8, resolution // 8), Image.Resampling.BOX)
    return torch.from_numpy(np.divide(np.asarray(places), 255, dtype=np.float32))


def _tensor(picture: Image.Image) -> Tensor:
    # In numpy, because torch would start threads in every worker.
    pixels = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    return torch.from_numpy(np.divide(pixels, 255, dtype=np.float32, order="C"))
