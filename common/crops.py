"""Boxes in pixels. Objects cut out of their pictures as in training: by box and mask, on white, in a square."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels; x1 and y1 are excluded


def bounds(mask: Tensor) -> Box:
    """The bounding box of a mask [H, W] bool; at least one pixel must be set."""
    rows, columns = (torch.nonzero(mask.any(axis)).flatten() for axis in (1, 0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


CROP_SIDE = 224  # pixels of CLIP's input
WHITE = np.uint8(255)


def cut_out(pixels: np.ndarray, mask: np.ndarray | None) -> Image.Image:
    """An object in the middle of a white square.

    pixels: [h, w, 3] uint8.
    mask: [h, w] bool; pixels outside become white. Holes of the mask belong to the object. None: all pixels are kept.

    An odd margin leaves the object one pixel further to the left or up.
    """
    if mask is not None:
        pixels = np.where(fill_holes(mask)[..., None], pixels, WHITE)
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), WHITE, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return Image.fromarray(square)


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Set every pixel that has mask pixels on all four sides, in its row and in its column."""
    across, down = mask.cumsum(1), mask.cumsum(0)
    between = (across > 0) & (across < across[:, -1:]) & (down > 0) & (down < down[-1:])
    return mask | between


def window(box: Box) -> tuple[slice, slice]:
    """A box as slices of rows and columns, at least one pixel each."""
    x0, y0, x1, y1 = (max(0, int(round(edge))) for edge in box)
    return slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))


def box_area(box: Box) -> float:
    """Width times height, 0 for an empty box."""
    x0, y0, x1, y1 = box
    return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes have in common."""
    return box_area((max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])))


def describe(box: Box) -> str:
    """The box as text: (left, top)–(right, bottom) in integer pixels."""
    x0, y0, x1, y1 = (round(edge) for edge in box)
    return f"({x0}, {y0})–({x1}, {y1})"


def as_bytes(image: Tensor) -> np.ndarray:
    """[..., 3] in 0..1 -> uint8 in 0..255."""
    return (image.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).numpy(force=True)


def check_images(images: Tensor) -> None:
    """Raises ValueError unless these are pictures [B, H, W, 3 or 4], at least one, of a size."""
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or 0 in images.shape:
        raise ValueError(
            f"The pictures have the shape {list(images.shape)}; expected [pictures, height, width, 3], as the host's "
            "IMAGE is."
        )


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    both = overlap(a, b)
    either = box_area(a) + box_area(b) - both
    return both / either if either > 0 else 0.0
