"""A choice from a folder of training data: a text file of picture ids, one a line, below a line that names the folder.

Training takes such a file wherever it takes a folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..common.atomic_io import write_whole

_FOLDER = "# dataset: "


def write_kept(path: Path, folder: Path, ids: Iterable[str]) -> None:
    """The folder is named relative to the file when the file lies in it, so that both can be moved together."""
    folder, path = folder.resolve(), path.resolve()
    named = os.path.relpath(folder, path.parent) if path.is_relative_to(folder) else str(folder)
    write_whole(path, "".join(f"{line}\n" for line in (_FOLDER + named, *ids)))


def picture_ids(path: Path) -> tuple[Path, list[str]]:
    """The folder and the ids of a folder of training data, or of a list of kept pictures."""
    if path.is_file():
        return read_kept(path)
    ids = sorted(file.stem for file in (path / "jsons").glob("*.json") if not file.name.startswith("."))
    if not ids:
        raise ValueError(f"No training data in {path}: expected jsons/ID.json, with images/ID.png and masks/ID.png.")
    return path, ids


def read_kept(path: Path) -> tuple[Path, list[str]]:
    """The folder and the ids. Raises ValueError for a file that is no such list."""
    try:
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
