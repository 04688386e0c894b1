"""Searches pictures for object texts with any detector."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from torch import Tensor

from ...attention.options import between
from ...common.batching import Tick, in_batches
from ...common.crops import check_images, describe, iou
from ...common.text import check_texts, plain, spoken
from .detections import Detection, Detections
from .matching import SAME_PLACE

BATCH = 4  # pictures in one batch
THRESHOLD = 0.25  # the usual one for Grounding DINO


class Seen(NamedTuple):
    """A detector's answer for one text in one picture.

    found: detections with scores above the threshold.
    best_rejected: if found is empty, the threshold below which something would have been found; 0 for nothing at all.
    """

    found: Sequence[Detection]
    best_rejected: float = 0.0


class Detector(Protocol):
    """Finds objects by their texts. name: the detector's name in reports."""

    @property
    def name(self) -> str: ...

    def find(self, images: Tensor, texts: Sequence[str], threshold: float, text_threshold: float) -> list[list[Seen]]:
        """One list for each picture with an answer for each text. Boxes may reach beyond the picture.

        images [B, H, W, 3]: in 0..1.
        """
        ...


def object_texts(typed: str) -> tuple[str, ...]:
    """Object texts from one string, separated by line breaks, commas or semicolons, each once."""
    texts = [" ".join(each.split()) for each in re.split(r"[\n,;]", typed)]
    check_texts([text for text in texts if text])
    return distinct(texts)


def distinct(texts: Iterable[str]) -> tuple[str, ...]:
    """The different texts, each as it is first written, without empty ones. `plain` decides which are equal."""
    different: dict[str, str] = {}
    for text in texts:
        different.setdefault(plain(text), text)
    different.pop("", None)
    return tuple(different.values())


def detect(
    detector: Detector,
    images: Tensor,
    texts: Sequence[str],
    threshold: float = THRESHOLD,
    text_threshold: float = THRESHOLD,
    most: int = 0,
    tick: Tick | None = None,
) -> Detections:
    """Searches pictures for every text.

    images [B, H, W, 3 or 4]: in 0..1.
    threshold: the lowest score of a box.
    text_threshold: the lowest score of one of the text's words in a box; values above threshold count as threshold.
    most: how many detections of one text are kept in a picture, best first; 0 keeps all.
    tick: called with the number of pictures searched since the last call.

    Raises ValueError for images of another shape and without texts.
    """
    check_images(images)
    if not texts:
        raise ValueError("There are no object texts: name what to look for, one object a line, such as “cat”.")
    between("threshold", threshold, 0, 1)
    between("text_threshold", text_threshold, 0, 1)
    height, width = images.shape[1:3]
    queries = [spoken(text) for text in texts]

    def find(batch: Tensor) -> list[list[Seen]]:
        pixels = batch[..., :3].float().nan_to_num().clamp(0, 1)
        return detector.find(pixels, queries, threshold, min(text_threshold, threshold))

    seen = [picture for batch in in_batches(find, images, BATCH, tick) for picture in batch]
    found = tuple(tuple(_tidy(each.found, height, width, most) for each in picture) for picture in seen)
    best_rejected = tuple(tuple(float(each.best_rejected) for each in picture) for picture in seen)
    return Detections(tuple(texts), height, width, found, threshold, best_rejected)


def _tidy(found: Sequence[Detection], height: int, width: int, most: int) -> tuple[Detection, ...]:
    """Detections clipped to the picture, best first, without those that overlap a better one by more than SAME_PLACE.

    most: how many are kept; 0 keeps all.
    """
    tidied = []
    for each in sorted(found, key=lambda each: -each.score):
        x0, y0, x1, y1 = each.box
        box = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1 and all(iou(box, kept.box) <= SAME_PLACE for kept in tidied):
            tidied.append(Detection(box, each.score, each.mask))
    return tuple(tidied[: most or None])


def detection_report(detections: Detections) -> str:
    """A line for each picture: what was found where, and what was not found."""
    lines = []
    for picture in range(len(detections)):
        phrases = []
        for text, name in enumerate(detections.texts):
            found = detections.found[picture][text]
            places = ", ".join(f"{each.score:.2f} at {describe(each.box)}" for each in found)
            best = detections.best_rejected[picture][text] if detections.best_rejected else 0.0
            phrases.append(
                f"{name} {places}" if found else f"{name} not found" + (f" (best {best:.2f})" if best else "")
            )
        lines.append(f"picture {picture + 1}: {'; '.join(phrases)}")
    return "\n".join(lines)
