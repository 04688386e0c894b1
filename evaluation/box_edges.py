"""Boxes of other nodes as parts of the canvas."""

from __future__ import annotations

from typing import Any

from ..common.crops import Box
from ..common.text import plain
from .box_formats import SIDES, Marked, Reader
from .detections import Detections


def edges_of(
    boxes: Any, text: str = "", number: int = 0, size: tuple[int, int] | None = None, form: str = SIDES
) -> list[Box]:
    """Edges (left, top, right, bottom) in 0..1 of boxes on a picture of size (height, width); Detections and SEGS know
    theirs. Boxes of several pictures are taken together.

    text: whose, by their labels, or "" for all; number: which of them, from 1, or 0 for all; form: what four bare
    numbers mean. Raises ValueError, one sentence, where there are none.
    """
    if isinstance(boxes, Detections):
        size = boxes.height, boxes.width
        marked = [Marked(d, plain(boxes.texts[t])) for b in range(len(boxes)) for t, d in boxes.every(b)]
    else:
        size = size or _own_size(boxes)
        marked = _flat(Reader(*size, form).read(boxes))
    labels = sorted({each.label for each in marked if each.label})
    found = [each for each in marked if each.label == plain(text) or not plain(text)]
    kept = [each.detection.box for each in found if each.detection is not None]
    if not kept:
        known = f" There are boxes of {', '.join(labels)}." if labels and text.strip() else ""
        whose = f" of “{text.strip()}”" if text.strip() else ""
        raise ValueError(f"There is no box{whose} for the region.{known} Check the node that makes the boxes.")
    if number > len(kept):
        raise ValueError(f"Box {number} was asked for and there are {len(kept)}: 1 to {len(kept)}, or 0 for all.")
    height, width = size
    chosen = kept if number == 0 else [kept[number - 1]]
    return [(x0 / width, y0 / height, x1 / width, y1 / height) for x0, y0, x1, y1 in chosen]


def _own_size(boxes: Any) -> tuple[int, int]:
    """(height, width) of the picture that SEGS were found on."""
    if isinstance(boxes, tuple | list) and len(boxes) == 2 and isinstance(boxes[0], tuple):
        height, width = boxes[0][:2]
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    raise ValueError("The boxes count pixels of a picture: connect it as “images”, so that its size is known.")


def _flat(marked: list[Marked] | list[list[Marked]]) -> list[Marked]:
    return [each for item in marked for each in (item if isinstance(item, list) else [item])]
