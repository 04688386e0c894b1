"""Reads an object's look from its pixels: for every pattern, how well would two colours laid out so explain them?"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .judge import TURNS, Found, overlaps
from .world_looks import PATTERNS, PLAIN, fields, palette
from .world_shapes import EXTENT, distances

NEAR = 0.04  # turns whose outline fits this much worse than the best are tried too: a ring has no best one


def look(image: Tensor, found: Found) -> tuple[int, int, int]:
    """Pattern, first and second colour of an object found in a picture [3, S, S]."""
    inner = _core(found.mask)
    pixels = image[:, inner].T  # [N, 3]
    fits = overlaps(found.mask[None])[0, :, found.kind]
    best = (math.inf, PLAIN, pixels.median(0).values, pixels.median(0).values)
    for turn in (fits > fits.max() - NEAR).nonzero().flatten().tolist():
        places = _places(found, inner, TURNS[turn])
        for pattern in range(len(PATTERNS)):
            if pattern != PLAIN:
                best = min(best, _explain(pixels, places, pattern), key=lambda each: each[0])
    _, pattern, first, second = best
    a, b = colour(first), colour(second)
    return (PLAIN, a, a) if a == b else (pattern, a, b)


def colour(rgb: Tensor) -> int:
    """The named colour nearest to one [3]."""
    return int((palette() - rgb).norm(dim=-1).argmin())


def _explain(pixels: Tensor, places: Tensor, pattern: int) -> tuple[float, int, Tensor, Tensor]:
    """How far the pixels are from two colours in this pattern, and the colours."""
    value = F.grid_sample(fields()[None, pattern, None], places[None, None] / EXTENT, align_corners=False).flatten()
    second = value < 0
    if not second.any() or second.all():
        return math.inf, pattern, pixels[0], pixels[0]
    a, b = pixels[~second].median(0).values, pixels[second].median(0).values
    error = (pixels - torch.where(second[:, None], b, a)).abs().mean()
    return float(error), pattern, a, b


def _core(mask: Tensor) -> Tensor:
    """The mask without its outermost pixels, whose colours are mixed with the background's."""
    core = -F.max_pool2d(-mask[None, None].float(), 3, 1, 1)[0, 0] > 0
    return core if core.sum() > 30 else mask


def _places(found: Found, inner: Tensor, turn: float) -> Tensor:
    """[N, 2] where the inner pixels lie in the coordinates of the object's kind, if it is turned so."""
    x, y, size = _centre(found.mask)
    x0, y0, size0 = _shape(found.kind)
    axis = (torch.arange(inner.shape[-1]) + 0.5) * (2 / inner.shape[-1]) - 1
    rows, columns = inner.nonzero().unbind(1)
    dx, dy = (axis[columns] - x) * size0 / size, (axis[rows] - y) * size0 / size
    cos, sin = math.cos(turn), math.sin(turn)
    return torch.stack([cos * dx - sin * dy + x0, sin * dx + cos * dy + y0], -1)


def _centre(mask: Tensor) -> tuple[float, float, float]:
    """Centre of mass and square root of the area, in a picture from -1 to 1."""
    axis = (torch.arange(mask.shape[-1]) + 0.5) * (2 / mask.shape[-1]) - 1
    area = mask.sum()
    x, y = (mask.sum(0) * axis).sum() / area, (mask.sum(1) * axis).sum() / area
    return float(x), float(y), float(area.sqrt()) * 2 / mask.shape[-1]


@cache
def _shape(kind: int) -> tuple[float, float, float]:
    x, y, size = _centre(distances()[kind] < 0)
    return x * EXTENT, y * EXTENT, size * EXTENT
