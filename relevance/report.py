"""The maps of a sampling, described in words."""

from __future__ import annotations

import math

from torch import Tensor

from ..common.text import plain
from .maps import owners
from .record import RecordedMaps

LEAK = 0.35  # another object's mean share of an object's place; above it looks mix visibly
SMALL = 0.02  # part of the picture; an object that owns less has no place of its own
MIXED = 0.85  # confusion; above it the texts find no places


def places(shares: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the picture each object owns, and how the objects share its place.

    shares: [M, B, H, W].
    Returns owned [M], the part of the picture where the object's share is the largest, the unclaimed share included;
    and held [M, M]: row i is the mean share of every object over the place of object i, zeros if it has none.
    """
    owner = owners(shares)[:-1].flatten(1)  # [M, P]
    held = owner @ shares.flatten(1).T
    return owner.mean(1), held / owner.sum(1, keepdim=True).clamp_min(1)


def relevance_report(maps: RecordedMaps, shares: Tensor) -> str:
    """Lines for the artist: what was measured, who claims what, the confusion, and advice.

    If nothing was measured they give the reason. shares: [M, B, H, W].
    """
    if (why := maps.absent()) is not None:
        return why
    owned, held = places(shares)
    lines = [_sampling(maps), *_confusion(maps, shares)]
    for i, name in enumerate(maps.names):
        if owned[i] > 0:
            there = ", ".join(f"{other} {float(held[i, j]):.0%}" for j, other in enumerate(maps.names))
            lines.append(
                f"{name}: has the largest share of {float(owned[i]):.0%} of the picture. Shares there: {there}."
            )
        else:
            lines.append(f"{name}: has the largest share nowhere.")
    if (left := 1 - float(owned.sum())) >= 0.005:
        lines.append(f"Nobody has the largest share of {left:.0%} of the picture.")
    return "\n".join([*lines, *_advice(maps, owned, held)])


def _sampling(maps: RecordedMaps) -> str:
    seen = (maps.steps_seen().nonzero().flatten() + 1).tolist()
    steps = len(maps.steps_seen())
    acted = f"all of {steps} steps" if len(seen) == steps else f"{len(seen)} of {steps} steps: {_ranges(seen)}"
    sizes = ", ".join(f"{width}×{height}" for height, width in maps.resolutions)
    said = f"Maps of {sizes} positions; the references acted in {acted}."
    if maps.runs > 1:
        said += f" The model was sampled {maps.runs} times: these maps are the last run's."
    if maps.frozen:
        said += " The shares were frozen: they come from an earlier sampling."
    return said


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 5] -> "1–3, 5"."""
    first = [n for n in numbers if n - 1 not in numbers]
    last = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in zip(first, last, strict=True))


def _confusion(maps: RecordedMaps, shares: Tensor) -> list[str]:
    """The mean over the batch. Several pictures get a line each, with who owns how much of it."""
    pictures = maps.confusion_by_picture()
    if pictures is None:
        return []
    by_step = enumerate(maps.confusion().nanmean(1).tolist(), 1)
    steps = "  ".join(f"{step}: {value:.0%}" for step, value in by_step if math.isfinite(value))
    lines = [f"Confusion: {maps.mean_confusion():.0%} on average. By step:  {steps}"]
    if len(pictures) > 1:
        owned = owners(shares)[:-1].mean((-2, -1)).T  # [B, M]
        for number, (confusion, each) in enumerate(zip(pictures, owned, strict=True), 1):
            places = ", ".join(f"{name} {float(part):.0%}" for name, part in zip(maps.names, each, strict=True))
            lines.append(f"Picture {number}: confusion {confusion:.0%}; largest share: {places}.")
    return lines


def _advice(maps: RecordedMaps, owned: Tensor, held: Tensor) -> list[str]:
    """What to change; owned and held: see `places`."""
    names, advice = maps.names, []
    if len(names) < 2:
        return []
    twice = [name for name in names if [plain(each) for each in names].count(plain(name)) > 1]
    if twice:
        advice.append(
            f"Several objects are called “{twice[0]}”, and equal texts have equal places: use different words, in the "
            "prompt too, or a region for each."
        )
    elif (maps.mean_confusion() or 0.0) > MIXED:
        advice.append(
            "The objects claim nearly everything alike: check that the prompt names each of them with its object text, "
            "then try sharpness 2–4 in MIP Merge or a region for each."
        )
    for i, name in enumerate(names):
        if owned[i] < SMALL:
            advice.append(
                f"“{name}” has hardly a place of its own: does the prompt name it with these words? Try another seed, "
                "or a region for it."
            )
            continue
        others = held[i].clone()
        others[i] = 0
        j = int(others.argmax())
        if float(others[j]) > LEAK and not advice:
            advice.append(
                f"“{names[j]}” claims {float(others[j]):.0%} of the place of “{name}”: try sharpness 2–4 in MIP "
                "Merge, or a region for each."
            )
    return advice or ["Each object has a place of its own."]
