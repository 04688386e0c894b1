"""A sheet of paper: words that fit, thumbnails, colours that all eyes can order."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont

from ..attention.letters import letters

# Cividis, dark to light in the same order to all eyes (Nuñez, Anderton, Renslow, doi 10.1371/journal.pone.0199239).
CIVIDIS = ((0, 34, 78), (65, 77, 107), (124, 123, 120), (188, 175, 111), (254, 232, 56))
BLACK, SOFT, PALE, WHITE = (0, 0, 0), (90, 90, 90), (226, 226, 226), (255, 255, 255)
SMALLEST = 13  # pixels of a legible letter

Colour = tuple[int, int, int]


class Canvas:
    """A white picture to draw on; coordinates in pixels from the upper left."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), WHITE)
        self.pen = ImageDraw.Draw(self.image)

    def words(
        self, at: tuple[float, float], words: str, size: int = 15, ink: Colour = BLACK, *, width: float | None = None,
        centred: bool = False,
    ) -> None:  # fmt: skip
        """One line from its upper left, or about its upper middle; smaller, then shortened, where it is too wide."""
        words, font = fitted(words, size, width)
        x = at[0] - font.getlength(words) / 2 if centred else at[0]
        self.pen.text((x, at[1]), words, font=font, fill=ink)

    def paste(self, at: tuple[int, int], picture: Image.Image) -> None:
        self.image.paste(picture, at)


def cividis(share: float) -> Colour:
    """The colour at 0 to 1."""
    at = min(max(share, 0.0), 1.0) * (len(CIVIDIS) - 1)
    i = min(int(at), len(CIVIDIS) - 2)
    red, green, blue = (round(p + (q - p) * (at - i)) for p, q in zip(CIVIDIS[i], CIVIDIS[i + 1], strict=True))
    return red, green, blue


def ink_on(colour: Colour) -> Colour:
    """Black on light colours, white on dark ones."""
    return BLACK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 130 else WHITE


def thumbnail(pixels: np.ndarray, side: int) -> Image.Image:
    """A whole picture, uint8 [H, W, 3], in a white square with a thin frame."""
    image = Image.fromarray(pixels)
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    square = Image.new("RGB", (side, side), WHITE)
    square.paste(image.resize(size, Image.Resampling.LANCZOS), ((side - size[0]) // 2, (side - size[1]) // 2))
    ImageDraw.Draw(square).rectangle((0, 0, side - 1, side - 1), outline=PALE)
    return square


def wrapped(words: str, size: int, width: float) -> list[str]:
    """Lines of at most `width` pixels, broken between words."""
    words = _plain(words)
    lines, font = [""], letters(words, size)
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def fitted(words: str, size: int, width: float | None = None) -> tuple[str, FreeTypeFont]:
    """The words, shortened if need be, and the font in which they take at most `width` pixels."""
    words = _plain(words)
    if width is None:
        return words, letters(words, size)
    while size > SMALLEST and letters(words, size).getlength(words) > width:
        size -= 1
    font = letters(words + "…", size)
    if font.getlength(words) > width:
        while words and font.getlength(words + "…") > width:
            words = words[:-1]
        words = words.rstrip() + "…"
    return words, font


def _plain(words: str) -> str:
    """Signs that Pillow's own font lacks, by signs that it has."""
    return words.replace("−", "-").replace("–", "-")
