"""Boxes and masks of other nodes: read as detections or as edges of a region, and written from detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...common.crops import Box
from ...common.text import plain
from .box_formats import SIDES, Marked, Reader
from .detect import distinct
from .detections import Detection, Detections


def read_boxes(
    boxes: Any, texts: Sequence[str], picture_count: int, height: int, width: int, form: str = SIDES
) -> Detections:
    """Detections from the boxes or masks of another node.

    boxes: any of the formats of `box_formats`.
    texts: the object texts. Equal texts become one, which gets the boxes of all of them.
    picture_count: how many pictures there are.
    height, width: of the pictures, in pixels.
    form: what four bare numbers mean, one of FORMATS.

    With one text, every box belongs to it. With several, labels that are texts decide, and boxes with other labels are
    left out. Without such labels there must be one box for each text, in the texts' order, in each picture or, in a
    flat list, for all pictures alike.

    Raises ValueError for anything else.
    """
    if not texts:
        raise ValueError("There are no object texts: name what the boxes hold, one object a line, such as “cat”.")
    names = [plain(text) for text in texts]
    per_picture = _share_out(Reader(height, width, form).read(boxes), names, picture_count)
    found = tuple(_assign(each, names, number) for number, each in enumerate(per_picture))
    if not any(each for picture in found for each in picture):
        raise ValueError(
            "There is no box at all, every list or mask is empty (masks count above 0.5): connect a node that marks "
            "the objects, or paint masks."
        )
    different = distinct(texts)
    owners = [[i for i, name in enumerate(names) if name == plain(text)] for text in different]
    return Detections(
        different,
        height,
        width,
        tuple(tuple(_best_first([each for i in own for each in picture[i]]) for own in owners) for picture in found),
    )


def to_bounding_boxes(detections: Detections) -> list[list[dict[str, Any]]]:
    """ComfyUI's BOUNDING_BOX, a list for each picture: x, y, width, height in whole pixels, label and score."""
    return [
        [_bounding_box(each.box, detections.texts[text], each.score) for text, each in detections.every(picture)]
        for picture in range(len(detections))
    ]


def to_masks(detections: Detections, kept: Sequence[int] | None = None) -> Tensor:
    """Masks [B · M, H, W] in 0..1: for each picture one mask for each text, the union of its detections.

    kept: numbers of the texts that get a mask, by default all.
    """
    height, width = detections.height, detections.width
    texts = range(len(detections.texts)) if kept is None else kept
    masks = torch.zeros(len(detections), len(texts), height, width)
    for picture, found in zip(masks, detections.found, strict=True):
        for mask, text in zip(picture, texts, strict=True):
            for each in found[text]:
                torch.maximum(mask, each.as_mask(height, width), out=mask)
    return masks.flatten(0, 1)


def _bounding_box(box: Box, label: str, score: float) -> dict[str, Any]:
    x0, y0, x1, y1 = (round(edge) for edge in box)
    return {"x": x0, "y": y0, "width": max(x1 - x0, 1), "height": max(y1 - y0, 1), "label": label, "score": score}


# ---- which box belongs to which picture and text ----


def _share_out(
    marked: list[Marked] | list[list[Marked]], names: Sequence[str], picture_count: int
) -> list[list[Marked]]:
    """The boxes as a list for each picture. Raises ValueError if their number does not fit."""
    if any(isinstance(each, list) for each in marked):
        lists = [each for each in marked if isinstance(each, list)]
        if len(lists) not in (1, picture_count):
            raise ValueError(
                f"There are boxes of {len(lists)} pictures for {picture_count} pictures; give a list for each picture, "
                "or one for all."
            )
        return lists * (picture_count if len(lists) == 1 else 1)
    flat, texts = [each for each in marked if isinstance(each, Marked)], len(names)
    if picture_count == 1 or not flat or _labelled(flat, names) or len(flat) == texts:
        return [flat] * picture_count
    if len(flat) == picture_count * texts:  # picture by picture, the order of `to_masks`
        return [flat[start : start + texts] for start in range(0, len(flat), texts)]
    raise ValueError(
        f"There are {len(flat)} boxes for {texts} object texts and {picture_count} pictures; expected {texts} (the "
        f"same in every picture), {texts * picture_count} (picture by picture), or a list for each picture."
    )


def _assign(marked: list[Marked], names: Sequence[str], picture: int) -> tuple[tuple[Detection, ...], ...]:
    """Each text's detections in one picture, best first. names: the texts, normalised by `plain`."""
    if len(set(names)) == 1:
        owned = [(0, each) for each in marked]
    elif _labelled(marked, names):
        owned = [(names.index(each.label), each) for each in marked if each.label in names]
    elif len(marked) == len(names) or not marked:
        owned = list(enumerate(marked))
    else:
        raise ValueError(
            f"Picture {picture + 1} has {len(marked)} boxes for {len(names)} object texts ({', '.join(names)}): give "
            "one box a text, in the texts' order, or boxes whose labels are the texts."
        )
    found = [[each.detection for owner, each in owned if owner == text] for text in range(len(names))]
    return tuple(_best_first([each for each in own if each is not None]) for own in found)


def _best_first(detections: Sequence[Detection]) -> tuple[Detection, ...]:
    return tuple(sorted(detections, key=lambda each: -each.score))


def _labelled(marked: Sequence[Marked], names: Sequence[str]) -> bool:
    return any(each.label in names for each in marked)


def edges_of(
    boxes: Any, text: str = "", number: int = 0, size: tuple[int, int] | None = None, form: str = SIDES
) -> list[Box]:
    """Edges (left, top, right, bottom) of boxes as fractions of the picture. Boxes of several pictures become one list.

    boxes: Detections, or any of the formats of `box_formats`.
    text: only boxes with this label; "" takes all.
    number: which of those boxes, counted from 1; 0 takes all.
    size: height and width of the picture; Detections and SEGS bring their own.
    form: what four bare numbers mean, one of FORMATS.

    Raises ValueError if no box is left.
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
    """(height, width) from SEGS. Raises ValueError for other formats, which do not hold the picture's size."""
    if isinstance(boxes, tuple | list) and len(boxes) == 2 and isinstance(boxes[0], tuple):
        height, width = boxes[0][:2]
        if isinstance(height, int) and isinstance(width, int):
            return height, width
    raise ValueError("The boxes count pixels of a picture: connect it as “images”, so that its size is known.")


def _flat(marked: list[Marked] | list[list[Marked]]) -> list[Marked]:
    return [each for item in marked for each in (item if isinstance(item, list) else [item])]
