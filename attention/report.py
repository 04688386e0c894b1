"""What a sampling's maps say, in words."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .record import RecordedMaps

LEAK = 0.35  # of the place that an object owns; more in another's hands mixes looks visibly
SMALL = 0.02  # of the picture
MIXED = 0.85  # confusion above this: the texts find no places at all


def places(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Who owns how much, and what happens there, from shares [M, B, H, W].

    Returns owned [M], the part of the picture where the object has the largest share, and held [M, M]: row i is every
    object's mean share of i's place, zeros where it has none.
    """
    objects = len(shares)
    owner = torch.nn.functional.one_hot(shares.argmax(0).flatten(), objects).float()  # [P, M]
    held = owner.T @ shares.flatten(1).T
    return owner.mean(0), held / owner.sum(0).clamp_min(1).unsqueeze(1)


def report(maps: RecordedMaps, shares: Tensor) -> str:
    """Lines for the artist: what was measured, who claims what, how confusion went, what to do. shares [M, B, H, W]."""
    owned, held = places(shares)
    lines = [_sampling(maps), *_confusion(maps)]
    for i, name in enumerate(maps.names):
        if owned[i] > 0:
            there = ", ".join(f"{other} {float(held[i, j]):.0%}" for j, other in enumerate(maps.names))
            lines.append(
                f"{name}: has the largest share of {float(owned[i]):.0%} of the picture. Shares there: {there}."
            )
        else:
            lines.append(f"{name}: has the largest share nowhere.")
    return "\n".join([*lines, *_advice(maps, owned, held)])


def _sampling(maps: RecordedMaps) -> str:
    seen = maps.steps_seen().nonzero().flatten() + 1
    steps = len(maps.steps_seen())
    acted = "all" if len(seen) == steps else f"steps {int(seen[0])} to {int(seen[-1])}"
    sizes = ", ".join(f"{width}×{height}" for height, width in maps.resolutions)
    said = f"Maps of {sizes} positions; the references acted in {acted} of {steps} steps."
    if maps.runs > 1:
        said += f" The model was sampled {maps.runs} times: these maps are the last run's."
    if maps.frozen:
        said += " The shares were frozen: they come from an earlier sampling."
    return said


def _confusion(maps: RecordedMaps) -> list[str]:
    mean = maps.mean_confusion()
    if mean is None:
        return []
    by_step = enumerate(maps.confusion().tolist(), 1)
    steps = "  ".join(f"{step}: {value:.0%}" for step, value in by_step if math.isfinite(value))
    return [f"Confusion: {mean:.0%} on average. By step:  {steps}"]


def _advice(maps: RecordedMaps, owned: Tensor, held: Tensor) -> list[str]:
    names, advice = maps.names, []
    if len(names) < 2:
        return []
    if (maps.mean_confusion() or 0.0) > MIXED:
        advice.append(
            "The objects claim nearly everything alike: check that the prompt names each of them with its object text, "
            "then try sharpness 2–4 in MIP Merge or a region for each."
        )
    for i, name in enumerate(names):
        if owned[i] < SMALL:
            advice.append(
                f"“{name}” has hardly a place of its own: does the prompt name it with these words? Try another "
                "seed, a region, or a later start_percent for the others."
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
