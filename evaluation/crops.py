"""An object cut out of its picture, as in training: by box and mask, on white, in a square."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attention.reference import Reference
from .detections import Box, Detection, Detections

SIDE = 224  # what CLIP sees
MASK_THRESHOLD = 0.5
WHITE = np.uint8(255)


def crop(image: Tensor, detection: Detection) -> Image.Image:
    """A square picture of one object on white, RGB, of SIDE pixels.

    image [H, W, 3 or 4] in 0..1. Raises ValueError where box and mask leave nothing of the object.
    """
    height, width = image.shape[:2]
    rows, columns = window(detection.box)
    pixels = as_bytes(image[rows, columns, :3])
    mask = np.ones(pixels.shape[:2], bool)
    if detection.mask is not None:
        if detection.mask.shape != (height, width):
            raise ValueError(
                f"A picture of {width}×{height} pixels came with an object's mask of "
                f"{detection.mask.shape[-1]}×{detection.mask.shape[-2]}: detect in the very picture that is scored."
            )
        mask = (detection.mask[rows, columns] > MASK_THRESHOLD).numpy(force=True)
    if not mask.any():
        raise ValueError(
            f"Nothing is left of an object in a picture of {width}×{height} pixels: its box is "
            f"{describe(detection.box)}, and "
            + ("its mask is empty there." if mask.size else "that lies outside.")
            + " Detect again with other words or a lower threshold, or correct the box."
        )
    return cut_out(pixels, mask).resize((SIDE, SIDE), Image.Resampling.BILINEAR)


def check_pictures(images: Tensor, detections: Detections) -> None:
    """Raises ValueError unless these [B, H, W, C] are as many and as large as the pictures that were searched."""
    if images.ndim != 4 or images.shape[-1] not in (3, 4):
        raise ValueError(
            f"The pictures have the shape {list(images.shape)}; expected [pictures, height, width, 3], as the host's "
            "IMAGE is."
        )
    got, searched = (len(images), *images.shape[1:3]), (len(detections), detections.height, detections.width)
    if got != searched:
        now, before = (f"{count} of {width}×{height} pixels" for count, height, width in (got, searched))
        raise ValueError(
            f"The pictures are {now}, but the detections belong to {before}: connect the same pictures to the "
            "detector and to this node."
        )


def cut_out(pixels: np.ndarray, mask: np.ndarray | None) -> Image.Image:
    """An object's pixels [h, w, 3] uint8 in the middle of a square; outside its mask [h, w] bool is white.

    Holes of the mask count as the object. The equal shares of the square's two margins are rounded to the left and up.
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
    """Adds what has the object on all four sides, in its row and in its column."""
    across, down = mask.cumsum(1), mask.cumsum(0)
    between = (across > 0) & (across < across[:, -1:]) & (down > 0) & (down < down[-1:])
    return mask | between


def window(box: Box) -> tuple[slice, slice]:
    """A box as rows and columns of an array, of one pixel at least."""
    x0, y0, x1, y1 = (max(0, int(round(edge))) for edge in box)
    return slice(y0, max(y1, y0 + 1)), slice(x0, max(x1, x0 + 1))


def describe(box: Box) -> str:
    """Left, top – right, bottom, in whole pixels."""
    x0, y0, x1, y1 = (round(edge) for edge in box)
    return f"({x0}, {y0})–({x1}, {y1})"


def pictures_of(reference: Reference) -> list[np.ndarray]:
    """All pictures of an object, uint8 [H, W, 3], of any sizes."""
    return [picture for images, _ in reference.batches for picture in as_bytes(images)]


def as_bytes(image: Tensor) -> np.ndarray:
    """[..., 3] in 0..1 -> uint8"""
    return (image.float().nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8).numpy(force=True)
