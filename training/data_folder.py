"""A folder of training data: `images/ID.png`, `masks/ID.png`, `jsons/ID.json`; and lists of kept pictures from one.

A list is a text file: the first line names the folder, each further line is one picture id. Training takes such a file
wherever it takes a folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.atomic_io import atomic_write
from ..common.pictures import open_picture
from ..common.text import shown

LARGEST = 1 << 24  # bytes of a json, or of a list of pictures
PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def expanded(name: str) -> Path:
    """A path with “~” in place. Raises ValueError if it names a user whom the machine does not know."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"“{shown(name)}” begins with a user whom this machine does not know: give the whole path."
        ) from error


def picture_path(folder: Path, name: str) -> Path:
    for ending in PICTURES:
        if (path := folder / "images" / (name + ending)).is_file():
            return path
    raise FileNotFoundError(f"images/{name}.png is missing")


def mask_path(folder: Path, name: str) -> Path:
    return folder / "masks" / f"{name}.png"


def read_json(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "jsons" / f"{name}.json"
    if not path.is_file() or path.stat().st_size > LARGEST:  # a pipe would block for ever
        raise ValueError(f"jsons/{name}.json is no file of at most {LARGEST >> 20} MB")
    return json.loads(path.read_text("utf-8"))


def read_mask(folder: Path, name: str, size: tuple[int, int]) -> np.ndarray:
    """The values [H, W] of a picture's mask. size: (width, height) of the picture. Raises ValueError if they differ in
    size.
    """
    with open_picture(mask_path(folder, name)) as image:
        values = np.array(image)
    values = values[..., 0] if values.ndim == 3 else values
    if values.shape != size[::-1]:
        raise ValueError(f"the mask is {values.shape[::-1]}, the picture {size}")
    return values


_FOLDER = "# dataset: "


def write_subset(path: Path, folder: Path, ids: Iterable[str]) -> None:
    """Write a list of kept pictures.

    If the list lies inside the folder, it names the folder relative to itself, so that both can be moved together.
    """
    folder, path = folder.resolve(), path.resolve()
    named = os.path.relpath(folder, path.parent) if path.is_relative_to(folder) else str(folder)
    atomic_write(path, "".join(f"{line}\n" for line in (_FOLDER + named, *ids)))


def picture_ids(path: Path) -> tuple[Path, list[str]]:
    """The folder and the picture ids of a folder of training data, or of a list of kept pictures. Raises ValueError."""
    if path.is_file():
        return read_subset(path)
    ids = sorted(file.stem for file in (path / "jsons").glob("*.json") if not file.name.startswith("."))
    if not ids:
        raise ValueError(f"No training data in {path}: expected jsons/ID.json, with images/ID.png and masks/ID.png.")
    return path, ids


def read_subset(path: Path) -> tuple[Path, list[str]]:
    """The folder and the ids of a list of kept pictures. Raises ValueError for a file that is not such a list."""
    try:
        if path.stat().st_size > LARGEST:
            raise OSError(f"it has more than {LARGEST >> 20} MB")
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The list of kept pictures {path} cannot be read ({error}).") from error
    if not lines or not lines[0].startswith(_FOLDER):
        raise ValueError(
            f"{path} is no list of kept pictures: its first line must be “{_FOLDER}FOLDER”, then one picture id a "
            "line. `mip.py curate --keep` writes such files."
        )
    ids = [line for line in lines[1:] if line and not line.startswith("#")]
    if not ids:
        raise ValueError(f"The list of kept pictures {path} is empty; keep more with `mip.py curate --keep`.")
    return path.parent / lines[0].removeprefix(_FOLDER).strip(), ids
