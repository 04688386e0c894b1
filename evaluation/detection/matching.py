"""What is in a picture: every thing once, and which object it is."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ...attention.reference import Reference
from ...attention.regions import resize
from ...common.crops import Box, overlap
from ...common.text import plain
from .detections import Detection, Detections

SAME_PLACE = 0.7  # boxes that overlap more (intersection over union) show one and the same thing
COVERED = 0.5  # a box that covers more of two objects' regions may hold both
MUCH_LARGER = 2.0  # so may a box of so many times the area that the same object's boxes have in other pictures
ABSENT = -1.0  # in a matrix of scores, which lie in 0..1: not found at all


class ObjectMatches(NamedTuple):
    """found: C things, the objects' own first; found_as: the object that each counts for; own: for each of the M
    objects the number of its thing, None where it was not found; instead: for an object without a thing of its own the
    thing that was found for it too, but is another object's."""

    found: tuple[Detection, ...]
    found_as: tuple[int, ...]
    own: tuple[int | None, ...]
    instead: tuple[int | None, ...]


def match_objects(detections: Detections, picture: int, texts: Sequence[str]) -> ObjectMatches:
    """The things in one picture for the objects `texts`.

    Detectors answer every text, so one thing is often found by several. Detections at the same place are one thing, and
    the objects get different things, by the assignment with the largest sum of scores. What is left over counts for the
    text with the highest score there. Raises ValueError for a text that was not searched.
    """
    numbers = _text_numbers(detections, texts)
    places = _places(detections, picture, set(numbers))
    scores = _scores(places, numbers)
    whose = _assigned(scores)
    order = [*sorted(whose, key=lambda p: whose[p]), *(p for p in range(len(places)) if p not in whose)]
    found_as = [whose.get(p, int(scores[:, p].argmax())) for p in order]
    rows = {p: row for row, p in enumerate(order)}
    own = {m: rows[p] for p, m in whose.items()}
    instead = {m: rows[int(of.argmax())] for m, of in enumerate(scores) if m not in own and (of > ABSENT).any()}
    return ObjectMatches(
        tuple(_best(places[p], numbers[m]) for p, m in zip(order, found_as, strict=True)),
        tuple(found_as),
        tuple(own.get(m) for m in range(len(texts))),
        tuple(instead.get(m) for m in range(len(texts))),
    )


def rematch_by_appearance(things: ObjectMatches, texts: Sequence[str], similarity: Tensor) -> ObjectMatches:
    """Objects with the same text, which no detector can tell apart, get the things that look most like them.

    similarity [C, M], of the things to the references.
    """
    found_as, own = list(things.found_as), list(things.own)
    names = [plain(text) for text in texts]
    for name in {each for each in names if names.count(each) > 1}:
        alike = [m for m, each in enumerate(names) if each == name]
        rows = [row for row in (own[m] for m in alike) if row is not None]
        for m in alike:
            own[m] = None
        for i, j in zip(*linear_sum_assignment(similarity[rows][:, alike].numpy(), maximize=True), strict=True):
            own[alike[j]], found_as[rows[i]] = rows[i], alike[j]
    return things._replace(found_as=tuple(found_as), own=tuple(own))


def may_hold(
    every: Sequence[ObjectMatches], references: Sequence[Reference], size: tuple[int, int]
) -> list[tuple[int | None, ...]]:
    """For each picture and each of the M objects: the thing of another object that may hold it, too, where it has none
    of its own; else None. Two objects that touch are often found as one.

    A thing may hold two objects where the detector found it for both; where its box covers more than half of both
    objects' regions; and where it is at least twice as large as that object is, by the median, in the pictures in which
    both were found. size: height and width of the pictures. Objects with the same text are no such two: one of them is
    missing.
    """
    names = [plain(each.text) for each in references]

    def holds(things: ObjectMatches, m: int, j: int, row: int) -> bool:
        if names[m] == names[j]:
            return False
        box = things.found[row].box
        alone = [
            _area(each.found[own].box) for each in every if (own := each.own[j]) is not None and each.own[m] is not None
        ]
        return (
            things.instead[m] == row
            or all(_covered(references[k].region, box, size) > COVERED for k in (m, j))
            or (bool(alone) and _area(box) >= MUCH_LARGER * median(alone))
        )

    def thing_of(things: ObjectMatches, m: int) -> int | None:
        if things.own[m] is not None:
            return None
        rows = [row for j, row in enumerate(things.own) if row is not None and holds(things, m, j, row)]
        # What was found for both says more than sizes do.
        return things.instead[m] if things.instead[m] in rows else next(iter(rows), None)

    return [tuple(thing_of(things, m) for m in range(len(names))) for things in every]


