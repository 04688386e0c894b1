"""Boxes as regions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
