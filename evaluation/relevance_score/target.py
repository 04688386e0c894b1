"""Where the object of the relevance score is, told by detections or by masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...common.text import object_number
from ..detection.detections import Detections
from ..detection.matching import match_objects, missing


class Target(NamedTuple):
    """Where the object is. name: what to call it; regions [B or 1, H, W] in 0..1; missing: for each picture why it is
    not there, empty where it is; told_by: boxes or masks, in words."""

    name: str
    regions: Tensor
    missing: tuple[str, ...]
    told_by: str


def detected(detections: Detections, wanted: str) -> Target:
    """The object by its words or its number (`object_number`): in each picture the thing that counts for it when every
    thing is given to one text only; [B, H, W], empty where there is none."""
    text = object_number(wanted, detections.texts)
    empty = torch.zeros(detections.height, detections.width)
    regions, why, masks = [], [], 0
    for picture in range(len(detections)):
        things = match_objects(detections, picture, detections.texts)
        found = None if (row := things.own[text]) is None else things.found[row]
        regions.append(found.region(*empty.shape) if found else empty)
        why.append(missing(detections, picture, detections.texts, things).get(text, ""))
        masks += found is not None and found.mask is not None
    boxes = why.count("") - masks
    told_by = f"masks ({masks}) and boxes ({boxes})" if masks and boxes else "masks" if masks else "boxes"
    return Target(f"“{detections.texts[text]}”", torch.stack(regions), tuple(why), f"the detections' {told_by}")


def masked(masks: Tensor, wanted: str, pictures: int) -> Target:
    """The object's masks [pictures or 1, H, W] and what to call it, from one mask for all pictures, one a picture, or
    one an object for each picture (as MIP Relevance Maps gives them): then `wanted` is its number from 1 on."""
    masks = masks.unsqueeze(0) if masks.ndim == 2 else masks
    count = masks.shape[0]
    if count in (1, pictures):
        return Target(wanted.strip() or "the object", masks, (), "masks")
    if pictures == 0 or count % pictures:
        raise ValueError(
            f"There are {count} masks for {pictures} pictures: give one for all, one a picture, or one an object for "
            "each picture."
        )
    objects = count // pictures
    number = wanted.strip() or "1"
    if not number.isdecimal() or not 1 <= int(number) <= objects:
        raise ValueError(
            f"The masks are of {objects} objects, and masks have no names: write the object's number, 1 to {objects}, "
            f"instead of “{wanted}”, or connect detections."
        )
    return Target(f"object {number}", masks.unflatten(0, (pictures, objects))[:, int(number) - 1], (), "masks")
