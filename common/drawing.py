"""Colours of objects, fonts and a canvas, for pictures that people read.

Where no installed font has the characters of an object's name, the picture shows its number instead.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

Colour = tuple[int, int, int]

# Okabe and Ito's colours, which colour-blind people can tell apart too. Black is kept for text.
FIRST = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66))
# Further hues advance by the golden angle, which never repeats one; they are dark, light and medium in turn. With this
# first hue the first two dozen colours are about as far apart as those of Okabe and Ito.
BEGINNING, GOLDEN, LIGHTNESS, SATURATION = 115, 137.5, (0.25, 0.7, 0.55), 0.65
# What a user can choose for an object; the named ones are those of FIRST.
AUTOMATIC = "automatic"
MAP_COLOURS = (AUTOMATIC, "blue", "orange", "green", "pink", "red", "light blue", "yellow")


def colour(number: int) -> Colour:
    """The colour with a number, from 0. `colour_numbers` says which is an object's."""
    if number < len(FIRST):
        return FIRST[number]
    turn = number - len(FIRST)
    hue = (BEGINNING + turn * GOLDEN) / 360
    red, green, blue = colorsys.hls_to_rgb(hue % 1, LIGHTNESS[turn % len(LIGHTNESS)], SATURATION)
    return round(red * 255), round(green * 255), round(blue * 255)


def chosen_colour(name: str) -> int | None:
    """The number of a colour by its name, one of `MAP_COLOURS`; None for `AUTOMATIC`. Raises ValueError for others."""
    if name not in MAP_COLOURS:
        raise ValueError(f"The map colour is “{name}”; it must be one of {', '.join(MAP_COLOURS)}.")
    return None if name == AUTOMATIC else MAP_COLOURS.index(name) - 1


def colour_numbers(chosen: Iterable[int | None]) -> tuple[int, ...]:
    """The number of each object's colour: the one chosen for it, else the first that is left."""
    chosen = tuple(chosen)
    left = (number for number in count() if number not in chosen)
    return tuple(next(left) if number is None else number for number in chosen)


# Pillow's own font, then files that Pillow finds in the font folders of Linux, macOS and Windows.
OWN = ""
FILES = (
    OWN,
    "DejaVuSans.ttf",
    "segoeui.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJK-VF.ttc",
    "NotoSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "PingFang.ttc",
    "Hiragino Sans GB.ttc",
    "msyh.ttc",
    "malgun.ttf",
    "Arial Unicode.ttf",
    "tahoma.ttf",
    "Nirmala.ttc",
)
SIMPLIFIED = {"NotoSansCJK-Regular.ttc": 2, "NotoSansCJK-VF.ttc": 2}  # index of the face; index 0 is Japanese
NO_SIGN = "\U0010ffff"  # a noncharacter: a font draws it like every character it lacks


def letters(words: str, size: int) -> FreeTypeFont:
    """The first font that has all characters of the words; Pillow's own if none has."""
    font = _font(_file(words) or OWN, size)
    assert font is not None  # _file returns only fonts that load
    return font


def drawable(names: Sequence[str]) -> tuple[str, ...]:
    """Objects' names as pictures can show them: “object 1” if no font has the characters of the first name."""
    return tuple(name if _file(name) is not None else f"object {number}" for number, name in enumerate(names, 1))


def _file(words: str) -> str | None:
    signs = {sign for sign in words if sign.isprintable() and not sign.isspace()}
    return next((file for file in FILES if all(_has(file, sign) for sign in signs)), None)


@cache
def _has(file: str, sign: str) -> bool:
    font = _font(file, 16)
    return font is not None and _drawn(font, sign) != _drawn(font, NO_SIGN)


def _drawn(font: FreeTypeFont, sign: str) -> bytes:
    picture = Image.new("L", (40, 40))
    ImageDraw.Draw(picture).text((10, 10), sign, 255, font)
    return picture.tobytes()


@cache
def _font(file: str, size: int) -> FreeTypeFont | None:
    """A font of a size in pixels; None if the machine does not have it."""
    if file == OWN:
        own = ImageFont.load_default(size)
        assert isinstance(own, FreeTypeFont)  # it is one when a size is given
        return own
    try:
        return ImageFont.truetype(file, size, SIMPLIFIED.get(file, 0))
    except OSError:
        return None


# Cividis: its order from dark to light looks the same with colour blindness (Nuñez, Anderton, Renslow,
# doi 10.1371/journal.pone.0199239).
CIVIDIS = ((0, 34, 78), (65, 77, 107), (124, 123, 120), (188, 175, 111), (254, 232, 56))
BLACK, SOFT, PALE, WHITE = (0, 0, 0), (90, 90, 90), (226, 226, 226), (255, 255, 255)
LONGEST = 300  # letters of a line
SMALLEST = 13  # pixels of a legible letter


class Canvas:
    """A white picture to draw on. Coordinates are in pixels from the upper left."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), WHITE)
        self.pen = ImageDraw.Draw(self.image)

    def words(
        self, at: tuple[float, float], words: str, size: int = 15, ink: Colour = BLACK, *, width: float | None = None,
        centred: bool = False,
    ) -> None:  # fmt: skip
        """Draw one line of text. `at` is its upper left, or its upper middle if `centred`.

        A line wider than `width` gets a smaller font, then is shortened.
        """
        words, font = fitted(words, size, width)
        x = at[0] - font.getlength(words) / 2 if centred else at[0]
        self.pen.text((x, at[1]), words, font=font, fill=ink)

    def paste(self, at: tuple[int, int], picture: Image.Image) -> None:
        self.image.paste(picture, at)


def cividis(fraction: float) -> Colour:
    """The colour of a fraction in 0..1."""
    at = min(max(fraction, 0.0), 1.0) * (len(CIVIDIS) - 1)
    i = min(int(at), len(CIVIDIS) - 2)
    red, green, blue = (round(p + (q - p) * (at - i)) for p, q in zip(CIVIDIS[i], CIVIDIS[i + 1], strict=True))
    return red, green, blue


def ink_on(colour: Colour) -> Colour:
    """Black on light colours, white on dark ones."""
    return BLACK if 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 130 else WHITE


def thumbnail(pixels: np.ndarray, side: int) -> Image.Image:
    """A picture [H, W, 3] uint8, scaled to fit a white square with a thin frame."""
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
    """The words, shortened if necessary, and the font in which they take at most `width` pixels."""
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
    """Replaces characters that Pillow's own font lacks. No picture is wide enough for more letters than are kept."""
    return words[:LONGEST].replace("−", "-").replace("–", "-")
