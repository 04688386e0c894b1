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

    found: C detections, the objects' own first.
    found_as [C]: the object that each detection counts for.
    detection_of [M]: for each object the number of its detection, None if it was not found.
    also_seen_as [M]: for an object without a detection of its own, the number of a detection that was found for it too
        but belongs to an object of another text; else None.
    """

    found: tuple[Detection, ...]
    found_as: tuple[int, ...]
    detection_of: tuple[int | None, ...]
    also_seen_as: tuple[int | None, ...]


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
    scores = _scores(places, numbers)
    whose = _assigned(scores)
    order = [*sorted(whose, key=lambda p: whose[p]), *(p for p in range(len(places)) if p not in whose)]
    found_as = [whose.get(p, int(scores[:, p].argmax())) for p in order]
    rows = {p: row for row, p in enumerate(order)}
    found = {m: rows[p] for p, m in whose.items()}
    owners = np.array([numbers[whose[p]] if p in whose else -1 for p in range(len(places))])  # [P]
    of_others = np.where(owners != np.array(numbers)[:, None], scores, ABSENT)
    also = {m: rows[int(of.argmax())] for m, of in enumerate(of_others) if m not in found and (of > ABSENT).any()}
    return ObjectMatches(
        tuple(_best(places[p], numbers[m]) for p, m in zip(order, found_as, strict=True)),
        tuple(found_as),
        detection_of=tuple(found.get(m) for m in range(len(texts))),
        also_seen_as=tuple(also.get(m) for m in range(len(texts))),
    )


def rematch_by_appearance(matches: ObjectMatches, texts: Sequence[str], similarity: Tensor) -> ObjectMatches:
    """Gives objects of the same text, which no detector can tell apart, the detections that look most like them.

    similarity [C, M]: of the detections' crops to the references.
    """
    found_as, detection_of = list(matches.found_as), list(matches.detection_of)
    also_seen_as = list(matches.also_seen_as)
    names = [plain(text) for text in texts]
    for name in {each for each in names if names.count(each) > 1}:
        alike = [m for m, each in enumerate(names) if each == name]
        rows = [row for row in (detection_of[m] for m in alike) if row is not None]
        # Of one text, so the same for all that have no detection.
        also_seen = next((row for row in (also_seen_as[m] for m in alike) if row is not None), None)
        for m in alike:
            detection_of[m] = None
        for i, j in zip(*linear_sum_assignment(similarity[rows][:, alike].numpy(), maximize=True), strict=True):
            detection_of[alike[j]], found_as[rows[i]] = rows[i], alike[j]
        for m in alike:
            also_seen_as[m] = also_seen if detection_of[m] is None else None
    return matches._replace(
        found_as=tuple(found_as), detection_of=tuple(detection_of), also_seen_as=tuple(also_seen_as)
    )


def may_hold(
    every: Sequence[ObjectMatches], references: Sequence[Reference], size: tuple[int, int]
) -> list[tuple[int | None, ...]]:
    """For each picture and object without a detection of its own: another object's detection that may hold it too.

    every: the matches of each picture.
    size: height and width of the pictures, in pixels.

    Returns a tuple [M] for each picture: the number of that detection, or None.

    Two objects that touch are often found as one. A detection may hold both if the detector found it for both, if its
    box covers more than half of both objects' regions, or if it is at least twice as large as its object's median box
    in the pictures where both were found. Objects with the same text are never taken as one detection: one is missing.
    """
    names = [plain(each.text) for each in references]

    def region(m: int, b: int) -> Tensor | None:
        """The region [H, W] of object m in picture b. Of as many masks as there are pictures, each has its own."""
        masks = references[m].region
        if masks is None or len(masks) not in (1, len(every)):  # of some pictures of a batch: unknown which
            return None
        return masks[b % len(masks)]

    def holds(b: int, m: int, j: int, row: int) -> bool:
        if names[m] == names[j]:
            return False
        matches = every[b]
        box = matches.found[row].box
        alone = [
            box_area(each.found[i].box)
            for each in every
            if (i := each.detection_of[j]) is not None and each.detection_of[m] is not None
        ]
        return (
            matches.also_seen_as[m] == row
            or all(_covered(region(k, b), box, size) > COVERED for k in (m, j))
            or (bool(alone) and box_area(box) >= MUCH_LARGER * median(alone))
        )

    def holder(b: int, m: int) -> int | None:
        matches = every[b]
        if matches.detection_of[m] is not None:
            return None
        rows = [row for j, row in enumerate(matches.detection_of) if row is not None and holds(b, m, j, row)]
        # A detection that was found for both is better evidence than sizes are.
        return matches.also_seen_as[m] if matches.also_seen_as[m] in rows else next(iter(rows), None)

    return [tuple(holder(b, m) for m in range(len(names))) for b in range(len(every))]


def _covered(region: Tensor | None, box: Box, size: tuple[int, int]) -> float:
    """The share of a region [H, W] that lies in a box; 0 without a region. size: height and width of the picture."""
    if region is None or not region.any():
        return 0.0
    inside = Detection(box).region(*size)
    placed = resize(region.float(), size)
    return float((placed * inside).sum() / placed.sum())


def best_rejected(detections: Detections, picture: int, texts: Sequence[str]) -> tuple[float, ...]:
    """`Detections.best_rejected` of one picture for each object."""
    numbers = _text_numbers(detections, texts)
    return tuple(detections.best_rejected[picture][number] if detections.best_rejected else 0.0 for number in numbers)


def missing(detections: Detections, picture: int, texts: Sequence[str], matches: ObjectMatches) -> dict[int, str]:
    """For each object without a detection of its own in one picture: a sentence with the reason and a remedy."""
    numbers = _text_numbers(detections, texts)
    return {
        m: detections.why_missing(picture, numbers[m])
        or f"In picture {picture + 1} “{texts[m]}” was found only where another object of the texts was found with "
        "more certainty: name the objects more distinctly, or correct the boxes."
        for m, row in enumerate(matches.detection_of)
        if row is None
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
