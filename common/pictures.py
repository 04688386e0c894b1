"""Picture files from anywhere, opened with care."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from .text import brief

LARGEST = 1 << 26  # pixels of a picture file, such as 8192×8192; a file of some kilobytes may claim any number
# Whatever a file's name says, Pillow goes by its first bytes. For some formats it would start a program, such as
# Ghostscript for PostScript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")


def open_picture(path: Path) -> Image.Image:
    """`Image.open` for a file that may be made to harm: only its header is read.

    Raises ValueError for what is no regular file, such as a pipe, which would block for ever; for a picture of another
    format; and for one of more than LARGEST pixels. Raises what Pillow raises, an OSError, for a damaged file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{brief(path, 300)} is no file")
    Image.init()
    try:
        image = Image.open(path, formats=[each for each in FORMATS if each in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(path)) from error
    if image.width * image.height > LARGEST:
        image.close()
        raise ValueError(_too_large(path))
    return image


def _too_large(path: Path) -> str:
    return f"{brief(path.name)} has more than {LARGEST >> 20} million pixels: make it smaller"
