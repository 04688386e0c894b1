"""The objects of pictures: matched to their references, cut out and embedded. All scores of crops start here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from ..attention.reference import Reference
from ..common.batching import Tick
from ..common.crops import check_images
from .detection.crops import check_pictures, crop
from .detection.detections import Detections
from .detection.matching import ObjectMatches, match_objects, rematch_by_appearance
from .encoders.embeddings import embed
from .encoders.encoder import ImageEncoder


class ObjectEmbeddings(NamedTuple):
    """The C matched detections of one picture.

    matches: the detections and the objects that they count for.
    crops: the C detections, cut out.
    embeddings [C, E]: unit embeddings of the crops.
    """

    matches: ObjectMatches
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
    """The objects of every picture, B entries.

    images [B, H, W, 3]: in 0..1, those that were searched.
    means [M, E]: for each reference the mean of its pictures' unit embeddings. They decide between objects of the same
        text, which no detector can tell apart.
    tick: called with the number of crops embedded since the last call.

    Raises ValueError for a reference whose text was not searched, and where box and mask leave nothing of an object.
    """
    texts = [reference.text for reference in references]
    matched = [match_objects(detections, b, texts) for b in range(len(images))]
    crops = [tuple(crop(image, each) for each in matches.found) for image, matches in zip(images, matched, strict=True)]
    flat = [each for picture in crops for each in picture]
    vectors = embed(encoder, flat, tick) if flat else means[:0]
    return [
        ObjectEmbeddings(rematch_by_appearance(matches, texts, each @ means.T), picture, each)
        for matches, picture, each in zip(matched, crops, vectors.split(list(map(len, crops))), strict=True)
    ]


def check_inputs(images: Tensor, references: Sequence[Reference], detections: Detections | None) -> None:
    """Raises ValueError without pictures or references, and where detections are not of these pictures."""
    check_images(images)
    if not references:
        raise ValueError("There are no references: connect the chain of MIP Reference that made the pictures.")
    if detections is not None:
        check_pictures(images, detections)


def crops_at_most(detections: Detections) -> int:
    """The largest number of crops that `objects_in` may embed, for a progress bar."""
    return sum(1 for b in range(len(detections)) for _ in detections.every(b))
