"""The world's kinds of objects as tables of signed distance, so that one look-up draws any of them."""

import math
from functools import cache

import torch
from torch import Tensor

# One token each in CLIP's vocabulary.
KINDS = (
    "star",
    "ring",
    "heart",
    "cross",
    "moon",
    "square",
    "triangle",
    "arrow",
    "drop",
    "flower",
    "fish",
    "mushroom",
)

EXTENT = 1.25  # a table covers -EXTENT…EXTENT of its object's own coordinates, x to the right and y downwards
RESOLUTION = 160  # points of a table's side


@cache
def distances() -> Tensor:
    """Signed distance to each kind's outline, negative inside: [K, R, R]. Outlines lie within radius 1."""
    axis = torch.linspace(-EXTENT, EXTENT, RESOLUTION, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    points = torch.stack([x, y], -1)
    return torch.stack([_SHAPES[kind](points) for kind in KINDS]).float()


def polygon(points: Tensor, corners: Tensor) -> Tensor:
    """Signed distance [...] of points [..., 2] to a closed polygon, negative inside. corners [V, 2]."""
    start, edge = corners, corners.roll(-1, 0) - corners
    offset = points[..., None, :] - start
    length = (edge * edge).sum(-1).clamp(min=1e-12)  # a repeated corner makes an edge of length 0
    along = ((offset * edge).sum(-1) / length).clamp(0, 1)
    nearest = (offset - along[..., None] * edge).norm(dim=-1).amin(-1)
    # From inside, a ray to the right crosses the outline an odd number of times.
    after = offset - edge
    spans = (offset[..., 1] <= 0) != (after[..., 1] <= 0)
    right = (edge[:, 0] * offset[..., 1] - edge[:, 1] * offset[..., 0]) * edge[:, 1].sign() > 0
    inside = (spans & right).sum(-1) % 2 == 1
    return torch.where(inside, -nearest, nearest)


def _corners(*xy: tuple[float, float]) -> Tensor:
    return torch.tensor(xy, dtype=torch.float64)


def _mirrored(*xy: tuple[float, float]) -> Tensor:
    """A left-right symmetric polygon. xy: the corners of its right half, from top to bottom."""
    half = _corners(*xy)
    return torch.cat([half, half.flip(0) * _corners((-1.0, 1.0))])


def _around(radius, count: int = 120) -> Tensor:
    """A closed curve of `count` points. radius: a function of the angle, which is 0 upwards and grows clockwise."""
    angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    return torch.stack([angle.sin(), -angle.cos()], -1) * radius(angle)[:, None]


def _disc(points: Tensor, radius: float, x: float = 0.0, y: float = 0.0) -> Tensor:
    return (points - _corners((x, y))).norm(dim=-1) - radius


def _star(points: Tensor) -> Tensor:
    spikes = torch.arange(10, dtype=torch.float64)
    angle, radius = spikes * (math.pi / 5), torch.where(spikes % 2 == 0, 1.0, 0.46).double()
    return polygon(points, torch.stack([angle.sin(), -angle.cos()], -1) * radius[:, None])


def _ring(points: Tensor) -> Tensor:
    return torch.maximum(_disc(points, 0.92), -_disc(points, 0.42))


def _heart(points: Tensor) -> Tensor:
    t = torch.arange(120, dtype=torch.float64) * (2 * math.pi / 120)
    y = 13 * t.cos() - 5 * (2 * t).cos() - 2 * (3 * t).cos() - (4 * t).cos()
    return polygon(points, torch.stack([16 * t.sin() ** 3, -y - 2], -1) / 17)


def _cross(points: Tensor) -> Tensor:
    a, b = 0.32, 0.92
    return polygon(points, _mirrored((a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b)))


def _moon(points: Tensor) -> Tensor:
    return torch.maximum(_disc(points, 0.98, -0.08), -_disc(points, 0.8, 0.42, -0.12))


def _square(points: Tensor) -> Tensor:
    return polygon(points, _mirrored((0.75, -0.75), (0.75, 0.75)))


def _triangle(points: Tensor) -> Tensor:
    return polygon(points, _mirrored((0.0, -0.95), (0.95, 0.75)))


def _arrow(points: Tensor) -> Tensor:
    """Points to the right."""
    upper = ((-0.95, -0.3), (0.05, -0.3), (0.05, -0.85), (0.98, 0.0))
    lower = ((0.05, 0.85), (0.05, 0.3), (-0.95, 0.3))
    return polygon(points, _corners(*upper, *lower))


def _drop(points: Tensor) -> Tensor:
    t = torch.arange(120, dtype=torch.float64) * (2 * math.pi / 120)
    return polygon(points, torch.stack([0.82 * t.sin() * (t / 2).sin() ** 1.3, -0.98 * t.cos()], -1))


def _flower(points: Tensor) -> Tensor:
    return polygon(points, _around(lambda angle: 0.74 + 0.26 * (6 * angle).cos()))


def _fish(points: Tensor) -> Tensor:
    t = torch.arange(60, dtype=torch.float64) * (2 * math.pi / 60)
    body = polygon(points, torch.stack([0.25 + 0.73 * t.cos(), 0.52 * t.sin()], -1))
    tail = polygon(points, _corners((-0.3, 0.0), (-0.95, -0.6), (-0.8, 0.0), (-0.95, 0.6)))
    return torch.minimum(body, tail)


def _mushroom(points: Tensor) -> Tensor:
    t = torch.linspace(-math.pi / 2, math.pi / 2, 40, dtype=torch.float64)
    cap = polygon(points, torch.stack([0.95 * t.sin(), 0.1 - 0.95 * t.cos()], -1))
    stem = polygon(points, _mirrored((0.27, 0.0), (0.34, 0.85)))
    return torch.minimum(cap, stem)


_SHAPES = {
    "star": _star,
    "ring": _ring,
    "heart": _heart,
    "cross": _cross,
    "moon": _moon,
    "square": _square,
    "triangle": _triangle,
    "arrow": _arrow,
    "drop": _drop,
    "flower": _flower,
    "fish": _fish,
    "mushroom": _mushroom,
}
