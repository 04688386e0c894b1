"""Regions and areas of the canvas, in latent pixels and at the resolution of a site. Boxes as masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor

from .options import between

REGION_SIDE = 256  # pixels of a mask of boxes; it is stretched to the canvas
Size = tuple[int, int]  # height, width
Area = tuple[int, int, int, int] | None  # (height, width, y, x) in latent pixels; None: the whole canvas


def clipped(area: Area, canvas: Size) -> Area:
    """The part of an area that lies on the canvas. The host samples only this part."""
    if area is None:
        return None
    height, width, y, x = area
    return min(height, canvas[0] - y), min(width, canvas[1] - x), y, x


def cut_from(latent: Tensor, canvas: Size) -> Area:
    """The area of the canvas that a latent [..., h, w] shows, where it is a view into a latent of the canvas's size.

    The strides of a view tell the size of what it was cut from, and its offset tells where. None: it is no such view.
    """
    height, width = canvas
    h, w = latent.shape[-2:]
    if latent.ndim < 3 or latent.stride()[-3:] != (height * width, width, 1):
        return None
    y, x = divmod(int(latent.storage_offset()) % (height * width), width)
    return (h, w, y, x) if y + h <= height and x + w <= width else None


def same_shape(one: Size, other: Size) -> bool:
    """Whether two sizes have the same aspect ratio, up to the rounding of a side to one position."""
    (h, w), (height, width) = one, other
    return (h - 1) * width <= (w + 1) * height and (w - 1) * height <= (h + 1) * width


def place_on_canvas(area: Area, canvas: Size, site: Size) -> tuple[Size, Size]:
    """Where a site lies on the canvas, at the site's resolution.

    area, canvas: in latent pixels.
    site: (h, w), the positions of the site, which shows the area.
    Returns the size (H, W) of the whole canvas and the corner (y, x) at which the site begins.

    A UNet halves k times and rounds up each time: n latent pixels become ceil(n / 2^k) positions. k is the smallest
    number that fits both sides. The canvas size is computed from k, since the area's own size is rounded.
    """
    if area is None:
        return site, (0, 0)
    height, width, y, x = area
    level = next(k for k in count() if _halved(height, k) <= site[0] and _halved(width, k) <= site[1])
    # Another pack may resize in between. The canvas is at least as large as the site.
    whole = max(_halved(canvas[0], level), site[0]), max(_halved(canvas[1], level), site[1])
    return whole, (min(y >> level, whole[0] - site[0]), min(x >> level, whole[1] - site[1]))


def cut_to_site(maps: Tensor, area: Area, canvas: Size | None, site: Size) -> Tensor:
    """Maps [..., H, W] of the whole canvas, cut to a site's area and resized to the site (h, w): [..., N]."""
    if area is not None and canvas is not None:
        height, width, y, x = area
        maps = resize(maps, canvas)[..., y : y + height, x : x + width]
    return resize(maps, site).flatten(-2)


def resize(maps: Tensor, size: Size) -> Tensor:
    """[..., H, W] -> [..., h, w], bilinear with antialiasing."""
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*maps.shape[:-2], *size)


def _halved(side: int, times: int) -> int:
    return -(-side >> times)


def box_region(boxes: Sequence[tuple[float, float, float, float]], feather: float = 0.0) -> Tensor:
    """A mask [1, REGION_SIDE, REGION_SIDE] in 0..1 that is white inside any of the boxes.

    boxes: (left, top, right, bottom) as fractions of the canvas.
    feather: width of the soft edge as a fraction of the canvas; half of it lies inside the box. An edge on the border
        of the canvas stays hard.

    Raises ValueError for a box that covers nothing of the canvas.
    """
    between("feather", feather, 0, 1)
    centres = (torch.arange(REGION_SIDE) + 0.5) / REGION_SIDE

    def along(low: float, high: float) -> Tensor:
        low, high = max(low, 0.0), min(high, 1.0)
        # At least one pixel, so that no box falls between two pixels. At most the box, so that its middle is white.
        soft = max(min(feather, high - low), 1 / REGION_SIDE)
        inside = torch.ones(REGION_SIDE)
        if low > 0:
            inside = inside * ((centres - low) / soft + 0.5).clamp(0, 1)
        if high < 1:
            inside = inside * ((high - centres) / soft + 0.5).clamp(0, 1)
        return inside

    filled = torch.zeros(REGION_SIDE, REGION_SIDE)
    for left, top, right, bottom in boxes:
        if not (left < right and top < bottom and left < 1 and top < 1 and right > 0 and bottom > 0):
            raise ValueError(
                f"The box from {left:.0%}, {top:.0%} to {right:.0%}, {bottom:.0%} (from the left, from the top) holds "
                "nothing of the canvas: give it a width and a height, and a corner within the canvas."
            )
        filled = torch.maximum(filled, along(top, bottom).unsqueeze(1) * along(left, right))
    return filled.unsqueeze(0)
