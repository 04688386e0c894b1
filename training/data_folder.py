"""A folder of training data: `images/ID.png`, `masks/ID.png`, `jsons/ID.json`; and lists of kept pictures from one.

A list is a text file: the first line names the folder, each further line is one picture id. Training takes such a file
wherever it takes a folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..common.atomic_io import atomic_write
from ..common.pictures import open_picture
from ..common.text import brief
from ..common.text_files import parse_json, read_text

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def expanded(name: str) -> Path:
    """A path with “~” in place. Raises ValueError if it names a user whom the machine does not know."""
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise ValueError(
            f"“{brief(name)}” begins with a user whom this machine does not know: give the whole path."
        ) from error


def refuse_other_machine(name: str) -> None:
    """Raises ValueError for a path of Windows on another machine: it would log in at whatever machine a file or a
    workflow names.
    """
    if (name.replace("/", "\\") if os.name == "nt" else name).startswith("\\\\"):
        raise ValueError(
            f"“{brief(name)}” is on another machine: connect its folder as a drive with a letter, and give that path."
        )


def picture_path(folder: Path, picture_id: str) -> Path:
    for ending in PICTURES:
        if (path := folder / "images" / (picture_id + ending)).is_file():
            return path
    raise FileNotFoundError(f"images/{picture_id}.png is missing")


def mask_path(folder: Path, picture_id: str) -> Path:
    return folder / "masks" / f"{picture_id}.png"


def read_json(folder: Path, picture_id: str) -> dict[str, Any]:
    path = folder / "jsons" / f"{picture_id}.json"
    data = parse_json(read_text(path))
    if not isinstance(data, dict) or not isinstance(data.get("final_masks"), list) or "text" not in data:
        raise ValueError(f"jsons/{picture_id}.json lacks “text” or “final_masks”")
    return data


def read_mask(folder: Path, picture_id: str, size: tuple[int, int]) -> np.ndarray:
    """The values [H, W] of a picture's mask: 0 for the background, the number of an object where it is.

    Of a mask in colours the first channel counts. Which number is which object, nobody says: an object's is the most
    frequent one in its box (`filters.object_value`).

    size: (width, height) of the picture. Raises ValueError if they differ in size.
    """
    with open_picture(mask_path(folder, picture_id)) as image:
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
        lines = [line.strip() for line in read_text(path).splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(f"The list of kept pictures {path} cannot be read ({error}).") from error
    if not lines or not lines[0].startswith(_FOLDER):
        raise ValueError(
            f"{path} is no list of kept pictures: its first line must be “{_FOLDER}FOLDER”, then one picture id a "
            "line. `mip.py curate --keep` writes such files."
        )
    ids = [line for line in lines[1:] if line and not line.startswith("#")]
    if not ids:
        raise ValueError(f"The list of kept pictures {path} is empty; keep more with `mip.py curate --keep`.")
    if away := next((each for each in ids if set(each) & set("/\\:")), None):
        raise ValueError(
            f"The list of kept pictures {path} holds “{brief(away)}”, which is a path: list ids of pictures."
        )
    folder = lines[0].removeprefix(_FOLDER).strip()
    refuse_other_machine(folder)
    return path.parent / folder, ids
