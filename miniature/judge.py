"""Finds and names the objects of a picture from its pixels, without a trained model.

The world makes this easy: backgrounds are light and pale, objects are not, and there are few kinds. A connected patch
of object-coloured pixels is one object. Its kind is the one whose outline fits it best.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .world_shapes import distances

CHROMA, DARK = 0.27, 0.5  # an object's pixel has more chroma than CHROMA, or is darker than DARK
SMALLEST = 80  # an object has at least this many pixels, in a picture of 128 × 128
SIDE, SPAN = 48, 2.4  # outlines are compared on SIDE × SIDE points, over ±SPAN/2 times the patch's own size
TURNS = tuple(math.radians(d) for d in range(-36, 37, 6))


class Outlined(NamedTuple):
    """One object of a picture."""

    kind: int  # number in KINDS
    fit: float  # overlap with that kind's outline, intersection over union
    mask: Tensor  # [S, S] bool


def judge(images: Tensor) -> list[list[Outlined]]:
    """The objects in each picture, largest first. images [B, 3, S, S]: in 0…1."""
    return [_name(patches(image)) for image in images.float().cpu()]


def coloured(image: Tensor) -> Tensor:
    """Which pixels of a picture [3, S, S] have the colours of an object, [S, S] bool."""
    high, low = image.amax(0), image.amin(0)
    return ((high - low) > CHROMA) | (high < DARK)


def patches(image: Tensor) -> Tensor:
    """The connected patches of object-coloured pixels in a picture [3, S, S], largest first: [N, S, S] bool."""
    objects = coloured(image)
    labels = _connected(objects)
    numbers, sizes = labels[objects].unique(return_counts=True)
    wanted = sizes >= SMALLEST * image.shape[-1] ** 2 / 128**2
    order = sizes[wanted].argsort(descending=True)
    return labels[None] == numbers[wanted][order][:, None, None]


def _connected(mask: Tensor) -> Tensor:
    """Labels of the connected patches of a mask, [S, S]: each pixel gets the highest pixel number in its patch.

    Each step spreads the numbers to the neighbours inside the mask, until nothing changes.
    """
    inside = mask.float()[None, None]
    labels = torch.arange(1, mask.numel() + 1).reshape(inside.shape).float() * inside
    while True:
        spread = labels
        for _ in range(8):
            spread = F.max_pool2d(spread, 3, 1, 1) * inside
        if torch.equal(spread, labels):
            return labels[0, 0]
        labels = spread


def _name(masks: Tensor) -> list[Outlined]:
    if not len(masks):
        return []
    fit, kind = overlaps(masks).amax(1).max(-1)
    return [Outlined(k, f, mask) for k, f, mask in zip(kind.tolist(), fit.tolist(), masks, strict=True)]


def overlaps(masks: Tensor) -> Tensor:
    """Intersection over union of each patch with each kind's outline at each turn, [N, T, K].

    masks [N, S, S]: the patches.
    """
    seen = _centred(masks.float()).flatten(1)  # [N, SIDE²]
    outlines = _outlines().flatten(2)  # [T, K, SIDE²]
    both = torch.einsum("np,tkp->ntk", seen, outlines)
    either = seen.sum(-1)[:, None, None] + outlines.sum(-1) - both
    return both / either


def _centred(masks: Tensor, turn: float = 0.0) -> Tensor:
    """Masks [N, S, S] moved to their centre of mass, scaled to the same area and turned: [N, SIDE, SIDE] of 0 and 1.

    turn: in radians.
    """
    size = masks.shape[-1]
    axis = (torch.arange(size) + 0.5) * (2 / size) - 1
    area = masks.sum((1, 2))
    x = (masks.sum(1) * axis).sum(-1) / area
    y = (masks.sum(2) * axis).sum(-1) / area
    scale = (area * (2 / size) ** 2).sqrt() * SPAN / 2
    cos, sin = math.cos(turn), math.sin(turn)
    rows = [[cos * scale, -sin * scale, x], [sin * scale, cos * scale, y]]
    theta = torch.stack([torch.stack([torch.as_tensor(v).expand(len(masks)) for v in row], -1) for row in rows], 1)
    grid = F.affine_grid(theta, [len(masks), 1, SIDE, SIDE], align_corners=False)
    return (F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0] > 0.5).float()


@cache
def _outlines() -> Tensor:
    """Every kind's outline at every turn, centred as patches are: [T, K, SIDE, SIDE]."""
    inside = F.pad((distances() < 0).float(), (40, 40, 40, 40))
    return torch.stack([_centred(inside, turn) for turn in TURNS])
