"""Reads the box and mask formats of other nodes.

BOUNDING_BOX  ComfyUI's: {"x", "y", "width", "height"} in pixels; one, a list, or a list for each picture
BBOX          four numbers: x, y, width, height (KJNodes) or x0, y0, x1, y1 (SAM 2, Florence); nested likewise
SEGS          Impact Pack's: ((height, width), [SEG, …]) with bbox (x0, y0, x1, y1), cropped_mask, crop_region, label
MASK          [n, H, W]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.crops import Box, bounds, describe, window
from ...common.text import brief, plain
from .crops import MASK_THRESHOLD
from .detections import Detection

SIDES, CORNERS = "x, y, width, height", "x0, y0, x1, y1"
MOST_BOXES = 1000  # in one list
FORMATS = (SIDES, CORNERS)  # the meanings that four bare numbers can have


@dataclass(frozen=True, eq=False)
class Marked:
    """A box or mask of another node.

    detection: None for an empty mask: the object is not there.
    label: normalised by `plain`, "" without one.
    """

    detection: Detection | None
    label: str = ""


@dataclass(frozen=True)
class Reader:
    """Reads boxes and masks of pictures of height × width pixels.

    form: what four bare numbers mean, one of FORMATS; ValueError for anything else.
    """

    height: int
    width: int
    form: str

    def __post_init__(self) -> None:
        if self.form not in FORMATS:
            raise ValueError(
                f"The format of the boxes is “{brief(self.form, 60)}”; expected one of {'; '.join(FORMATS)}."
            )

    def read(self, boxes: Any) -> list[Marked] | list[list[Marked]]:
        """All boxes in one list, or in a list for each picture. Raises ValueError for what is no box."""
        if isinstance(boxes, Tensor):
            return list(self._masks(boxes)) if boxes.ndim >= 2 and boxes.shape[-1] != 4 else self._numbers(boxes)
        if isinstance(boxes, np.ndarray):
            return self._numbers(boxes)
        if _is_box(boxes):
            return [self._box(boxes)]
        if _is_segs(boxes) or not isinstance(boxes, list | tuple) or any(map(_is_box, boxes)):
            return self._one_picture(boxes)
        if len(boxes) > MOST_BOXES:
            raise ValueError(_too_many(len(boxes)))
        return [self._one_picture(each) for each in boxes]

    def _numbers(self, boxes: Tensor | np.ndarray) -> list[Marked] | list[list[Marked]]:
        if math.prod(boxes.shape) > 4 * MOST_BOXES * 100:
            raise ValueError(_too_many(math.prod(boxes.shape) // 4))
        return self.read(boxes.tolist())

    def _one_picture(self, boxes: Any) -> list[Marked]:
        if isinstance(boxes, Tensor | np.ndarray):
            boxes = boxes.tolist()
        if _is_segs(boxes):
            if len(boxes[1]) > MOST_BOXES:
                raise ValueError(_too_many(len(boxes[1])))
            return [self._seg(each, boxes[0]) for each in boxes[1]]
        if not isinstance(boxes, list | tuple):
            raise ValueError(_unknown(boxes))
        if len(boxes) > MOST_BOXES:
            raise ValueError(_too_many(len(boxes)))
        if not all(_is_box(each) for each in boxes):
            raise ValueError(_unknown(next(each for each in boxes if not _is_box(each))))
        return [self._box(each) for each in boxes]

    def _box(self, box: Any) -> Marked:
        if isinstance(box, Mapping):
            x, y, width, height = (_number(box[key]) for key in ("x", "y", "width", "height"))
            score = box.get("score", 1.0)
            edges = (x, y, x + width, y + height)
            return Marked(self._checked(edges, _score(score)), plain(str(box.get("label", ""))))
        a, b, c, d = (_number(each) for each in box)
        return Marked(self._checked((a, b, a + c, b + d) if self.form == SIDES else (a, b, c, d), 1.0))

    def _checked(self, edges: Box, score: float, mask: Tensor | None = None) -> Detection:
        """A detection whose box is clipped to the picture. Raises ValueError if nothing of it is left."""
        x0, y0, x1, y1 = edges
        if not all(map(math.isfinite, edges)) or x1 <= x0 or y1 <= y0:
            sides = " × ".join(f"{edge:g}" for edge in (x1 - x0, y1 - y0))
            raise ValueError(
                f"A box at ({x0:g}, {y0:g}) has {sides} pixels, so it holds nothing: correct it, or choose the other "
                f"format of bare numbers (it is “{self.form}” now)."
            )
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(self.width)), min(y1, float(self.height)))
        if box[2] - box[0] < 0.5 or box[3] - box[1] < 0.5:
            raise ValueError(
                f"The box {describe(_shortened(edges))} lies outside of the picture of {self.width}×{self.height} "
                "pixels: give boxes in the pixels of the very pictures that are scored."
            )
        return Detection(box, score, mask)

    def _masks(self, masks: Tensor) -> Iterable[Marked]:
        if masks.ndim == 4 and 1 in (masks.shape[1], masks.shape[-1]):
            masks = masks.squeeze(1) if masks.shape[1] == 1 else masks.squeeze(-1)
        masks = masks[None] if masks.ndim == 2 else masks
        if masks.ndim != 3 or 0 in masks.shape:
            raise ValueError(f"The masks have the shape {list(masks.shape)}; expected [masks, height, width].")
        masks = masks.float().nan_to_num().clamp(0, 1).cpu()
        if masks.shape[1:] != (self.height, self.width):
            size = (self.height, self.width)
            masks = F.interpolate(masks[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        for mask in masks:
            inside = mask > MASK_THRESHOLD
            yield Marked(Detection(bounds(inside), 1.0, mask) if inside.any() else None)

    def _seg(self, seg: Any, size: Sequence[Any]) -> Marked:
        """A SEG of a picture of `size` (height, width), scaled to this reader's height and width."""
        down, across = self.height / _number(size[0]), self.width / _number(size[1])
        edges = [_number(each) for each in seg.bbox]
        if len(edges) != 4:
            raise ValueError(_unknown(seg.bbox))
        x0, y0, x1, y1 = edges
        score = _score(getattr(seg, "confidence", 1.0))
        found = self._checked((x0 * across, y0 * down, x1 * across, y1 * down), score)
        label = plain(str(getattr(seg, "label", "") or ""))
        mask = self._seg_mask(seg, int(size[0]), int(size[1]))
        if mask is not None and not (mask[window(found.box)] > MASK_THRESHOLD).any():
            return Marked(None, label)
        return Marked(replace(found, mask=mask), label)

    def _seg_mask(self, seg: Any, height: int, width: int) -> Tensor | None:
        if seg.cropped_mask is None:
            return None
        cut = torch.as_tensor(np.asarray(seg.cropped_mask, dtype=np.float32)).squeeze()
        x0, y0, x1, y1 = (int(_number(each)) for each in seg.crop_region)
        if cut.ndim != 2 or cut.shape != (y1 - y0, x1 - x0) or min(x0, y0) < 0 or x1 > width or y1 > height:
            raise ValueError(
                f"A segment's mask has the shape {list(cut.shape)} and its region is {describe((x0, y0, x1, y1))} in "
                f"{width}×{height} pixels, which do not fit together: make the SEGS anew from this picture."
            )
        mask = torch.zeros(height, width)
        mask[y0:y1, x0:x1] = cut.nan_to_num(0.0).clamp(0, 1)
        if (height, width) != (self.height, self.width):
            size = (self.height, self.width)
            mask = F.interpolate(mask[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        return mask


def _too_many(count: int) -> str:
    return (
        f"There are {count:,} boxes in one list; at most {MOST_BOXES:,} are read: raise the threshold of the node that "
        "gives them, or choose some of them."
    )


def _is_segs(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and isinstance(value[0], list | tuple)
        and len(value[0]) == 2
        and isinstance(value[1], list | tuple)
        and all(hasattr(each, "bbox") and hasattr(each, "crop_region") for each in value[1])
        and (len(value[1]) > 0 or _are_numbers(value[0]))
    )


def _is_box(value: Any) -> bool:
    if isinstance(value, Mapping):
        return {"x", "y", "width", "height"} <= value.keys()
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 1 and len(value) == 4
    return isinstance(value, list | tuple) and len(value) == 4 and _are_numbers(value)


def _are_numbers(values: Sequence[Any]) -> bool:
    return all(isinstance(each, int | float | np.number) and not isinstance(each, bool) for each in values)


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise ValueError(_unknown(value)) from None


def _score(value: Any) -> float:
    """A score clipped to 0..1; what is no number counts as 1. Impact Pack may give an array of one number."""
    try:
        score = float(np.asarray(value, dtype=np.float64).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return 1.0
    return min(max(score, 0.0), 1.0) if math.isfinite(score) else 1.0


def _shortened(edges: Box) -> Box:
    """Edges clipped to ±1e6, so that the error message stays short."""
    x0, y0, x1, y1 = (min(max(edge, -1e6), 1e6) for edge in edges)
    return x0, y0, x1, y1


def _unknown(value: Any) -> str:
    written = brief(" ".join(repr(value).split()), 60)
    return (
        f"This is no box: {written} ({type(value).__name__}); expected the host's BOUNDING_BOX (x, y, width, height), "
        "four numbers (BBOX), SEGS or a MASK, or lists of them, one a picture."
    )
