"""The arms in one picture: a row per prompt with its references at the left, and a column per arm."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...common.atomic_io import atomic_file
from .arms import Trials

SIDE, GAP, SMALL = 128, 8, 60  # pixels: of a picture, between pictures, of a reference
HEAD = 56
INK, GREY = (20, 20, 20), (120, 120, 120)


def save(image: Tensor, file: Path) -> None:
    """Write a picture [3, S, S] in 0..1 as PNG."""
    with atomic_file(file) as temporary:  # another shard may be drawing the grid
        to_pil(image).save(temporary, "PNG")


def to_pil(image: Tensor) -> Image.Image:
    """A picture [3, S, S] in 0..1."""
    return Image.fromarray((image.movedim(0, -1).cpu().numpy() * 255).round().astype(np.uint8))


def draw_grid(trials: Trials, columns: Mapping[str, Sequence[Path]]) -> Image.Image | None:
    """The grid; None if there are no pictures.

    trials: the prompts and references of the rows.
    columns: by arm, the file of its picture for each trial. Arms without any picture are left out.
    """
    columns = {name: files for name, files in columns.items() if any(file.is_file() for file in files)}
    if not columns:
        return None
    rows = [i for i in range(len(trials)) if any(files[i].is_file() for files in columns.values())]
    left = 2 * SMALL + GAP + 2 * GAP
    width = left + len(columns) * (SIDE + GAP) + GAP
    line = SIDE + 3 * GAP
    sheet = Image.new("RGB", (width, HEAD + len(rows) * line + GAP), "white")
    pen, font, small = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(11)
    pen.text((GAP, HEAD - 8), "references", INK, font, anchor="ls")
    for column, name in enumerate(columns):
        x = left + column * (SIDE + GAP)
        pen.multiline_text((x, HEAD - 8), "\n".join(textwrap.wrap(name, 18)), INK, font, anchor="ld", spacing=2)
    for place, trial in enumerate(rows):
        y = HEAD + place * line
        pen.text((left, y + SIDE + 2), trials.prompts[trial], GREY, small)
        for i, picture in enumerate(trials.references[trial]):
            at = GAP + (i % 2) * (SMALL + GAP), y + (i // 2) * (SMALL + GAP)
            sheet.paste(to_pil(picture).resize((SMALL, SMALL), Image.Resampling.LANCZOS), at)
            pen.rectangle((at[0] - 1, at[1] - 1, at[0] + SMALL, at[1] + SMALL), outline=(210, 210, 210))
        for column, files in enumerate(columns.values()):
            if files[trial].is_file():
                with Image.open(files[trial]) as picture:
                    sheet.paste(picture.convert("RGB"), (left + column * (SIDE + GAP), y))
    return sheet
