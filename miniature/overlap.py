"""How well maps of objects lie on the objects: intersection over union with the true silhouettes, which are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST = tuple(i / 20 for i in range(20))  # of an object's own maximum; below it a position belongs to nobody

# What is measured of a map: the arg-max mask as MIP Relevance Maps gives it, where background counts against it; the
# same among the objects' positions only; and with a least value, the one that suits the method best over all scenes.
MEASURES = ("owner", "owner on objects", "owner above the best threshold")


def overlaps(maps: Tensor, masks: Tensor) -> dict[str, Tensor]:
    """Mean intersection over union of the objects of one scene, from maps [M, h, w] and silhouettes [M, S, S] in 0..1.

    Returns numbers, and for the thresholds LEAST a row of them.
    """
    size = (masks.shape[-2], masks.shape[-1])
    big = F.interpolate(maps[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    truth = masks > 0.5
    owner = F.one_hot(big.argmax(0), len(big)).movedim(-1, 0).bool()
    peak = big.amax((1, 2), keepdim=True)
    above = torch.stack([iou(owner & (big > least * peak), truth) for least in LEAST])
    return {"owner": iou(owner, truth), "owner on objects": iou(owner & truth.any(0), truth), "above": above}


def iou(masks: Tensor, truth: Tensor) -> Tensor:
    """Mean over objects of bool [M, S, S] against bool [M, S, S]."""
    both, either = (masks & truth).flatten(1).sum(1), (masks | truth).flatten(1).sum(1)
    return (both / either.clamp_min(1)).mean()


def summary(scenes: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Means over scenes with their standard errors, and the threshold that was chosen."""
    curves = torch.stack([scene["above"] for scene in scenes])
    best = int(curves.mean(0).argmax())
    columns = {name: torch.stack([scene[name] for scene in scenes]) for name in MEASURES[:2]}
    columns[MEASURES[2]] = curves[:, best]
    error = max(len(scenes) - 1, 1) ** -0.5
    numbers = {name: (float(c.mean()), float(c.std(correction=0)) * error) for name, c in columns.items()}
    return {"scenes": len(scenes), "threshold": LEAST[best], **numbers}


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown: a row for each noise level and method."""
    lines = [f"| noise | maps | {' | '.join(MEASURES)} |", "|---|---|" + "---|" * len(MEASURES)]
    for level, methods in results.items():
        for method, numbers in methods.items():
            cells = [f"{numbers[name][0]:.3f} ± {numbers[name][1]:.3f}" for name in MEASURES]
            lines.append(f"| {level} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines)
