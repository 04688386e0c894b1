"""Finds and names the objects of a picture from its pixels alone, with nothing trained.

The world makes that easy: backgrounds are light and pale, objects are not, and there are few kinds. A
connected patch of object-coloured pixels is one object; its kind is the outline that fits it best.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .world_shapes import distances

CHROMA, DARK = 0.27, 0.5  # an object's pixel has more chroma than this, or is darker than this
SMALLEST = 80  # pixels of 128 × 128 that make an object
SIDE, SPAN = 48, 2.4  # outlines are compared on SIDE × SIDE points over ±SPAN/2 × the patch's own size
TURNS = tuple(math.radians(d) for d in range(-36, 37, 6))


class Found(NamedTuple):
    """One object of a picture."""

    kind: int  # number in KINDS
    fit: float  # overlap with that kind's outline, intersection over union
    mask: Tensor  # [S, S] bool


def judge(images: Tensor) -> list[list[Found]]:
    """The objects in each picture [B, 3, S, S] (0…1), largest first."""
    return [_name(patches(image)) for image in images.float().cpu()]


def coloured(image: Tensor) -> Tensor:
    """[S, S] bool: which pixels of a picture [3, S, S] have an object's colours."""
    high, low = image.amax(0), image.amin(0)
    return ((high - low) > CHROMA) | (high < DARK)


def patches(image: Tensor) -> Tensor:
    """[N, S, S] bool: the connected patches of object-coloured pixels of a picture [3, S, S], largest first."""
    objects = coloured(image)
    labels = _connected(objects)
    numbers, sizes = labels[objects].unique(return_counts=True)
    wanted = sizes >= SMALLEST * image.shape[-1] ** 2 / 128**2
    order = sizes[wanted].argsort(descending=True)
    return labels[None] == numbers[wanted][order][:, None, None]


def _connected(mask: Tensor) -> Tensor:
    """[S, S] a number for each connected patch: the highest pixel number in it, spread until nothing changes."""
    inside = mask.float()[None, None]
    labels = torch.arange(1, mask.numel() + 1).reshape(inside.shape).float() * inside
    while True:
        spread = labels
        for _ in range(8):
            spread = F.max_pool2d(spread, 3, 1, 1) * inside
        if torch.equal(spread, labels):
            return labels[0, 0]
        labels = spread


def _name(masks: Tensor) -> list[Found]:
    if not len(masks):
        return []
    fit, kind = overlaps(masks).amax(1).max(-1)
    return [Found(k, f, mask) for k, f, mask in zip(kind.tolist(), fit.tolist(), masks, strict=True)]


def overlaps(masks: Tensor) -> Tensor:
    """[N, T, K] how well each patch [N, S, S] fits each kind's outline at each turn: intersection over union."""
    seen = _centred(masks.float()).flatten(1)  # [N, SIDE²]
    outlines = _outlines().flatten(2)  # [T, K, SIDE²]
    both = torch.einsum("np,tkp->ntk", seen, outlines)
    either = seen.sum(-1)[:, None, None] + outlines.sum(-1) - both
    return both / either


def _centred(masks: Tensor, turn: float = 0.0) -> Tensor:
    """[N, SIDE, SIDE] masks [N, S, S] moved to their centre of mass and scaled to the same area."""
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
    """[T, K, SIDE, SIDE] every kind's outline at every turn, centred as patches are."""
    inside = F.pad((distances() < 0).float(), (40, 40, 40, 40))
    return torch.stack([_centred(inside, turn) for turn in TURNS])
