"""The detector of the miniature's world. It has no weights and reads pixels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from ..common.crops import bounds
from ..evaluation.detection.detect import Seen
from ..evaluation.detection.detections import Detection
from .judge import Outlined, coloured, judge
from .world import SIZE
from .world_shapes import KINDS

NAME = "miniature world (pixels)"


class PixelDetector:
    """A Detector that finds objects of the miniature's world by their colours and names them by their outlines.

    The score is the intersection over union with the outline of that kind.
    """

    name = NAME

    def find(self, images: Tensor, texts: Sequence[str], threshold: float, text_threshold: float) -> list[list[Seen]]:
        kinds = [kind_of(text) for text in texts]
        height, width = images.shape[1:3]
        square = F.pad(images.movedim(-1, 1), (0, max(height - width, 0), 0, max(width - height, 0)), value=1.0)
        # The judge needs no more pixels than the world is drawn with.
        small = square if square.shape[-1] <= 2 * SIZE else F.interpolate(square, (SIZE, SIZE), mode="area")
        seen = []
        for picture, found in zip(square, judge(small), strict=True):
            masks = [_in_full(each.mask, picture)[:height, :width] for each in found]
            seen.append([_seen(found, masks, kind, threshold) for kind in kinds])
        return seen


def _in_full(mask: Tensor, picture: Tensor) -> Tensor:
    """A mask [s, s] found in the smaller picture, in the pixels of this picture [3, S, S]: [S, S] bool."""
    side = picture.shape[-1]
    if len(mask) == side:
        return mask
    grown = F.max_pool2d(mask[None, None].float(), 3, 1, 1)
    return (F.interpolate(grown, (side, side))[0, 0] > 0) & coloured(picture)


def kind_of(text: str) -> int:
    """The number in KINDS of the kind that a text names. Raises ValueError if it names none, or several."""
    words = re.findall(r"[a-z]+", text.lower())
    named = [number for number, kind in enumerate(KINDS) if kind in words]
    if len(named) != 1:
        raise ValueError(
            f"The detector “{NAME}” cannot look for “{text}”: it knows the miniature world's objects only, one a text: "
            f"{', '.join(KINDS)}. Use one of these, or load a Grounding DINO folder for other pictures."
        )
    return named[0]


def _seen(found: list[Outlined], masks: list[Tensor], kind: int, threshold: float) -> Seen:
    """The detector's answer for one kind. masks: of the objects that were found, [H, W] bool each."""
    of_kind = [(each.fit, mask) for each, mask in zip(found, masks, strict=True) if each.kind == kind and mask.any()]
    detections = [Detection(bounds(mask), fit, mask.float()) for fit, mask in of_kind if fit > threshold]
    return Seen(detections, 0.0 if detections else max((fit for fit, _ in of_kind), default=0.0))
