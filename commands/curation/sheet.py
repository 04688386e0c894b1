"""A contact sheet of the best and the worst pictures with their scores, to see what the score prefers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw

from ...common.drawing import colour, drawable, ink_on, letters

SIDE, GAP, TEXT = 192, 10, 46  # pixels: a picture's square, the space around it, the words below it


class Entry(NamedTuple):
    """One picture of the sheet. boxes: (left, top, right, bottom) in pixels, one for each label."""

    picture: Image.Image
    boxes: Sequence[tuple[float, float, float, float]]
    labels: Sequence[str]
    caption: str


def contact_sheet(sections: Sequence[tuple[str, Sequence[Entry]]], columns: int = 6) -> bytes:
    """The sheet as PNG. sections: (title, entries), from top to bottom."""
    rows = [(title, list(entries)) for title, entries in sections if entries]
    lines = sum(-(-len(entries) // columns) for _, entries in rows)
    width = columns * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, lines * (SIDE + TEXT + GAP) + len(rows) * 40 + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for title, entries in rows:
        draw.text((GAP, top + 4), title, fill="black", font=letters(title, 20))
        top += 40
        for start in range(0, len(entries), columns):
            for column, entry in enumerate(entries[start : start + columns]):
                _draw(sheet, draw, GAP + column * (SIDE + GAP), top, entry)
            top += SIDE + TEXT + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _draw(sheet: Image.Image, draw: ImageDraw.ImageDraw, left: int, top: int, entry: Entry) -> None:
    scale = SIDE / max(entry.picture.size)
    size = tuple(max(1, round(side * scale)) for side in entry.picture.size)
    x, y = left + (SIDE - size[0]) // 2, top + (SIDE - size[1]) // 2
    draw.rectangle((left, top, left + SIDE - 1, top + SIDE - 1), fill="#f1f3f5")
    sheet.paste(entry.picture.convert("RGB").resize((size[0], size[1])), (x, y))
    for i, (box, label) in enumerate(zip(entry.boxes, drawable(entry.labels), strict=True)):
        ink = colour(i)
        corners = [x + box[0] * scale, y + box[1] * scale, x + box[2] * scale, y + box[3] * scale]
        draw.rectangle(corners, outline=ink, width=2)
        at, font = (corners[0] + 3, corners[1] + 2), letters(label, 13)
        draw.rectangle(draw.textbbox(at, label, font=font), fill=ink)
        draw.text(at, label, fill=ink_on(ink), font=font)
    draw.multiline_text((left, top + SIDE + 3), entry.caption, fill="black", font=letters(entry.caption, 13), spacing=2)
