"""What happened to the objects of a picture. Each finding has a name and a condition.

An object that was found *wears* the look of the reference that its crop is most like:

- its own, where its margin is 0 or more;
- another's, where its margin is below 0 and that reference's share of its look is at least 1.5 times any other's (of
  two references: 60 %);
- none, where its margin is below 0 and its look is of several references, or of none.

| name           | condition                                                                                      |
| -------------- | ---------------------------------------------------------------------------------------------- |
| missing        | no crop is the object's own                                                                    |
| exchanged      | two objects or more form a circle: each wears the look of the next, the last that of the first |
| one takes both | two objects or more wear the look of one reference, and one of them belongs to no circle       |
| taken over     | an object of no circle wears another's look, which no other object wears                       |
| blended        | an object wears its own look or none, and 25 % of its look or more is another reference's      |
| unclear        | an object wears no look, has a margin below 0, and under 25 % of its look is any other's       |

So a margin below 0 always has a name. In an exchange, every object of the circle has a negative margin. Where one
reference takes both objects, the reference's own object wears it, or is in a circle itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from .binding import PictureBinding

AHEAD = 1.5  # another reference's look is worn if its share is this many times any other's
BLENDED = 0.25  # an object is blended if another reference has this share of its look, or more


class FindingKind(Enum):
    """In the order of a report."""

    MISSING = "missing"
    EXCHANGED = "exchanged"
    TAKES_BOTH = "one takes both"
    TAKEN_OVER = "taken over"
    BLENDED = "blended"
    UNCLEAR = "unclear"

    @property
    def rank(self) -> int:
        """Its place in that order."""
        return list(FindingKind).index(self)


class Finding(NamedTuple):
    """One finding.

    objects: their numbers, those of a circle in its order, others ascending.
    source: the reference whose look the objects wear (one takes both, taken over) or have in theirs (blended); else
        None.
    held_by: of a missing object, another one whose crop may hold it too; else None.
    """

    kind: FindingKind
    objects: tuple[int, ...]
    source: int | None = None
    held_by: int | None = None


def findings(picture: PictureBinding) -> list[Finding]:
    """The findings of one picture; empty if every object is there in its own look.

    Objects that were found too often are no finding; `verdict.py`: `_too_many` reports them.
    """
    wearing = worn(picture)
    exchanged = circles(wearing)
    inside = {m for circle in exchanged for m in circle}
    found = [
        *_missing(picture),
        *(Finding(FindingKind.EXCHANGED, circle) for circle in exchanged),
        *_taken(wearing, inside),
        *_blended(picture, wearing),
    ]
    return sorted(found, key=lambda each: each.kind.rank)


def worn(picture: PictureBinding) -> tuple[int | None, ...]:
    """For each object the reference whose look it wears, [M]; None if it wears no single one or was not found."""

    def of(m: int, most_like: int | None) -> int | None:
        crop = picture.crop_of[m]
        if crop is None or most_like is None or most_like == m:
            return most_like
        look = picture.look[crop].tolist()
        fraction = look.pop(most_like)
        return most_like if fraction > 0 and fraction >= AHEAD * max(look) else None

    return tuple(of(m, most_like) for m, most_like in enumerate(picture.most_like))


def circles(wearing: Sequence[int | None]) -> list[tuple[int, ...]]:
    """Every circle of two objects or more in which each wears the look of the next. It starts at its smallest number.

    wearing [M]: as `worn` returns it.
    """
    found = []
    for first in range(len(wearing)):
        circle, at = [first], wearing[first]
        while at is not None and at not in circle:
            circle.append(at)
            at = wearing[at]
        if at == first == min(circle) and len(circle) > 1:
            found.append(tuple(circle))
    return found


def _missing(picture: PictureBinding) -> Iterator[Finding]:
    for m, crop in enumerate(picture.crop_of):
        if crop is None:
            yield Finding(FindingKind.MISSING, (m,), held_by=picture.held_by[m] if picture.held_by else None)


def _taken(wearing: Sequence[int | None], exchanged: set[int]) -> Iterator[Finding]:
    """References whose look is worn by an object that is neither their own nor part of a circle.

    exchanged: the objects of all circles.
    """
    for source in range(len(wearing)):
        wearers = tuple(m for m, reference in enumerate(wearing) if reference == source)
        if any(m != source and m not in exchanged for m in wearers):
            yield Finding(FindingKind.TAKES_BOTH if len(wearers) > 1 else FindingKind.TAKEN_OVER, wearers, source)


def _blended(picture: PictureBinding, wearing: Sequence[int | None]) -> Iterator[Finding]:
    looks = picture.look.tolist()
    for m, margin in picture.margin_by_object().items():
        if wearing[m] not in (m, None):
            continue
        crop = picture.crop_of[m]
        assert crop is not None  # what has a margin was found
        look = looks[crop]
        source = max((j for j in range(len(look)) if j != m), key=look.__getitem__)
        if look[source] >= BLENDED:
            yield Finding(FindingKind.BLENDED, (m,), source)
        elif margin < 0:
            yield Finding(FindingKind.UNCLEAR, (m,))
