"""The maps of a sampling, described in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..common.text import MOST_WORDS, holds, plain
from .maps import MIXED, check_same_run, cores, mixing, owners
from .record import RecordedMaps

CROPPED_SENTENCE = (
    "This sampling started from a crop of a picture that an earlier sampling of this queue made, as detailers and "
    "upscalers in tiles do."
)
SQUEEZED_SENTENCE = (
    "Regions and frozen maps are stretched over all of it. Give a detailer the model from another MIP Apply with that "
    "object's reference alone and without a region, and an upscaler the model from before MIP Apply."
)
LEAK = MIXED / 2  # another object's mean share of an object's core; MIXED if two leak so into each other
SMALL = 0.02  # part of the picture; an object that owns less has no place of its own
CLAIMED = 0.8  # mixing; above it the texts find no places


def places(shares: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the picture each object owns, and how the objects share its place.

    shares: [M, B, H, W].
    Returns owned [M], the part of the picture where the object's share is the largest, the unclaimed share included;
    and held [M, M]: row i is the mean share of every object over the place of object i, zeros if it has none.
    """
    owner = owners(shares)[:-1].flatten(1)  # [M, P]
    held = owner @ shares.flatten(1).T
    return owner.mean(1), held / owner.sum(1, keepdim=True).clamp_min(1)


