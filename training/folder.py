"""The files of a folder of training data: `images/ID.png`, `masks/ID.png`, `jsons/ID.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def picture_path(folder: Path, name: str) -> Path:
    for ending in PICTURES:
        if (path := folder / "images" / (name + ending)).is_file():
            return path
    raise FileNotFoundError(f"images/{name}.png is missing")


def mask_path(folder: Path, name: str) -> Path:
    return folder / "masks" / f"{name}.png"


def read_json(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "jsons" / f"{name}.json").read_text("utf-8"))


def read_mask(folder: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    """The values [H, W] of a picture's mask. Raises ValueError for one of another size (width, height)."""
    with Image.open(mask_path(folder, name)) as image:
        values = np.array(image)
    values = values[..., 0] if values.ndim == 3 else values
    if values.shape != size[::-1]:
        raise ValueError(f"the mask is {values.shape[::-1]}, the picture {size}")
    return values
