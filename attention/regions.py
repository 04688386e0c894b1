"""Regions: boxes as masks, and what a cond shows of the canvas, in latent pixels and at the resolution of a site."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

Size = tuple[int, int]  # height, width
Area = tuple[int, int, int, int] | None  # (height, width, y, x) in latent pixels, or the whole canvas


def clipped(area: Area, canvas: Size) -> Area:
    """The part of an area that lies on the canvas: more of it is never sampled."""
    if area is None:
        return None
    height, width, y, x = area
    return min(height, canvas[0] - y), min(width, canvas[1] - x), y, x


def placed(area: Area, canvas: Size, site: Size) -> tuple[Size, Size]:
    """Where a site of so many positions lies: the size (H, W) of the whole canvas at its resolution, and the corner
    (y, x) of it that the site begins at.

    A UNet halves k times, and each time rounds up: an area of n latent pixels has ceil(n / 2^k) positions. k is the
    least number that fits both sides; the canvas' size follows from it, not from the area's rounded one.
    """
    if area is None:
        return site, (0, 0)
    height, width, y, x = area
    level = next(k for k in count() if _halved(height, k) <= site[0] and _halved(width, k) <= site[1])
    # Another pack may resize between: then the canvas is at least as large as what is seen of it.
    whole = max(_halved(canvas[0], level), site[0]), max(_halved(canvas[1], level), site[1])
    return whole, (min(y >> level, whole[0] - site[0]), min(x >> level, whole[1] - site[1]))


def seen(maps: Tensor, area: Area, canvas: Size | None, site: Size) -> Tensor:
    """Maps [..., H, W] of the whole canvas as a site sees them that shows an area of it: [..., N]."""
    if area is not None and canvas is not None:
        height, width, y, x = area
        maps = resize(maps, canvas)[..., y : y + height, x : x + width]
    return resize(maps, site).flatten(-2)


def resize(maps: Tensor, size: Size) -> Tensor:
    """[..., H, W] -> [..., h, w]"""
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*maps.shape[:-2], *size)


def _halved(side: int, times: int) -> int:
    return -(-side >> times)


SIDE = 256  # pixels of the mask; it is stretched to the canvas


def box_region(boxes: Sequence[tuple[float, float, float, float]], feather: float = 0.0) -> Tensor:
    """[1, SIDE, SIDE] in 0..1: white in any of the boxes (left, top, right, bottom), parts of the canvas in 0..1.

    feather: width of the soft edge, half of it inside, as a part of the canvas; an edge on the canvas' border stays
    hard. Raises ValueError for boxes that hold nothing of the canvas.
    """
    at = (torch.arange(SIDE) + 0.5) / SIDE

    def along(low: float, high: float) -> Tensor:
        low, high = max(low, 0.0), min(high, 1.0)
        # At least one pixel, so that no box falls between two; at most the box, so that its middle is white.
        soft = max(min(feather, high - low), 1 / SIDE)
        inside = torch.ones(SIDE)
        if low > 0:
            inside = inside * ((at - low) / soft + 0.5).clamp(0, 1)
        if high < 1:
            inside = inside * ((high - at) / soft + 0.5).clamp(0, 1)
        return inside

    filled = []
    for left, top, right, bottom in boxes:
        if not (left < right and top < bottom and left < 1 and top < 1 and right > 0 and bottom > 0):
            raise ValueError(
                f"The box from {left:.0%}, {top:.0%} to {right:.0%}, {bottom:.0%} (from the left, from the top) holds "
                "nothing of the canvas: give it a width and a height, and a corner within the canvas."
            )
        filled.append(along(top, bottom).unsqueeze(1) * along(left, right))
    return torch.stack(filled).amax(0, keepdim=True)
