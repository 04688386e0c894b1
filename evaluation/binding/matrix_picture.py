"""The binding report as a picture: a matrix of similarities with crops down and references across."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from ...common.drawing import BLACK, PALE, SOFT, WHITE, Canvas, cividis, ink_on, thumbnail, wrapped
from ...common.tables import NOTHING, number
from .binding import Binding, PictureBinding

CELL, GAP, EDGE = 96, 10, 24  # pixels, as are all sizes below
NAMES = 150  # width of the crops' names
TOP = EDGE + 70 + CELL  # title, references
LEFT = EDGE + NAMES + CELL + GAP  # names, crops
LEGEND, LINE, LETTERS = 76, 22, 15
MOST_ROWS = 12  # crops of one picture that are drawn
LEAST_WIDTH = 760


def draw_matrices(binding: Binding, sentences: Sequence[Sequence[str]]) -> np.ndarray:
    """The matrices of all pictures, in one size: uint8 [B, H, W, 3]. sentences: for each picture the text below it."""
    sheets = [draw_matrix(binding, b, words) for b, words in enumerate(sentences)]
    size = max(sheet.height for sheet in sheets), max(sheet.width for sheet in sheets)
    pages = np.full((len(sheets), *size, 3), 255, np.uint8)
    for page, sheet in zip(pages, sheets, strict=True):
        page[: sheet.height, : sheet.width] = np.asarray(sheet)
    return pages


def draw_matrix(binding: Binding, b: int, sentences: Sequence[str] = ()) -> Image.Image:
    """The matrix of picture b with thumbnails on the axes, beside the picture with its boxes.

    The colours span the similarities of all pictures, so that pictures can be compared. With several pictures, each
    cell also shows in how many of them that object was most like that reference.
    """
    each, objects = binding.pictures[b], len(binding.names)
    every = _rows(each)
    rows = every[: max(MOST_ROWS, objects)]
    more = [f"and {len(every) - len(rows)} things more"] if len(every) > len(rows) else []
    with_boxes = _with_boxes(binding, b, 3 * CELL + GAP)
    right = LEFT + objects * CELL + 2 * EDGE
    width = max(right + with_boxes.width + EDGE, LEAST_WIDTH)
    bottom = TOP + max(len(rows) * CELL + LINE * len(more), with_boxes.height)
    lines = [line for sentence in sentences for line in wrapped(sentence, LETTERS, width - 2 * EDGE)]
    sheet = Canvas(width, bottom + LEGEND + LINE * len(lines) + EDGE // 2)
    found = f"{len(each.present)} of {objects} found"
    title = f"Picture {b + 1} of {len(binding.pictures)}: margin {number(each.margin, sign=True)}, {found}"
    sheet.words((EDGE, EDGE - 8), title, 20)
    sheet.paste((right, TOP), with_boxes)
    for m, name in enumerate(binding.names):
        x = LEFT + m * CELL
        sheet.words((x + CELL / 2, TOP - CELL - 34), name, 16, width=CELL - 4, centred=True)
        sheet.pen.rectangle((x + 4, TOP - CELL - 12, x + CELL - 5, TOP - CELL - 8), fill=binding.colour(m))
        sheet.paste((x + 4, TOP - CELL - 4), thumbnail(binding.thumbnails[m], CELL - 8))
    span, of = _span(binding), len(binding.pictures)
    counts = [[f"{count} of {of}" if of > 1 else "" for count in row] for row in binding.most_like_counts().tolist()]
    for line, (m, crop) in enumerate(rows):
        _draw_row(sheet, TOP + line * CELL, binding, each, m, crop, span, counts[m])
    for words in more:
        sheet.words((EDGE + 14, TOP + len(rows) * CELL), words, 14, SOFT)
    _draw_legend(sheet, EDGE, bottom + 16, span, of)
    for line, words in enumerate(lines):
        sheet.words((EDGE, bottom + LEGEND + LINE * line), words, LETTERS)
    return sheet.image


def _rows(each: PictureBinding) -> list[tuple[int, int | None]]:
    """The matrix's rows as (object, number of its crop or None): every object, then the surplus crops."""
    return [*enumerate(each.crop_of), *((m, crop) for crop, m in enumerate(each.found_as) if crop not in each.crop_of)]


