"""Matches detections to objects, so that each place in a picture counts for one object only."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...attention.reference import Reference
from ...attention.regions import resize
from ...common.crops import Box, box_area, iou
from ...common.text import brief, plain, some
from .detections import Detection, Detections

SAME_PLACE = 0.7  # boxes with a larger intersection over union are at the same place
COVERED = 0.5  # a box that covers a larger share of both objects' regions may hold both
MUCH_LARGER = 2.0  # so may a box this many times as large as the object's median box
ABSENT = -1.0  # in a matrix of scores, which lie in 0..1: not found


class ObjectMatches(NamedTuple):
    """The detections of one picture, one for each place, and the M objects that they count for.

    found: C detections, the objects' own first. A detection's number is also its crop's.
    found_as [C]: the number of the object that each crop counts for.
    crop_of [M]: the number of each object's crop, None if it was not found.
    shared_crop [M]: for an object without a crop, the number of a crop that was found for it too but counts for an
        object of another text; else None.
    """

    found: tuple[Detection, ...]
    found_as: tuple[int, ...]
    crop_of: tuple[int | None, ...]
    shared_crop: tuple[int | None, ...]


def match_objects(detections: Detections, picture: int, texts: Sequence[str]) -> ObjectMatches:
    """Matches the detections in one picture to objects.

    texts: the M object texts; they may repeat.

    A detector answers every text, so several texts often find the same place. Detections at the same place become one,
    and each object gets a place of its own, by the assignment with the largest sum of scores. A place that is left over
    counts for the text with the highest score there.

    Raises ValueError for a text that was not searched.
    """
    numbers = _text_numbers(detections, texts)
    places = _places(detections, picture, set(numbers))
    scores = _scores(places, numbers)  # [M, P], of object m at place p
    object_at = _assigned(scores)
    own = sorted(object_at, key=lambda p: object_at[p])
    order = [*own, *(p for p in range(len(places)) if p not in object_at)]  # place p of crop c
    found_as = [object_at.get(p, int(scores[:, p].argmax())) for p in order]
    crop_of = {object_at[p]: c for c, p in enumerate(own)}
    shared_crop = _shared_crops(scores[:, order], numbers, found_as)
    return ObjectMatches(
        tuple(_best(places[p], numbers[m]) for p, m in zip(order, found_as, strict=True)),
        tuple(found_as),
        tuple(crop_of.get(m) for m in range(len(texts))),
        tuple(None if m in crop_of else shared_crop[m] for m in range(len(texts))),
    )


def _shared_crops(scores: np.ndarray, numbers: Sequence[int], found_as: Sequence[int]) -> list[int | None]:
    """For each object, the number of its best crop among those of other texts; None if there is none.

    scores [M, C]: of object m at crop c.
    numbers [M]: of the objects' texts.
    found_as [C]: as in `ObjectMatches`.
    """
    others = np.array(numbers)[:, None] != np.array([numbers[m] for m in found_as])  # [M, C]
    scores = np.where(others, scores, ABSENT)
    return [int(row.argmax()) if (row > ABSENT).any() else None for row in scores]


def rematch_by_appearance(matches: ObjectMatches, texts: Sequence[str], similarity: Tensor) -> ObjectMatches:
    """Shares out the crops of objects of the same text, which no detector can tell apart, by look.

    Which crops these are is decided by score, as for an object whose text is its own: one that is left over stays so,
    however much it looks like a reference. Places chosen by look would make every binding seem better than it is.

    similarity [C, M]: of the crops to the references.
    """
    found_as, crop_of = list(matches.found_as), list(matches.crop_of)
    shared_crop = list(matches.shared_crop)
    names = [plain(text) for text in texts]
    for name in {each for each in names if names.count(each) > 1}:
        alike = [m for m, each in enumerate(names) if each == name]
        crop_numbers = [crop for crop in (crop_of[m] for m in alike) if crop is not None]
        # Of one text, so the same for all that have no crop.
        shared = next((crop for crop in (shared_crop[m] for m in alike) if crop is not None), None)
        for m in alike:
            crop_of[m] = None
        for i, j in zip(*linear_sum_assignment(similarity[crop_numbers][:, alike].numpy(), maximize=True), strict=True):
            crop_of[alike[j]], found_as[crop_numbers[i]] = crop_numbers[i], alike[j]
        for m in alike:
            shared_crop[m] = shared if crop_of[m] is None else None
    return ObjectMatches(matches.found, tuple(found_as), tuple(crop_of), tuple(shared_crop))


def held_by(
    every: Sequence[ObjectMatches], references: Sequence[Reference], size: tuple[int, int]
) -> list[tuple[int | None, ...]]:
    """For each picture and object without a crop: the number of another object whose crop may hold it too.

    every: the matches of each picture.
    size: height and width of the pictures, in pixels.

    Returns a tuple [M] for each picture: the number of that object, or None.

    Two objects that touch are often found as one. A crop may hold both if the detector found it for both, if its box
    covers more than half of both objects' regions, or if it is at least twice as large as its object's median box in
    the pictures where both were found. Objects with the same text are never taken as one crop: one is missing.
    """
    names = [plain(each.text) for each in references]

    def region(m: int, b: int) -> Tensor | None:
        """The region [H, W] of object m in picture b. Of as many masks as there are pictures, each has its own."""
        masks = references[m].region
        if masks is None or len(masks) not in (1, len(every)):  # of some pictures of a batch: unknown which
            return None
        return masks[b % len(masks)]

    def may_hold(b: int, j: int, m: int) -> bool:
        """Whether the crop of object j in picture b may hold object m too."""
        matches = every[b]
        if (crop := matches.crop_of[j]) is None or names[m] == names[j]:
            return False
        box = matches.found[crop].box
        alone = [
            box_area(each.found[c].box)
            for each in every
            if (c := each.crop_of[j]) is not None and each.crop_of[m] is not None
        ]
        return (
            matches.shared_crop[m] == crop
            or all(_covered(region(k, b), box, size) > COVERED for k in (m, j))
            or (bool(alone) and box_area(box) >= MUCH_LARGER * median(alone))
        )

    def holder(b: int, m: int) -> int | None:
        matches = every[b]
        if matches.crop_of[m] is not None:
            return None
        holders = [j for j in range(len(names)) if may_hold(b, j, m)]
        # A crop that was found for both is better evidence than sizes are.
        found_for_both = (j for j in holders if matches.crop_of[j] == matches.shared_crop[m])
        return next(found_for_both, next(iter(holders), None))

    return [tuple(holder(b, m) for m in range(len(names))) for b in range(len(every))]


def _covered(region: Tensor | None, box: Box, size: tuple[int, int]) -> float:
    """The share of a region [H, W] that lies in a box; 0 without a region. size: height and width of the picture."""
    if region is None or not region.any():
        return 0.0
    inside = Detection(box).as_mask(*size)
    placed = resize(region.float(), size)
    return float((placed * inside).sum() / placed.sum())


def best_rejected(detections: Detections, picture: int, texts: Sequence[str]) -> tuple[float, ...]:
    """`Detections.best_rejected` of one picture for each object."""
    numbers = _text_numbers(detections, texts)
    return tuple(detections.best_rejected[picture][number] if detections.best_rejected else 0.0 for number in numbers)


def missing(detections: Detections, picture: int, texts: Sequence[str], matches: ObjectMatches) -> dict[int, str]:
    """For each object without a crop in one picture: a sentence with the reason and a remedy."""
    numbers = _text_numbers(detections, texts)
    return {
        m: detections.why_missing(picture, numbers[m])
        or f"In picture {picture + 1} “{texts[m]}” was found only where another object of the texts was found with "
        "more certainty: name the objects more distinctly, or correct the boxes."
        for m, crop in enumerate(matches.crop_of)
        if crop is None
    }


def _text_numbers(detections: Detections, texts: Sequence[str]) -> list[int]:
    known = {plain(text): number for number, text in enumerate(detections.texts)}
    if lacking := [text for text in texts if plain(text) not in known]:
        searched = some((f"“{brief(text, 40)}”" for text in detections.texts), 16)
        raise ValueError(
            f"The detections are of {searched}, and the references name “{brief(lacking[0], 60)}”: give the detector "
            "the same object texts as the references."
        )
    return [known[plain(text)] for text in texts]


AtPlace = list[tuple[int, Detection]]  # (number of the text, detection) at one place, best score first


def _places(detections: Detections, picture: int, wanted: set[int]) -> list[AtPlace]:
    """The detections of the wanted texts in one picture, grouped by place."""
    places: list[AtPlace] = []
    for text, detection in sorted(detections.every(picture), key=lambda each: -each[1].score):
        if text not in wanted:
            continue
        same = next((p for p in places if iou(p[0][1].box, detection.box) > SAME_PLACE), None)
        if same is None:
            places.append([(text, detection)])
        else:
            same.append((text, detection))
    return places


def _best(place: AtPlace, number: int) -> Detection:
    return next(detection for text, detection in place if text == number)


def _scores(places: Sequence[AtPlace], numbers: Sequence[int]) -> np.ndarray:
    """The best score of every object at every place, [M, P]; ABSENT where it was not found.

    numbers [M]: the number of each object's text.
    """
    scores = np.full((len(numbers), len(places)), ABSENT)
    for p, place in enumerate(places):
        for m, number in enumerate(numbers):
            scores[m, p] = max((d.score for text, d in place if text == number), default=ABSENT)
    return scores


def _assigned(scores: np.ndarray) -> dict[int, int]:
    """{place: object} with the largest sum of scores [M, P]; each place and each object occurs at most once."""
    there = scores > ABSENT
    gain = np.where(there, scores + 1e-6, 0.0)  # so that a detection with score 0 counts more than none
    pairs = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    return {int(p): int(m) for m, p in pairs if there[m, p]}
