"""The miniature world's detector: no weights, only pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..miniature.judge import Found, judge
from ..miniature.world import SIZE
from ..miniature.world_shapes import KINDS
from .detect import Seen
from .detections import Detection, bounds

NAME = "miniature world (pixels)"


class PixelDetector:
    """Finds objects of the miniature world by their colour and names them by their outline. The score is the overlap
    (intersection over union) with the outline of that kind."""

    name = NAME

    def find(self, images: Tensor, texts: Sequence[str], threshold: float, text_threshold: float) -> list[list[Seen]]:
        kinds = [kind_of(text) for text in texts]
        height, width = images.shape[1:3]
        square = F.pad(images.movedim(-1, 1), (0, max(height - width, 0), 0, max(width - height, 0)), value=1.0)
        side = square.shape[-1]
        if side > 2 * SIZE:  # outlines need no more pixels than the world was drawn with
            square = F.interpolate(square, (SIZE, SIZE), mode="area")
        return [[_seen(found, kind, side, height, width, threshold) for kind in kinds] for found in judge(square)]


def kind_of(text: str) -> int:
    """The number in KINDS of the kind that a text names; ValueError where it names none, or several."""
    words = re.findall(r"[a-z]+", text.lower())
    named = [number for number, kind in enumerate(KINDS) if kind in words]
    if len(named) != 1:
        raise ValueError(
            f"The detector “{NAME}” cannot look for “{text}”: it knows the miniature world's objects only, one a text: "
            f"{', '.join(KINDS)}. Use one of these, or load a Grounding DINO folder for other pictures."
        )
    return named[0]


def _seen(found: list[Found], kind: int, side: int, height: int, width: int, threshold: float) -> Seen:
    """Of what was found in a square that holds the picture at its upper left, side pixels a side."""
    detections, near = [], 0.0
    for each in found:
        if each.kind != kind:
            continue
        if each.fit <= threshold:
            near = max(near, each.fit)
            continue
        mask = F.interpolate(each.mask[None, None].float(), (side, side))[0, 0, :height, :width]
        if (mask > 0).any():
            detections.append(Detection(bounds(mask > 0), each.fit, mask.to(torch.float32)))
    return Seen(detections, 0.0 if detections else near)
