"""Pictures with their detections drawn: boxes, outlines of masks, labels."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from ...common.crops import as_bytes
from ...common.drawing import Canvas, drawable, fitted, ink_on
from .crops import MASK_THRESHOLD, check_pictures
from .detections import Detection, Detections

LEAST = 512  # pixels of the short side; smaller pictures are enlarged so that labels can be read


def annotated(images: Tensor, detections: Detections) -> Tensor:
    """Pictures [B, H', W', 3] with every box and mask outlined in its text's colour, labelled with text and score.

    images [B, H, W, 3 or 4]: in 0..1, those that were searched. Small ones are enlarged.
    """
    check_pictures(images, detections)
    pictures = [_annotate(image, detections, number) for number, image in enumerate(images)]
    return torch.from_numpy(np.stack(pictures)).float() / 255


def _annotate(image: Tensor, detections: Detections, number: int) -> np.ndarray:
    pixels = as_bytes(image[..., :3])
    height, width = pixels.shape[:2]
    scale = max(1, -(-LEAST // min(height, width)))  # an integer, so that pixels stay sharp
    found, names = list(detections.every(number)), drawable(detections.texts)
    sheet = Canvas(width * scale, height * scale)
    sheet.paste((0, 0), Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST))
    size = max(14, round(min(height, width) * scale / 32))
    for text, each in found:
        if each.mask is not None:
            line = Image.fromarray(_outline(each.mask, scale, max(1, size // 8)))
            sheet.image.paste(detections.colour(text), (0, 0), line)
    for text, each in found:
        _frame(sheet.pen, [edge * scale for edge in each.box], detections.colour(text), max(2, size // 6))
    taken: list[tuple[float, float, float, float]] = []
    for text, each in found:
        _label(sheet, each, scale, f"{names[text]} {each.score:.2f}", detections.colour(text), size, taken)
    return np.asarray(sheet.image)


def _outline(mask: Tensor, scale: int, line: int) -> np.ndarray:
    """The outer edge of a mask [H, W], `line` pixels wide: uint8 [H · scale, W · scale], 255 on the edge."""
    inside = (mask > MASK_THRESHOLD).float()[None, None]
    inside = F.interpolate(inside, scale_factor=scale) if scale > 1 else inside
    around = F.max_pool2d(inside, 2 * line + 1, 1, line) - inside
    return (around[0, 0] * 255).to(torch.uint8).numpy(force=True)


def _frame(pen: ImageDraw.ImageDraw, box: list[float], ink: tuple[int, int, int], line: int) -> None:
    x0, y0, x1, y1 = (round(edge) for edge in box)
    x1, y1 = max(x1 - 1, x0), max(y1 - 1, y0)
    pen.rectangle((x0, y0, x1, y1), outline="white", width=line + 2)  # visible on any background
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
    """Draws a label above its box, or inside it, or at the next place below that no other label covers.

    size: of the letters, in pixels.
    taken: rectangles of the labels drawn so far; this one is added.
    """
    words, font = fitted(words, size, sheet.image.width - size)
    wide, high = font.getlength(words) + size * 0.6, size * 1.4
    x0, y0, x1, y1 = (edge * scale for edge in detection.box)
    left = min(max(x0, 0), sheet.image.width - wide)
    right = min(max(x1 - wide, 0), sheet.image.width - wide)
    tops = (y0 - high, y0, y1 - high, y1, *(y0 + n * high for n in range(1, 12)))
    places = [(x, min(max(y, 0), sheet.image.height - high)) for y in tops for x in (left, right)]
    free = partial(_free, taken, wide, high)
    x, y = next(filter(free, places), places[0])
    taken.append((x, y, x + wide, y + high))
    sheet.pen.rectangle((x, y, x + wide, y + high), fill=ink)
    sheet.pen.text((x + size * 0.3, y + size * 0.1), words, font=font, fill=ink_on(ink))


def _free(taken: list[tuple[float, float, float, float]], wide: float, high: float, at: tuple[float, float]) -> bool:
    x, y = at
    return all(x >= x1 or x + wide <= x0 or y >= y1 or y + high <= y0 for x0, y0, x1, y1 in taken)
