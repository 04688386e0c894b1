"""Where the object of the relevance score is, from detections or masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...common.text import brief, object_number, whole_number
from ..detection.detections import Detections
from ..detection.matching import match_objects, missing


class Target(NamedTuple):
    """Where the object is.

    name: the object's name in reports.
    regions [B or 1, H, W]: in 0..1.
    missing [B]: for each picture why the object is not there, "" where it is; empty for masks.
    told_by: whether boxes or masks gave the regions, in words.
    """

    name: str
    regions: Tensor
    missing: tuple[str, ...]
    told_by: str


def detected(detections: Detections, wanted: str) -> Target:
    """The target from detections: in each picture the object's own detection, where each place counts for one text.

    wanted: the object's text or number (`object_number`).

    The region is empty in pictures where the object was not found.
    """
    text = object_number(wanted, detections.texts)
    empty = torch.zeros(detections.height, detections.width)
    regions, why, masks = [], [], 0
    for picture in range(len(detections)):
        matches = match_objects(detections, picture, detections.texts)
        found = None if (crop := matches.crop_of[text]) is None else matches.found[crop]
        regions.append(found.as_mask(*empty.shape) if found else empty)
        why.append(missing(detections, picture, detections.texts, matches).get(text, ""))
        masks += found is not None and found.mask is not None
    boxes = why.count("") - masks
    told_by = f"masks ({masks}) and boxes ({boxes})" if masks and boxes else "masks" if masks else "boxes"
    return Target(f"“{detections.texts[text]}”", torch.stack(regions), tuple(why), f"the detections' {told_by}")


def masked(masks: Tensor, wanted: str, picture_count: int) -> Target:
    """The target from masks.

    masks [n, H, W]: one for all pictures, one for each picture, or one for each object of each picture, picture by
        picture, as MIP Relevance Maps gives them.
    wanted: with masks of several objects, the object's number, counted from 1; else its name.
    picture_count: how many pictures there are.

    Raises ValueError for another number of masks or a number that is no object's.
    """
    masks = masks.unsqueeze(0) if masks.ndim == 2 else masks
    count = masks.shape[0]
    if count in (1, picture_count):
        return Target(wanted.strip() or "the object", masks, (), "masks")
    if picture_count == 0 or count % picture_count:
        raise ValueError(
            f"There are {count} masks for {picture_count} pictures: give one for all, one a picture, or one an object "
            "for each picture."
        )
    objects = count // picture_count
    number = whole_number(wanted.strip() or "1")
    if number is None or not 1 <= number <= objects:
        raise ValueError(
            f"The masks are of {objects} objects, and masks have no names: write the object's number, 1 to {objects}, "
            f"instead of “{brief(wanted, 60)}”, or connect detections."
        )
    return Target(f"object {number}", masks.unflatten(0, (picture_count, objects))[:, number - 1], (), "masks")
