"""The objects of pictures, cut out, told apart and encoded: what all scores of crops are made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..attention.reference import Reference
from ..common.batching import Tick
from .detection.crops import check_pictures, crop
from .detection.detections import Detections
from .detection.matching import ObjectMatches, match_objects, rematch_by_appearance
from .encoders.embeddings import embed
from .encoders.encoder import ImageEncoder


class ObjectEmbeddings(NamedTuple):
    """One picture's C things, their crops, and the crops' unit embeddings [C, E]."""

    things: ObjectMatches
    crops: tuple[Image.Image, ...]
    embeddings: Tensor


def objects_in(
    images: Tensor,
    references: Sequence[Reference],
    detections: Detections,
    encoder: ImageEncoder,
    means: Tensor,
    tick: Tick | None = None,
) -> list[ObjectEmbeddings]:
    """One a picture of images [B, H, W, 3]. means [M, E]: of the unit embeddings of every reference's pictures, for
    what the detector cannot tell apart."""
    texts = [reference.text for reference in references]
    every = [match_objects(detections, b, texts) for b in range(len(images))]
    crops = [tuple(crop(image, each) for each in things.found) for image, things in zip(images, every, strict=True)]
    flat = [each for row in crops for each in row]
    seen = embed(encoder, flat, tick) if flat else means[:0]
    return [
        ObjectEmbeddings(rematch_by_appearance(things, texts, part @ means.T), row, part)
        for things, row, part in zip(every, crops, seen.split([len(row) for row in crops]), strict=True)
    ]


def check_parts(images: Tensor, references: Sequence[Reference], detections: Detections | None) -> None:
    """Raises ValueError where there is nothing to compare, or where things do not belong together."""
    if images.ndim != 4 or not len(images) or images.shape[-1] not in (3, 4):
        raise ValueError(
            f"The pictures have the shape {list(images.shape)}; expected [pictures, height, width, 3], as the host's "
            "IMAGE is."
        )
    if not references:
        raise ValueError("There are no references: connect the chain of MIP Reference that made the pictures.")
    if detections is not None:
        check_pictures(images, detections)


def crops_at_most(detections: Detections) -> int:
    """How many crops `objects_in` encodes at most, for a progress bar."""
    return sum(1 for b in range(len(detections)) for _ in detections.every(b))