def in_cores(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Like `places`, with an object's core in place of all that it owns: where it is, without a background.

    shares: [M, B, H, W].
    Returns the cores' part of the picture [M], and the mean shares there [M, M].
    """
    core = cores(shares).flatten(1)  # [M, P]
    return core.mean(1), core @ shares.flatten(1).T / core.sum(1, keepdim=True).clamp_min(1)


def relevance_report(maps: RecordedMaps, shares: Tensor) -> str:
    """Lines for the artist: the verdict with advice, who claims what, how evenly, what was measured.

    If nothing was measured they give the reason. shares: [M, B, H, W].
    """
    if (why := maps.absent()) is not None:
        return "\n".join([why, *_cropped(maps), *_texts(maps)])
    owned, _ = places(shares)
    core, held = in_cores(shares)
    mixed = _mixed(shares) if maps.evenness_by_picture() else []
    lines = [*_warnings(maps), *_verdict(maps, owned, held, mixed), *_prompt(maps)]
    for i, name in enumerate(maps.names):
        if owned[i] > 0:
            line = f"{name}: has the largest share of {float(owned[i]):.0%} of the picture."
            if core[i] > 0:  # a lone object, everywhere alike, is clearest nowhere
                there = ", ".join(f"{other} {float(held[i, j]):.0%}" for j, other in enumerate(maps.names))
                line += f" Shares in the {float(core[i]):.0%} where it is clearest: {there}."
            lines.append(line)
        else:
            lines.append(f"{name}: has the largest share nowhere.")
    if (left := 1 - float(owned.sum())) >= 0.005:
        lines.append(f"Nobody has the largest share of {left:.0%} of the picture.")
    return "\n".join([*lines, *_evenness(maps, shares), _sampling(maps)])


def mixed_by_picture(maps: RecordedMaps, images: Tensor) -> list[float] | None:
    """Each sampled picture's `mixing`; None where it was not measured, or with a single object.

    images: what the sampling made, or some of it, [B, H, W, 3]. Raises ValueError if they are of another sampling.
    """
    if maps.evenness_by_picture() is None:
        return None
    check_same_run(maps, images)
    return _mixed(maps.shares()) or None


def _warnings(maps: RecordedMaps) -> list[str]:
    """What was wrong with the sampling itself."""
    return [maps.patches_lost, *_cropped(maps)] if maps.patches_lost else _cropped(maps)


def _cropped(maps: RecordedMaps) -> list[str]:
    """Of a sampling that started from a crop: whether the model fits it."""
    if not maps.cropped:
        return []
    if maps.fixed_places:
        return [f"{CROPPED_SENTENCE} {SQUEEZED_SENTENCE} These maps lie on the crop."]
    if len(maps.names) == 1:
        alone = f"The reference of “{maps.names[0]}” alone acted in it: the right way to detail that object."
        return [f"{CROPPED_SENTENCE} {alone}"]
    if not maps.names:
        return []
    return [
        f"{CROPPED_SENTENCE} Every object was looked for in it: if it shows one of them, give the detailer the "
        "model from another MIP Apply with that object's reference alone. These maps lie on the crop."
    ]


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
    if maps.styles:
        said += f" Beside the objects acted, without a share: {', '.join(maps.styles)}."
    return said


def _ranges(numbers: list[int]) -> str:
    """[1, 2, 3, 5] -> "1–3, 5"."""
    first = [n for n in numbers if n - 1 not in numbers]
    last = [n for n in numbers if n + 1 not in numbers]
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in zip(first, last, strict=True))


def _evenness(maps: RecordedMaps, shares: Tensor) -> list[str]:
    """Where the objects are, and in the whole picture. Several pictures get a line each, with who owns how much."""
    if (whole := maps.evenness_by_picture()) is None:
        return []
    inside = _mixed(shares)
    background = 1 - float(cores(shares).amax(0).mean())
    lines = [
        f"Mixed: {sum(inside) / len(inside):.0%}. At 0% every object has its place to itself, at 100% all share it "
        f"equally. Evenness of the whole picture: {maps.mean_evenness():.0%}; a background that all claim alike "
        f"gives {background:.0%} by itself."
    ]
    if len(whole) > 1:
        owned = owners(shares)[:-1].mean((-2, -1)).T  # [B, M]
        for number, (mixed, each) in enumerate(zip(inside, owned, strict=True), 1):
            largest = ", ".join(f"{name} {float(part):.0%}" for name, part in zip(maps.names, each, strict=True))
            lines.append(f"Picture {number}: mixed {mixed:.0%}; largest share: {largest}.")
    by_step = enumerate(maps.evenness().nanmean(1).tolist(), 1)
    steps = "  ".join(f"{step}: {value:.0%}" for step, value in by_step if math.isfinite(value))
    return [*lines, f"Evenness of the whole picture by step:  {steps}"]


def _mixed(shares: Tensor) -> list[float]:
    """Of several objects, for each picture: its `mixing`. shares: [M, B, H, W]."""
    return [mixed for each in shares.unbind(1) if (mixed := mixing(each)) is not None]


def _texts(maps: RecordedMaps) -> list[str]:
    """What is wrong with the object texts: sentences with advice."""
    names, wrong = maps.names, []
    twice = [name for name in names if [plain(each) for each in names].count(plain(name)) > 1]
    if twice:
        wrong.append(
            f"Several objects are called “{twice[0]}”, and equal texts have equal places: use different words, in the "
            "prompt too, or a region for each."
        )
    for name in names:
        if maps.prompt and not holds(maps.prompt, name):
            wrong.append(f"“{name}” is not in the prompt: write it there with these words, or change the object text.")
        if len(name.split()) > MOST_WORDS:
            wrong.append(f"“{name}” is long for an object text: the one or two words that name the thing point best.")
    return wrong


def _prompt(maps: RecordedMaps) -> list[str]:
    """Which object texts the prompt holds, if it is known."""
    if not maps.prompt:
        return []
    said = (f"{name} ✓" if holds(maps.prompt, name) else f"{name}: not in the prompt" for name in maps.names)
    return [f"In the prompt: {', '.join(said)}."]


def _verdict(maps: RecordedMaps, owned: Tensor, held: Tensor, mixed: Sequence[float]) -> list[str]:
    """Whether each object has a place, and what to change where it has none.

    owned: see `places`; held: see `in_cores`; mixed: see `_mixed`, empty if it was not measured.
    """
    names, advice = maps.names, _texts(maps)
    if len(names) < 2:
        return advice
    if not advice and mixed and sum(mixed) / len(mixed) > CLAIMED:
        advice.append(
            "The objects claim nearly everything alike: check that the prompt names each of them with its object text, "
            "then try sharpness 3–6 in MIP Merge or a region for each."
        )
    said = " ".join(advice)
    for i, name in enumerate(names):
        if owned[i] < SMALL:
            if f"“{name}”" not in said:
                advice.append(
                    f"“{name}” has hardly a place of its own: does the prompt name it with these words? Try another "
                    "seed, or a region for it."
                )
            continue
        others = held[i].clone()
        others[i] = 0
        j = int(others.argmax())
        if float(others[j]) > LEAK and not advice:
            advice.append(
                f"“{names[j]}” claims {float(others[j]):.0%} of the place of “{name}”: try sharpness 3–6 in MIP "
                "Merge, or a region for each."
            )
    return advice or ["Each object has a place of its own. MIP Binding Report says whose look it wears there."]
