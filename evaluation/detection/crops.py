"""Cuts objects out of their pictures as in training: by box and mask, on white, in a square."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from ...attention.reference import Reference
from ...common.crops import CROP_SIDE, as_bytes, check_images, cut_out, describe, window
from .detections import Detection, Detections

MASK_THRESHOLD = 0.5


def crop(image: Tensor, detection: Detection) -> Image.Image:
    """One object on white: a square RGB picture of CROP_SIDE pixels.

    image [H, W, 3 or 4]: in 0..1.

    Raises ValueError if box and mask leave nothing of the object.
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
    return cut_out(pixels, mask).resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR)


def check_pictures(images: Tensor, detections: Detections) -> None:
    """Raises ValueError unless images [B, H, W, C] have the number and the size of the pictures that were searched."""
    check_images(images)
    got, searched = (len(images), *images.shape[1:3]), (len(detections), detections.height, detections.width)
    if got != searched:
        now, before = (f"{count} of {width}×{height} pixels" for count, height, width in (got, searched))
        raise ValueError(
            f"The pictures are {now}, but the detections belong to {before}: connect the same pictures to the "
            "detector and to this node."
        )


def pictures_of(reference: Reference) -> list[np.ndarray]:
    """All pictures of a reference, uint8 [H, W, 3] each, of any sizes."""
    return [picture for images, _ in reference.batches for picture in as_bytes(images)]