def _draw_row(
    sheet: Canvas, y: int, binding: Binding, each: PictureBinding, m: int, crop: int | None, span: tuple[float, float],
    counts: Sequence[str],
) -> None:  # fmt: skip
    extra = crop is not None and crop != each.crop_of[m]
    margin = number(each.margin_by_object().get(m), sign=True)
    below = "one too many" if extra else "not found" if crop is None else margin
    sheet.pen.rectangle((EDGE, y + 6, EDGE + 4, y + CELL - 8), fill=binding.colour(m))
    name = f"{binding.names[m]}, again" if extra else binding.names[m]
    sheet.words((EDGE + 14, y + CELL / 2 - 20), name, 18, width=NAMES - 20)
    sheet.words((EDGE + 14, y + CELL / 2 + 4), below, 14, SOFT)
    if crop is not None:
        sheet.paste((LEFT - CELL - 2, y + 4), thumbnail(np.asarray(each.crops[crop]), CELL - 8))
    for j in range(len(binding.names)):
        x0, y0, x1, y1 = LEFT + j * CELL + 2, y + 2, LEFT + (j + 1) * CELL - 3, y + CELL - 3
        middle, bottom = (x0 + x1) / 2, y + CELL - 30
        if crop is None:
            sheet.pen.rectangle((x0, y0, x1, y1), fill=PALE)
            sheet.words((middle, y + CELL / 2 - 13), NOTHING, 16, SOFT, centred=True)
            sheet.words((middle, bottom), counts[j], 13, SOFT, centred=True)
            continue
        value = float(each.similarity[crop, j])
        ground = cividis((value - span[0]) / (span[1] - span[0]))
        ink = ink_on(ground)
        sheet.pen.rectangle((x0, y0, x1, y1), fill=ground)
        sheet.words((middle, y + CELL / 2 - 13), number(value, 2), 22, ink, centred=True)
        if extra:
            continue
        sheet.words((middle, bottom), counts[j], 13, ink, centred=True)
        if j == m:
            sheet.pen.rectangle((x0 + 3, y0 + 3, x1 - 3, y1 - 3), outline=ink, width=3)
        if each.most_like[m] == j:
            dot = x0 + 18 if counts[j] else middle
            sheet.pen.ellipse((dot - 5, bottom + 3, dot + 5, bottom + 13), fill=ink)


def _draw_legend(sheet: Canvas, x: int, y: int, span: tuple[float, float], picture_count: int) -> None:
    length = 120
    for step in range(length):
        sheet.pen.line((x + step, y, x + step, y + 16), fill=cividis(step / (length - 1)))
    sheet.words((x, y + 20), number(span[0], 2), 13, SOFT)
    sheet.words((x + length - 26, y + 20), number(span[1], 2), 13, SOFT)
    sheet.words((x + 134, y - 2), "cosine similarity")
    sheet.pen.rectangle((x + 290, y, x + 308, y + 16), outline=BLACK, width=3)
    sheet.words((x + 316, y - 2), "its own reference")
    sheet.pen.ellipse((x + 470, y + 2, x + 482, y + 14), fill=BLACK)
    sheet.words((x + 490, y - 2), "what it is most like")
    if picture_count > 1:
        sheet.words(
            (x + 290, y + 20), f"1 of {picture_count}: pictures of the batch in which it is most like that", 14, SOFT
        )


def _with_boxes(binding: Binding, b: int, side: int) -> Image.Image:
    """Picture b scaled into a square of `side` pixels, every box in its object's colour."""
    image, each = Image.fromarray(binding.images[b]), binding.pictures[b]
    scale = side / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    pen = ImageDraw.Draw(small)
    for box, m in zip(each.boxes, each.found_as, strict=True):
        x0, y0, x1, y1 = (round(edge * scale) for edge in box)
        for inset, ink, width in ((0, WHITE, 5), (1, binding.colour(m), 3)):
            corners = (x0 + inset, y0 + inset, max(x1 - 1 - inset, x0 + inset), max(y1 - 1 - inset, y0 + inset))
            pen.rectangle(corners, outline=ink, width=width)
    return small


def _span(binding: Binding) -> tuple[float, float]:
    """The smallest and the largest similarity over all pictures, widened by 0.5 each way if they are equal."""
    values = [value for each in binding.pictures for value in each.similarity.flatten().tolist()] or [0.0, 1.0]
    low, high = min(values), max(values)
    return (low, high) if high - low > 1e-3 else (low - 0.5, high + 0.5)