def _covered(region: Tensor | None, box: Box, size: tuple[int, int]) -> float:
    """The share of a region [1, H, W] that lies in a box of a picture of this size (height, width); without one 0."""
    if region is None or not region.any():
        return 0.0
    inside = Detection(box).region(*size)
    placed = resize(region.float(), size)[0]
    return float((placed * inside).sum() / placed.sum())


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def near(detections: Detections, picture: int, texts: Sequence[str]) -> tuple[float, ...]:
    """For each object the threshold below which it would have been found in one picture (`Detections.near`)."""
    numbers = _text_numbers(detections, texts)
    return tuple(detections.near[picture][number] if detections.near else 0.0 for number in numbers)


def missing(detections: Detections, picture: int, texts: Sequence[str], things: ObjectMatches) -> dict[int, str]:
    """Why objects have no thing of their own in one picture: a sentence each, with a remedy."""
    numbers = _text_numbers(detections, texts)
    return {
        m: detections.why_missing(picture, numbers[m])
        or f"In picture {picture + 1} “{texts[m]}” was found only where another object of the texts was found with "
        "more certainty: name the objects more distinctly, or correct the boxes."
        for m, own in enumerate(things.own)
        if own is None
    }


def _text_numbers(detections: Detections, texts: Sequence[str]) -> list[int]:
    known = {plain(text): number for number, text in enumerate(detections.texts)}
    if lacking := [text for text in texts if plain(text) not in known]:
        searched = ", ".join(f"“{text}”" for text in detections.texts)
        raise ValueError(
            f"The detections are of {searched}, and the references name “{lacking[0]}”: give the detector the same "
            "object texts as the references."
        )
    return [known[plain(text)] for text in texts]


Thing = list[tuple[int, Detection]]  # (text, detection) at one place, the most certain first


def _places(detections: Detections, picture: int, wanted: set[int]) -> list[Thing]:
    """One picture's detections of the wanted texts, put together by where they are."""
    places: list[Thing] = []
    for text, detection in sorted(detections.every(picture), key=lambda each: -each[1].score):
        if text not in wanted:
            continue
        same = next((p for p in places if overlap(p[0][1].box, detection.box) > SAME_PLACE), None)
        if same is None:
            places.append([(text, detection)])
        else:
            same.append((text, detection))
    return places


def _best(place: Thing, number: int) -> Detection:
    return next(detection for text, detection in place if text == number)


def _scores(places: Sequence[Thing], numbers: Sequence[int]) -> np.ndarray:
    """[M, P]: the best score of every object at every place, ABSENT where it was not found."""
    scores = np.full((len(numbers), len(places)), ABSENT)
    for p, place in enumerate(places):
        for m, number in enumerate(numbers):
            scores[m, p] = max((d.score for text, d in place if text == number), default=ABSENT)
    return scores


def _assigned(scores: np.ndarray) -> dict[int, int]:
    """Which place belongs to which object: the largest sum of scores, each place and each object once at most."""
    there = scores > ABSENT
    gain = np.where(there, scores + 1e-6, 0.0)  # what was found with the score 0 is more than what was not
    pairs = zip(*linear_sum_assignment(gain, maximize=True), strict=True)
    return {int(p): int(m) for m, p in pairs if there[m, p]}
