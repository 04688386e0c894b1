"""Numbers as bars, each with its name below."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image

from .drawing import PALE, SOFT, Canvas, colour

BAR, GAP, EDGE = 44, 8, 24  # pixels, as are all sizes below
HEIGHT = 160
TITLE, NUMBERS, NAMES = 40, 22, 26


def draw_bars(title: str, numbers: Mapping[str, float], full: float = 1.0) -> Image.Image:
    """A bar for each number of 0 or more. full: at least the number that the highest bar stands for."""
    most = max(full, *numbers.values())
    width = 2 * EDGE + len(numbers) * (BAR + GAP) - GAP
    sheet = Canvas(width, EDGE + TITLE + NUMBERS + HEIGHT + NAMES + EDGE // 2)
    sheet.words((EDGE, EDGE - 8), title, 18, width=width - 2 * EDGE)
    bottom = EDGE + TITLE + NUMBERS + HEIGHT
    for i, (name, number) in enumerate(numbers.items()):
        left, height = EDGE + i * (BAR + GAP), round(HEIGHT * number / most)
        ink = colour(0) if number else PALE
        sheet.pen.rectangle((left, bottom - max(height, 1), left + BAR, bottom), fill=ink)
        sheet.words((left + BAR / 2, bottom - height - NUMBERS), f"{number:.3g}", 14, width=BAR, centred=True)
        sheet.words((left + BAR / 2, bottom + 6), name, 13, SOFT, width=BAR + GAP, centred=True)
    return sheet.image
