"""Reads Concept101, the benchmark of the paper's table: 101 pairs of concepts with 12 prompts each.

    dataset_multiconcept.json       [[{class_prompt, instance_data_dir, …}, {…}, {prompt_filename_compose}], …]
    prompts/*.txt                   one prompt a line, {0} and {1} stand for the two concepts
    benchmark_dataset/CONCEPT/*     pictures of one concept
    json_data/CONCEPT/STEM.json     mask[1].box: the object, in pixels after the short side was resized to 800

json_data comes with the paper's code, the rest with CustomConcept101 (arXiv 2212.04488).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from ...attention.reference import Reference, make_reference
from ...common.crops import CROP_SIDE, cut_out
from ...common.pictures import open_picture
from ...common.text import brief
from ...common.text_files import parse_json, read_text

LIST = "dataset_multiconcept.json"
PICTURES, BOXES = "benchmark_dataset", "json_data"
BOX_SIDE = 800  # the short side of the pictures that the boxes were drawn in
KINDS = (".jpg", ".jpeg", ".png", ".tiff", ".webp")


@dataclass(frozen=True)
class Concept:
    """One concept.

    name: its folder's.
    text: the object text.
    pictures: (picture, box) files; the box is None for pictures that are not cropped.
    """

    name: str
    text: str
    pictures: tuple[tuple[Path, Path | None], ...]


@dataclass(frozen=True)
class Pair:
    """Two concepts with their prompts. number: the position in the list, from 0."""

    number: int
    concepts: tuple[Concept, Concept]
    prompts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of its folder, such as “000 pet_cat1+pet_dog2”."""
        return f"{self.number:03d} " + "+".join(concept.name for concept in self.concepts)


def read_pairs(folder: Path, cropped: bool = True) -> list[Pair]:
    """All pairs in the order of the list.

    folder: of Concept101.
    cropped: whether pictures are cropped to their boxes, which must be there then.

    Raises ValueError for anything that is missing.
    """
    try:
        entries = parse_json(read_text(folder / LIST))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"There is no readable {LIST} in {folder} ({error}): name the folder of Concept101, which "
            f"holds {LIST}, prompts/, {PICTURES}/ and {BOXES}/."
        ) from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"The list {folder / LIST} lists no pairs: download Concept101 again.")
    return [_pair(folder, number, entry, cropped) for number, entry in enumerate(entries)]


def digest(pairs: Sequence[Pair]) -> str:
    """A digest of all that runs read from the folder: texts, boxes, and the names and sizes of pictures."""
    concepts = {concept.name: concept for pair in pairs for concept in pair.concepts}
    said: list[Any] = [(pair.name, pair.prompts) for pair in pairs]
    for name, concept in concepts.items():
        files = [(p.name, p.stat().st_size, box and read_text(box)) for p, box in concept.pictures]
        said.append((name, concept.text, files))
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def _pair(folder: Path, number: int, entry: Any, cropped: bool) -> Pair:
    try:
        first, second, last = entry
        texts = [str(each["class_prompt"]).strip() for each in (first, second)]
        names = [_inside(folder, PureWindowsPath(each["instance_data_dir"]).name).name for each in (first, second)]
        file = _inside(folder, last["prompt_filename_compose"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"Pair {number} of {LIST} is not as Concept101 writes it ({type(error).__name__}: {error}): expected two "
            "concepts with class_prompt and instance_data_dir, then prompt_filename_compose."
        ) from error
    try:
        lines = [line.strip() for line in read_text(file).splitlines()]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The prompts of pair {number} cannot be read ({error}): download Concept101 again."
        ) from error
    prompts = tuple(line.replace("{0}", texts[0]).replace("{1}", texts[1]) for line in lines if line)
    if not prompts:
        raise ValueError(f"The prompts of pair {number}, {file}, are empty: download Concept101 again.")
    a, b = (_concept(folder, name, text, cropped) for name, text in zip(names, texts, strict=True))
    return Pair(number, (a, b), prompts)


def _inside(folder: Path, name: str) -> Path:
    """A file that the list names, on any system. Raises ValueError if it is not in the folder."""
    path = PureWindowsPath(name)  # takes both kinds of strokes, drives and other machines
    if path.anchor or ".." in path.parts:
        raise ValueError(f"“{brief(name)}” leads out of the folder")
    return folder.joinpath(*path.parts)


def _concept(folder: Path, name: str, text: str, cropped: bool) -> Concept:
    place = folder / PICTURES / name
    pictures = sorted(p for p in place.glob("*") if p.suffix.lower() in KINDS and not p.name.startswith("."))
    if not pictures:
        raise ValueError(
            f"There are no pictures of “{name}” in {place}: {PICTURES}/ is a download of its own, see the page "
            "of CustomConcept101."
        )
    boxes = [folder / BOXES / name / f"{picture.stem}.json" if cropped else None for picture in pictures]
    if missing := [box for box in boxes if box and not box.is_file()]:
        raise ValueError(
            f"The file {missing[0]} is missing, which says where the object is: take {BOXES}/ from the paper's code, "
            "or use whole pictures with --uncropped."
        )
    return Concept(name, text, tuple(zip(pictures, boxes, strict=True)))


def references(pair: Pair) -> tuple[Reference, ...]:
    """A reference for each concept with all its pictures.

    They are cropped to their boxes, if there are any, and padded with white to squares of CROP_SIDE pixels.
    """
    made = []
    for concept in pair.concepts:
        squares = [_square(picture, box) for picture, box in concept.pictures]
        pixels = torch.from_numpy(np.stack([np.asarray(square) for square in squares])).float() / 255
        made.append(make_reference(pixels, concept.text))
    return tuple(made)


def _square(picture: Path, box: Path | None) -> Image.Image:
    image = load(picture)
    if box is not None:
        image = image.crop(_scaled(_box(box), image.size))
    return cut_out(np.asarray(image), None).resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR)


def _box(file: Path) -> Sequence[float]:
    try:
        box = [float(edge) for edge in parse_json(read_text(file))["mask"][1]["box"]]
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise ValueError("four numbers are needed")
        return box
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"There is no box at mask[1].box in {file} ({type(error).__name__}: {error}).") from error


def _scaled(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in the picture's own pixels, clipped to the picture and at least one pixel large.

    size: width and height of the picture.
    """
    factor = min(size) / BOX_SIDE
    x0, y0, x1, y1 = (edge * factor for edge in box)
    left, top = min(max(round(x0), 0), size[0] - 1), min(max(round(y0), 0), size[1] - 1)
    return left, top, max(min(round(x1), size[0]), left + 1), max(min(round(y1), size[1]), top + 1)


def load(file: Path) -> Image.Image:
    """A picture in RGB, not rotated by EXIF, because the boxes were drawn without it.

    Raises ValueError for a file that is no picture.
    """
    try:
        with open_picture(file) as image:
            return image.convert("RGB")
    except (OSError, ValueError) as error:
        raise ValueError(f"The file {file} is no readable picture ({error}): download or make it again.") from error
