"""Reads an object's look from its pixels: the pattern and colours that explain the pixels best."""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .judge import TURNS, Outlined, overlaps
from .world_looks import PATTERNS, PLAIN, fields, palette
from .world_shapes import EXTENT, distances

NEAR = 0.04  # turns whose fit is within this of the best are tried too, because a ring fits at every turn


def look(image: Tensor, found: Outlined) -> tuple[int, int, int]:
    """Numbers of the pattern, the first and the second colour of an object found in a picture [3, S, S]."""
    inner = _core(found.mask)
    pixels = image[:, inner].T  # [N, 3]
    best = (math.inf, PLAIN, pixels.median(0).values, pixels.median(0).values)
    for turn in _turns(found):
        places = _places(found, inner, turn)
        for pattern in range(len(PATTERNS)):
            if pattern != PLAIN:
                best = min(best, _explain(pixels, places, pattern), key=lambda each: each[0])
    _, pattern, first, second = best
    a, b = colour(first), colour(second)
    return (PLAIN, a, a) if a == b else (pattern, a, b)


def colour_error(image: Tensor, found: Outlined, colours: Tensor) -> float:
    """Mean |difference| between an object's pixels and the nearer of two colours [2, 3], whatever their layout."""
    pixels = image[:, _core(found.mask)].T
    return float((pixels[:, None] - colours).abs().mean(-1).amin(1).mean())


def layout_error(image: Tensor, found: Outlined, pattern: int, colours: Tensor) -> float:
    """Mean |difference| between an object's pixels and two colours [2, 3] laid out in a pattern, at the best turn."""
    inner = _core(found.mask)
    pixels = image[:, inner].T
    errors = []
    for turn in _turns(found):
        second = _second(_places(found, inner, turn), pattern)
        errors.append((pixels - torch.where(second[:, None], colours[1], colours[0])).abs().mean())
    return float(min(errors))


def colour(rgb: Tensor) -> int:
    """The number of the named colour nearest to rgb [3]."""
    return int((palette() - rgb).norm(dim=-1).argmin())


def _explain(pixels: Tensor, places: Tensor, pattern: int) -> tuple[float, int, Tensor, Tensor]:
    """The best two colours for a pattern: (mean |difference|, pattern, first colour, second colour).

    pixels [N, 3]: colours of the object's pixels.
    places [N, 2]: where they lie, from `_places`.

    The error is infinite if the pattern shows only one of its colours there.
    """
    second = _second(places, pattern)
    if not second.any() or second.all():
        return math.inf, pattern, pixels[0], pixels[0]
    a, b = pixels[~second].median(0).values, pixels[second].median(0).values
    error = (pixels - torch.where(second[:, None], b, a)).abs().mean()
    return float(error), pattern, a, b


def _turns(found: Outlined) -> list[float]:
    """The turns, in radians, at which the outline of the object's kind fits it within NEAR of the best."""
    fits = overlaps(found.mask[None])[0, :, found.kind]
    return [TURNS[turn] for turn in (fits > fits.max() - NEAR).nonzero().flatten().tolist()]


def _second(places: Tensor, pattern: int) -> Tensor:
    """Whether a pattern has its second colour at places [N, 2] in an object's own coordinates, [N] bool."""
    field = fields()[None, pattern, None]
    return F.grid_sample(field, places[None, None] / EXTENT, align_corners=False).flatten() < 0


def _core(mask: Tensor) -> Tensor:
    """The mask without its outermost pixels, whose colours are mixed with the background's."""
    core = -F.max_pool2d(-mask[None, None].float(), 3, 1, 1)[0, 0] > 0
    return core if core.sum() > 30 else mask


def _places(found: Outlined, inner: Tensor, turn: float) -> Tensor:
    """The places of the inner pixels in the own coordinates of the object's kind, [N, 2].

    inner [S, S] bool: N pixels of the object.
    turn: the object's, in radians.
    """
    x, y, size = _centre(found.mask)
    x0, y0, size0 = _shape(found.kind)
    axis = (torch.arange(inner.shape[-1]) + 0.5) * (2 / inner.shape[-1]) - 1
    rows, columns = inner.nonzero().unbind(1)
    dx, dy = (axis[columns] - x) * size0 / size, (axis[rows] - y) * size0 / size
    cos, sin = math.cos(turn), math.sin(turn)
    return torch.stack([cos * dx - sin * dy + x0, sin * dx + cos * dy + y0], -1)


def _centre(mask: Tensor) -> tuple[float, float, float]:
    """Centre of mass (x, y) and square root of the area of a mask, in coordinates from -1 to 1."""
    axis = (torch.arange(mask.shape[-1]) + 0.5) * (2 / mask.shape[-1]) - 1
    area = mask.sum()
    x, y = (mask.sum(0) * axis).sum() / area, (mask.sum(1) * axis).sum() / area
    return float(x), float(y), float(area.sqrt()) * 2 / mask.shape[-1]


@cache
def _shape(kind: int) -> tuple[float, float, float]:
    x, y, size = _centre(distances()[kind] < 0)
    return x * EXTENT, y * EXTENT, size * EXTENT
