"""The looks of objects: a pattern in two colours. Captions for diffusion do not name them; references show them."""

import math
from functools import cache

import torch
from torch import Tensor

from .world_shapes import EXTENT, RESOLUTION

COLOURS = {
    "red": (0.86, 0.15, 0.15),
    "orange": (0.97, 0.56, 0.10),
    "yellow": (0.98, 0.87, 0.20),
    "green": (0.20, 0.62, 0.25),
    "teal": (0.15, 0.74, 0.74),
    "blue": (0.15, 0.30, 0.83),
    "purple": (0.52, 0.22, 0.72),
    "pink": (0.96, 0.50, 0.74),
    "brown": (0.48, 0.29, 0.15),
    "black": (0.10, 0.10, 0.12),
}
PATTERNS = ("plain", "striped", "banded", "dotted", "checked", "split")
PLAIN = PATTERNS.index("plain")
JITTER = 0.03  # standard deviation of a drawn colour about the named one


@cache
def palette() -> Tensor:
    """The colours by number, [C, 3]."""
    return torch.tensor(list(COLOURS.values()))


@cache
def fields() -> Tensor:
    """For each pattern, about the signed distance to the second colour's edge, negative within it: [P, R, R].

    It is in the object's own coordinates, as in `world_shapes.distances`, so a pattern turns and grows with its object.
    """
    axis = torch.linspace(-EXTENT, EXTENT, RESOLUTION)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    period = 0.68
    across, down = (2 * math.pi * x / period).cos(), (2 * math.pi * y / period).cos()
    slope = period / (2 * math.pi)
    dots = ((_wrap(x, period)) ** 2 + _wrap(y, period) ** 2).sqrt() - 0.21
    return torch.stack([torch.ones_like(x), down * slope, across * slope, dots, (across * down) * slope, x + 0.35 * y])


def _wrap(x: Tensor, period: float) -> Tensor:
    """Signed distance along one axis to the nearest multiple of `period`."""
    return x - (x / period).round() * period


def phrase(pattern: int, first: int, second: int) -> str:
    """A look in words, for text-image training and reports: "red and blue striped"."""
    names = tuple(COLOURS)
    if pattern == PLAIN:
        return names[first]
    return f"{names[first]} and {names[second]} {PATTERNS[pattern]}"
