"""Pictures with what was found in them: boxes, masks, labels."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..attention.maps import COLOURS
from .canvas import Canvas, fitted, ink_on
from .crops import as_bytes, check_pictures
from .detections import Detection, Detections

LEAST = 512  # pixels of the short side: smaller pictures are enlarged, for labels that can be read
TINT = 0.2  # how strongly a mask is coloured


def annotated(images: Tensor, detections: Detections) -> Tensor:
    """[B, H', W', 3]: every box in its text's colour, with the text and the score; enlarged where pictures are small.

    images [B, H, W, 3 or 4] in 0..1, those that were searched.
    """
    check_pictures(images, detections)
    pictures = [_annotate(image, detections, number) for number, image in enumerate(images)]
    return torch.from_numpy(np.stack(pictures)).float() / 255


def _annotate(image: Tensor, detections: Detections, number: int) -> np.ndarray:
    pixels = as_bytes(image[..., :3])
    height, width = pixels.shape[:2]
    scale = max(1, -(-LEAST // min(height, width)))  # whole, so that pixels stay pixels
    found = list(detections.every(number))
    for text, each in found:
        if each.mask is not None:
            alpha = (TINT * each.mask.float().clamp(0, 1)).numpy(force=True)[..., None]
            pixels = (pixels * (1 - alpha) + np.array(colour(text)) * alpha).round().astype(np.uint8)
    sheet = Canvas(width * scale, height * scale)
    sheet.paste((0, 0), Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST))
    size = max(14, round(min(height, width) * scale / 32))
    for text, each in found:
        _frame(sheet.pen, [edge * scale for edge in each.box], colour(text), max(2, size // 6))
    taken: list[tuple[float, float, float, float]] = []
    for text, each in found:
        _label(sheet, each, scale, f"{detections.texts[text]} {each.score:.2f}", colour(text), size, taken)
    return np.asarray(sheet.image)


def _frame(pen: ImageDraw.ImageDraw, box: list[float], ink: tuple[int, int, int], line: int) -> None:
    x0, y0, x1, y1 = (round(edge) for edge in box)
    x1, y1 = max(x1 - 1, x0), max(y1 - 1, y0)
    pen.rectangle((x0, y0, x1, y1), outline="white", width=line + 2)  # seen on every ground
    inner = min(1, (x1 - x0) // 2, (y1 - y0) // 2)
    pen.rectangle((x0 + inner, y0 + inner, x1 - inner, y1 - inner), outline=ink, width=line)


def _label(
    sheet: Canvas,
    detection: Detection,
    scale: int,
    words: str,
    ink: tuple[int, int, int],
    size: int,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Above its box where there is room, else inside, else wherever no other label is."""
    words, letters = fitted(words, size, sheet.image.width - size)
    wide, high = letters.getlength(words) + size * 0.6, size * 1.4
    x0, y0, x1, y1 = (edge * scale for edge in detection.box)
    left = min(max(x0, 0), sheet.image.width - wide)
    right = min(max(x1 - wide, 0), sheet.image.width - wide)
    tops = (y0 - high, y0, y1 - high, y1, *(y0 + n * high for n in range(1, 12)))
    places = [(x, min(max(y, 0), sheet.image.height - high)) for y in tops for x in (left, right)]
    free = partial(_free, taken, wide, high)
    x, y = next(filter(free, places), places[0])
    taken.append((x, y, x + wide, y + high))
    sheet.pen.rectangle((x, y, x + wide, y + high), fill=ink)
    sheet.pen.text((x + size * 0.3, y + size * 0.1), words, font=letters, fill=ink_on(ink))


def _free(taken: list[tuple[float, float, float, float]], wide: float, high: float, at: tuple[float, float]) -> bool:
    x, y = at
    return all(x >= x1 or x + wide <= x0 or y >= y1 or y + high <= y0 for x0, y0, x1, y1 in taken)


def colour(text: int) -> tuple[int, int, int]:
    """The colour of a text, as in the relevance maps."""
    return COLOURS[text % len(COLOURS)]
