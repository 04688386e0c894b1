"""Letters for the words on pictures, in any script: Pillow's own font knows little more than English.

On a machine without a font for an object's name the object goes by its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

# Pillow's own, then files that Pillow finds where Linux, macOS and Windows keep their fonts.
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
SIMPLIFIED = {"NotoSansCJK-Regular.ttc": 2, "NotoSansCJK-VF.ttc": 2}  # the face of collections that begin with Japanese
NO_SIGN = "\U0010ffff"  # which Unicode keeps free: a font draws it like all that it lacks


def letters(words: str, size: int) -> FreeTypeFont:
    """The first font that has all signs of the words; Pillow's own where none has."""
    font = _font(_file(words) or OWN, size)
    assert font is not None  # a file that has signs is there
    return font


def written(names: Sequence[str]) -> tuple[str, ...]:
    """Objects' names as pictures can show them: “object 1” where no font has the signs of the first."""
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
    """None where the machine does not have it."""
    if file == OWN:
        own = ImageFont.load_default(size)
        assert isinstance(own, FreeTypeFont)  # since a size was asked for
        return own
    try:
        return ImageFont.truetype(file, size, SIMPLIFIED.get(file, 0))
    except OSError:
        return None
