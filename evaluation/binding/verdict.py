"""The binding report in words: what went wrong with which object, and which control mends it.

Percentages are shares of an object's look (`PictureBinding.look`), the mean over the pictures in question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ...attention.reference import MAX_WEIGHT
from ...common.tables import number, percent
from ...common.text import plain
from ...relevance.report import MIXED
from .binding import Binding, PictureBinding

LEAK = 0.25  # a share of another reference in an object's look that is worth a word
NEARLY = 0.5  # of the detector's threshold: a candidate that reaches this is worth a word
STEP = 1.3  # what a weight is multiplied or divided by at first


def verdict(binding: Binding) -> list[str]:
    """Sentences, the overall one first, then one a finding, with what to change."""
    if not binding.presence:
        return [
            "None of the objects was found, so there is nothing to compare.",
            "Name the objects in the prompt by the words of their object texts, lower scale in MIP Apply, or lower the "
            "detector's threshold if you can see them.",
        ]
    findings = [*_missing(binding), *_exchanged(binding), *_leaks(binding), *_unlike(binding), *_too_many(binding)]
    return [_overall(binding, bool(findings)), *findings]


def _overall(binding: Binding, findings: bool) -> str:
    asked = len(binding.pictures) * len(binding.names)
    found = sum(len(picture.present) for picture in binding.pictures)
    if found < asked:
        objects = f"{found} of {asked} objects {'was' if found == 1 else 'were'} found"
    else:
        objects = {1: "The object was", 2: "Both objects were"}.get(asked, f"All {asked} objects were") + " found"
    if binding.margin is None or binding.confusion_rate is None:
        return f"{objects}. With a single reference nothing can be confused: there is no margin to measure."
    confused = round(binding.confusion_rate * found)
    margin = f"margin {number(binding.margin, sign=True)}"
    if not confused:
        well = "" if findings else "All is well: "
        said = objects if findings else objects[0].lower() + objects[1:]
        return f"{well}{said}, each looks most like its own reference ({margin})."
    looks = "looks more like another reference than like its own"
    if confused > 1:
        looks = "look more like another reference than like their own"
    return f"{objects}, {confused} of them {looks} ({margin})."


def _missing(binding: Binding) -> Iterator[str]:
    for m, name in enumerate(binding.names):
        merged: dict[int, list[int]] = {}  # pictures by the object that it is one with
        absent = []
        for b, each in enumerate(binding.pictures):
            if each.own[m] is None:
                row = each.instead[m] if each.instead else None
                other = m if row is None else each.found_as[row]
                # Of two objects with the same text and one thing, one is missing.
                (absent if plain(binding.names[other]) == plain(name) else merged.setdefault(other, [])).append(b)
        for other, pictures in merged.items():
            where, remedy = _in(binding, pictures), _apart(binding, m, other)
            yield f"“{name}” and “{binding.names[other]}” are one and the same thing{where}: {remedy}."
        if absent:
            yield f"No “{name}” was found{_in(binding, absent, 'in any picture')}: {_find(binding, m, absent)}."


def _find(binding: Binding, m: int, pictures: Sequence[int]) -> str:
    if not binding.weights[m]:
        return "its weight is 0, raise it to 1"
    close = max((binding.pictures[b].near[m] for b in pictures if binding.pictures[b].near), default=0.0)
    if binding.threshold and close >= NEARLY * binding.threshold:
        scores = (
            f"the best candidate has {number(close, 2)}, the detector's threshold is {number(binding.threshold, 2)}"
        )
        return f"{scores}; lower it if you can see the {binding.names[m]}, or {_raise(binding, m)}"
    if len(pictures) < len(binding.pictures):
        return f"take another picture or seed, or {_raise(binding, m)}"
    return (
        f"name it in the prompt by the words of its object text, {_raise(binding, m)}, or lower the detector's "
        "threshold if you can see it"
    )


def _exchanged(binding: Binding) -> Iterator[str]:
    for m, j in _pairs(binding):
        pictures = _where(binding, lambda each, m=m, j=j: _swapped(each, m, j))
        if pictures:
            names, where = f"“{binding.names[m]}” and “{binding.names[j]}”", _in(binding, pictures)
            yield f"{names} exchanged their looks{where}: {_apart(binding, m, j)}."


def _apart(binding: Binding, m: int, j: int) -> str:
    if binding.placed[m] and binding.placed[j]:
        return "take another seed, or make their regions smaller and further apart"
    return "take another seed, or give each of them a region in MIP Reference"


def _leaks(binding: Binding) -> Iterator[str]:
    """Looks taken from another reference, in pictures where the two were not exchanged altogether."""
    for m, name in enumerate(binding.names):
        taken: dict[int, list[tuple[int, float]]] = {}  # (picture, share) by the reference that it was taken from
        for b, each in enumerate(binding.pictures):
            if m not in each.margins() or any(_swapped(each, m, j) for j in range(len(binding.names))):
                continue
            if not any(look := each.look[each.own[m]].tolist()):
                continue
            source = max((j for j in range(len(look)) if j != m), key=lambda j, look=look: look[j])
            if look[source] >= LEAK or each.margins()[m] < 0:
                taken.setdefault(source, []).append((b, look[source]))
        if taken:
            source = max(taken, key=lambda j: sum(share for _, share in taken[j]))
            share = sum(share for _, share in taken[source]) / len(taken[source])
            pictures = [b for b, _ in taken[source]]
            yield (
                f"“{name}” takes {percent(share)} of its look from “{binding.names[source]}”"
                f"{_in(binding, pictures)}: {_against_leak(binding, m, source, pictures)}."
            )


def _unlike(binding: Binding) -> Iterator[str]:
    """Confused, though it takes after no reference at all."""
    for m, name in enumerate(binding.names):
        pictures = _where(binding, lambda each, m=m: each.margins().get(m, 0) < 0 and not each.look[each.own[m]].any())
        if pictures:
            yield f"“{name}” looks like none of the references{_in(binding, pictures)}: {_raise(binding, m)}."


def _against_leak(binding: Binding, m: int, source: int, pictures: Sequence[int]) -> str:
    confusion = binding.relevance_confusion(pictures)
    region = "shrink its region" if binding.placed[m] else "give it a region"
    if confusion is None:
        return f"{_raise(binding, m, source)}, or {region}"
    if confusion >= MIXED:
        return (
            f"the objects claim the same places while sampling (confusion {percent(confusion)}), so set sharpness in "
            f"MIP Merge to 2–4, or {region}"
        )
    return (
        f"the relevance keeps the objects apart (confusion {percent(confusion)}), so cut them out of their pictures "
        f"with image_mask, or {_raise(binding, m, source)}"
    )


def _too_many(binding: Binding) -> Iterator[str]:
    for m, name in enumerate(binding.names):
        pictures = _where(binding, lambda each, m=m: each.counts[m] > 1)
        if pictures:
            most = max(binding.pictures[b].counts[m] for b in pictures)
            times = "twice" if most == 2 else f"{'up to ' if len(pictures) > 1 else ''}{most} times"
            yield (
                f"“{name}” is there {times} instead of once{_in(binding, pictures)}: set background in MIP Merge to "
                "0.5–1, lower scale in MIP Apply, or take another seed."
            )


def _raise(binding: Binding, m: int, source: int | None = None) -> str:
    """Raise an object's weight; at its end, lower the weight of the object that it takes its look from."""
    weight = binding.weights[m]
    if weight * STEP <= MAX_WEIGHT:
        return f"raise {_whose(binding.names[m])} weight (now {weight:g}, try {weight * STEP:.2g})"
    if source is None:
        return "raise scale in MIP Apply"
    other = binding.weights[source]
    return f"lower {_whose(binding.names[source])} weight (now {other:g}, try {other / STEP:.2g})"


def _whose(name: str) -> str:
    return f"the {name}'s"


def _swapped(each: PictureBinding, m: int, j: int) -> bool:
    return m != j and each.matched[m] == j and each.matched[j] == m


def _pairs(binding: Binding) -> Iterator[tuple[int, int]]:
    for m in range(len(binding.names)):
        for j in range(m + 1, len(binding.names)):
            yield m, j


def _where(binding: Binding, true: Callable[[PictureBinding], bool]) -> list[int]:
    return [b for b, each in enumerate(binding.pictures) if true(each)]


def _in(binding: Binding, pictures: Sequence[int], everywhere: str = "in every picture") -> str:
    """“ in picture 2”, “ in pictures 1 and 3”, `everywhere`; nothing where there is only one."""
    count = len(binding.pictures)
    if count == 1:
        return ""
    if len(pictures) == count:
        return f" {everywhere}"
    numbers = [str(b + 1) for b in pictures]
    if len(numbers) == 1:
        return f" in picture {numbers[0]}"
    if len(numbers) > 6:
        return f" in {len(numbers)} of {count} pictures"
    return f" in pictures {', '.join(numbers[:-1])} and {numbers[-1]}"
