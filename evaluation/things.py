"""What is in a picture: every thing once, and which object it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .detections import Detection, Detections

SAME_PLACE = 0.7  # boxes that overlap more (intersection over union) show one and the same thing


class Things(NamedTuple):
    """found: C things, the objects' own first; found_as: the object that each counts for; own: for each of the M
    objects the number of its thing, None where it was not found; instead: for an object without a thing of its own the
    thing that was found for it too, but is another object's."""

    found: tuple[Detection, ...]
    found_as: tuple[int, ...]
    own: tuple[int | None, ...]
    instead: tuple[int | None, ...]


def choose(detections: Detections, picture: int, texts: Sequence[str]) -> Things:
    """The things in one picture for the objects `texts`.

    Detectors answer every text, so one thing is often found by several. Detections at the same place are one thing, and
    the objects get different things, by the assignment with the largest sum of scores. What is left over counts for the
    text with the highest score there. Raises ValueError for a text that was not searched.
    """
    numbers = _text_numbers(detections, texts)
    places = _places(detections, picture, set(numbers))
    scores = np.zeros((len(texts), len(places)))
    for p, place in enumerate(places):
        for m, number in enumerate(numbers):
            scores[m, p] = max((d.score for text, d in place if text == number), default=0.0)
    pairs = zip(*linear_sum_assignment(scores, maximize=True), strict=True)
    whose = {int(p): int(m) for m, p in pairs if scores[m, p] > 0}
    order = [*sorted(whose, key=lambda p: whose[p]), *(p for p in range(len(places)) if p not in whose)]
    found_as = tuple(whose[p] if p in whose else int(scores[:, p].argmax()) for p in order)
    found = [next(d for text, d in places[p] if text == numbers[m]) for p, m in zip(order, found_as, strict=True)]
    own: list[int | None] = [None] * len(texts)
    for row, p in enumerate(order):
        if p in whose:
            own[whose[p]] = row
    instead: list[int | None] = [None] * len(texts)
    for m, row in enumerate(own):
        if row is None and scores[m].any():
            instead[m] = order.index(int(scores[m].argmax()))
    return Things(tuple(found), found_as, tuple(own), tuple(instead))


def by_look(things: Things, texts: Sequence[str], similarity: Tensor) -> Things:
    """Objects with the same text, which no detector can tell apart, get the things that look most like them.

    similarity [C, M], of the things to the references.
    """
    found_as, own = list(things.found_as), list(things.own)
    for text in {t for t in texts if list(texts).count(t) > 1}:
        alike = [m for m, each in enumerate(texts) if each == text]
        rows = [row for row in (own[m] for m in alike) if row is not None]
        for m in alike:
            own[m] = None
        for i, j in zip(*linear_sum_assignment(similarity[rows][:, alike].numpy(), maximize=True), strict=True):
            own[alike[j]], found_as[rows[i]] = rows[i], alike[j]
    return things._replace(found_as=tuple(found_as), own=tuple(own))


def near(detections: Detections, picture: int, texts: Sequence[str]) -> tuple[float, ...]:
    """For each object the threshold below which it would have been found in one picture (`Detections.near`)."""
    numbers = _text_numbers(detections, texts)
    return tuple(detections.near[picture][number] if detections.near else 0.0 for number in numbers)


def _text_numbers(detections: Detections, texts: Sequence[str]) -> list[int]:
    known = {text.strip().lower(): number for number, text in enumerate(detections.texts)}
    if missing := [text for text in texts if text.strip().lower() not in known]:
        searched = ", ".join(f"“{text}”" for text in detections.texts)
        raise ValueError(
            f"The detections are of {searched}, and the references name “{missing[0]}”: give the detector the same "
            "object texts as the references."
        )
    return [known[text.strip().lower()] for text in texts]


def _places(detections: Detections, picture: int, wanted: set[int]) -> list[list[tuple[int, Detection]]]:
    """(text, detection) in one picture by place, the most certain first."""
    places: list[list[tuple[int, Detection]]] = []
    for text, detection in sorted(detections.every(picture), key=lambda each: -each[1].score):
        if text not in wanted:
            continue
        near = next((p for p in places if overlap(p[0][1].box, detection.box) > SAME_PLACE), None)
        if near is None:
            places.append([(text, detection)])
        else:
            near.append((text, detection))
    return places


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0.0) * max(height, 0.0)
    either = sum(max(x1 - x0, 0.0) * max(y1 - y0, 0.0) for x0, y0, x1, y1 in (a, b)) - both
    return both / either if either > 0 else 0.0
