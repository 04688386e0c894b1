"""The binding report in sentences: what happened to which object (`findings.py`), and which control to change.

Percentages are shares of an object's look (`PictureBinding.look`), averaged over the pictures with that finding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...attention.reference import MAX_WEIGHT
from ...common.tables import number, percent
from ...relevance.maps import MIXED
from .binding import Binding
from .findings import Finding, FindingKind, findings

NEARLY = 0.5  # a candidate with this share of the detector's threshold is mentioned
STEP = 1.3  # a weight is first multiplied or divided by this
Pictures = Sequence[int]  # numbers of pictures


def verdict(binding: Binding) -> list[str]:
    """One sentence on the whole batch, then one for each finding with advice."""
    if not binding.presence:
        return [
            "None of the objects was found, so there is nothing to compare.",
            "Name the objects in the prompt by the words of their object texts, lower scale in MIP Apply, or lower the "
            "detector's threshold if you can see them.",
        ]
    said = [_sentence(binding, finding, pictures) for finding, pictures in _by_finding(binding)]
    said += _too_many(binding)
    return [_overall(binding, bool(said)), *said]


def _overall(binding: Binding, findings: bool) -> str:
    asked = len(binding.pictures) * len(binding.names)
    found = sum(len(picture.present) for picture in binding.pictures)
    if found < asked:
        objects = f"{found} of {asked} objects {'was' if found == 1 else 'were'} found"
        if len(binding.pictures) > 1:
            objects += f" in {len(binding.pictures)} pictures"
    elif len(binding.pictures) > 1:
        every = {1: "The object was", 2: "Both objects were"}.get(len(binding.names), "All objects were")
        objects = f"{every} found in every picture"
    else:
        objects = {1: "The object was", 2: "Both objects were"}.get(asked, f"All {asked} objects were") + " found"
    if binding.margin is None or binding.confusion_rate is None:
        return f"{objects}. With a single reference nothing can be confused: there is no margin to measure."
    confused = round(binding.confusion_rate * found)
    margin = f"margin {number(binding.margin, sign=True)}"
    if not confused:
        well = "" if findings else "All is well: "
        said = objects if findings else objects[0].lower() + objects[1:]
        return f"{well}{said}, {'and it' if found == 1 else 'each'} looks most like its own reference ({margin})."
    whose = "looks more like another reference than like its own"
    if confused > 1:
        whose = "look more like another reference than like their own"
    of_them = f"{confused} of them" if len(binding.pictures) == 1 or found < asked else f"{confused} of {asked}"
    return f"{objects}, {'and it' if found == 1 else of_them} {whose} ({margin})."


def _by_finding(binding: Binding) -> list[tuple[Finding, list[int]]]:
    """Every different finding with the pictures that have it, in the order of kinds, then of objects."""
    pictures: dict[Finding, list[int]] = {}
    for b, each in enumerate(binding.pictures):
        for finding in findings(each):
            pictures.setdefault(finding, []).append(b)
    return sorted(pictures.items(), key=lambda each: (each[0].kind.rank, each[0].objects))


def _sentence(binding: Binding, finding: Finding, pictures: Pictures) -> str:
    says = {
        FindingKind.MISSING: _missing,
        FindingKind.EXCHANGED: _exchanged,
        FindingKind.TAKES_BOTH: _takes_both,
        FindingKind.TAKEN_OVER: _taken_over,
        FindingKind.BLENDED: _blended,
        FindingKind.UNCLEAR: _unclear,
    }
    what, advice = says[finding.kind](binding, finding, pictures)
    name = finding.kind.value
    if finding.kind is FindingKind.TAKES_BOTH and len(finding.objects) > 2:
        name = "one takes several"
    return f"{name.capitalize()}{_in(binding, pictures)}: {what}. {advice[0].upper()}{advice[1:]}."


# ---- each finding: what happened, and the advice ----


def _missing(binding: Binding, finding: Finding, pictures: Pictures) -> tuple[str, str]:
    (m,), other = finding.objects, finding.held_by
    if other is None:
        return f"no {_quoted(binding, [m])} was found", _find(binding, m, pictures)
    lacking, holder, apart = _quoted(binding, [m]), _quoted(binding, [other]), _apart(binding, [m, other], pictures)
    return (
        f"{lacking} has no box of its own, and the box of {holder} may hold both: the two may touch",
        f"if you can see both, mark each by hand for MIP Objects from Boxes; if not, {apart}",
    )


def _find(binding: Binding, m: int, pictures: Pictures) -> str:
    if not binding.weights[m]:
        return _balance(binding, m)
    known = [each.best_rejected for each in (binding.pictures[b] for b in pictures) if each.best_rejected]
    close = max((scores[m] for scores in known), default=0.0)
    if binding.threshold and close >= NEARLY * binding.threshold:
        scores = (
            f"the best candidate has {number(close, 2)}, the detector's threshold is {number(binding.threshold, 2)}"
        )
        return f"{scores}; lower it if you can see the {binding.names[m]}, or {_balance(binding, m)}"
    if len(pictures) < len(binding.pictures):
        return f"take another picture or seed, or {_balance(binding, m)}"
    return (
        "name it in the prompt by the words of its object text, set unclaimed in MIP Merge to 1, or lower the "
        "detector's threshold if you can see it"
    )


def _exchanged(binding: Binding, finding: Finding, pictures: Pictures) -> tuple[str, str]:
    advice = _apart(binding, sorted(finding.objects), pictures)
    if len(finding.objects) == 2:
        return f"{_quoted(binding, finding.objects)} wear each other's looks", advice
    circle = [f"“{binding.names[m]}”" for m in (*finding.objects, finding.objects[0])]
    return f"each wears the look of the next one, {' → '.join(circle)}", advice


def _takes_both(binding: Binding, finding: Finding, pictures: Pictures) -> tuple[str, str]:
    taken = [m for m in finding.objects if m != finding.source]
    what = f"{_quoted(binding, finding.objects)} wear the look of {_source(binding, finding)}"
    lightest = min(taken, key=binding.weights.__getitem__)
    return what, _against_leak(binding, taken, pictures, _balance(binding, lightest, finding.source, lower=True))


def _taken_over(binding: Binding, finding: Finding, pictures: Pictures) -> tuple[str, str]:
    (m,) = finding.objects
    what = f"{_quoted(binding, [m])} wears the look of {_source(binding, finding)}"
    return what, _against_leak(binding, [m], pictures, _balance(binding, m, finding.source))


def _blended(binding: Binding, finding: Finding, pictures: Pictures) -> tuple[str, str]:
    (m,) = finding.objects
    looks = [each.look[each.crop_of[m], finding.source] for each in (binding.pictures[b] for b in pictures)]
    fraction = float(sum(looks)) / len(looks)
    what = f"{_quoted(binding, [m])} takes {percent(fraction)} of its look from {_source(binding, finding)}"
    return what, _against_leak(binding, [m], pictures, _balance(binding, m, finding.source))


def _unclear(binding: Binding, finding: Finding, pictures: Pictures) -> tuple[str, str]:
    (m,) = finding.objects
    return f"{_quoted(binding, [m])} takes after no reference clearly", _balance(binding, m)


def _too_many(binding: Binding) -> Iterator[str]:
    for m, name in enumerate(binding.names):
        pictures = [b for b, each in enumerate(binding.pictures) if each.counts[m] > 1]
        if pictures:
            most = max(binding.pictures[b].counts[m] for b in pictures)
            times = "twice" if most == 2 else f"{'up to ' if len(pictures) > 1 else ''}{most} times"
            yield (
                f"Too many{_in(binding, pictures)}: “{name}” is there {times} instead of once. Set background in MIP "
                "Merge to 0.5–1, lower scale in MIP Apply, or take another seed."
            )


# ---- controls ----


def _apart(binding: Binding, objects: Sequence[int], pictures: Pictures) -> str:
    seed = "another picture or seed" if len(pictures) < len(binding.pictures) else "another seed"
    if all(binding.has_region[m] for m in objects):
        return f"take {seed}, or make their regions smaller and further apart"
    return f"take {seed}, or give each of them a region in MIP Reference"


def _against_leak(binding: Binding, objects: Sequence[int], pictures: Pictures, balance: str) -> str:
    """Advice that keeps other references' looks out of some objects.

    balance: advice on a weight, from `_balance`.
    """
    if not all(binding.weights[m] for m in objects):
        return balance
    mixed = binding.mean_places_mixed(pictures)
    several = len(objects) > 1
    if all(binding.has_region[m] for m in objects):
        region = f"shrink {'their regions' if several else 'its region'}"
    else:
        region = f"give {'each of them' if several else _quoted(binding, objects)} a region"
    if mixed is None:
        return f"{balance}, or {region}"
    if mixed >= MIXED:
        return (
            f"the objects claim the same places while sampling (places mixed {percent(mixed)}), so set sharpness in "
            f"MIP Merge to 3–6, or {region}"
        )
    return (
        f"the relevance keeps the objects apart (places mixed {percent(mixed)}), so cut them out of their pictures "
        f"with image_mask, or {balance}"
    )


def _balance(binding: Binding, m: int, source: int | None = None, lower: bool = False) -> str:
    """Advice on the weight to change so that object m follows its own reference.

    source: the reference that the object's look comes from.
    lower: lower the source's weight at once; otherwise only if m's own weight cannot be raised by STEP.
    """
    own, other = binding.weights[m], 0.0 if source is None else binding.weights[source]
    raised = own * STEP <= MAX_WEIGHT
    if not own:
        return f"raise {_whose(binding, m)} weight from 0 to 1"
    if source is not None and other and (lower or not raised):
        return f"lower {_whose(binding, source)} weight (now {other:g}, try {other / STEP:.2g})"
    if raised:
        return f"raise {_whose(binding, m)} weight (now {own:g}, try {own * STEP:.2g})"
    return "raise scale in MIP Apply"


def _whose(binding: Binding, m: int) -> str:
    return f"the {binding.names[m]}'s"


# ---- words ----


def _quoted(binding: Binding, objects: Sequence[int]) -> str:
    names = [f"“{binding.names[m]}”" for m in objects]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _source(binding: Binding, finding: Finding) -> str:
    return "" if finding.source is None else _quoted(binding, [finding.source])


def _in(binding: Binding, pictures: Pictures) -> str:
    """“ in picture 2”, “ in pictures 1 and 3”, “ in every picture”; "" if there is only one picture."""
    count = len(binding.pictures)
    if count == 1:
        return ""
    if len(pictures) == count:
        return " in every picture"
    numbers = [str(b + 1) for b in pictures]
    if len(numbers) == 1:
        return f" in picture {numbers[0]}"
    if len(numbers) > 6:
        return f" in {len(numbers)} of {count} pictures"
    return f" in pictures {', '.join(numbers[:-1])} and {numbers[-1]}"
