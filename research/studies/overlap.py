"""How well maps of objects cover the objects: intersection over union with the true silhouettes, which are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...relevance.maps import masks, upscale

THRESHOLDS = tuple(i / 40 for i in range(40))

# How masks are made from shares, as in MIP Relevance Maps. owner: the largest share, the background's included.
# owner on objects: the largest of the objects' shares, within the silhouettes. threshold: a share above the threshold
# that suits the method best on other scenes.
MEASURES = ("owner", "owner on objects", "threshold")


def overlaps(shares: Tensor, silhouettes: Tensor) -> dict[str, Tensor]:
    """Mean intersection over union of one scene's objects, by measure.

    shares: [M, h, w].
    silhouettes: [M, S, S] in 0..1.

    Returns a number for each measure; for "threshold", one per threshold.
    """
    shares = upscale(shares.float(), (silhouettes.shape[-2], silhouettes.shape[-1])).clamp(0, 1)
    truth = silhouettes > 0.5
    among = masks(shares / shares.sum(0, keepdim=True).clamp_min(1e-6), "owner", 0) * truth.any(0)
    above = [masks(shares, "threshold", threshold) for threshold in THRESHOLDS]
    return {
        "owner": iou(masks(shares, "owner", 0), truth),
        "owner on objects": iou(among, truth),
        "threshold": torch.stack([iou(each, truth) for each in above]),
    }


def iou(cut: Tensor, truth: Tensor) -> Tensor:
    """Mean intersection over union of masks [M, S, S] of 0 and 1 with bool [M, S, S]."""
    both, either = (cut.bool() & truth).flatten(1).sum(1), (cut.bool() | truth).flatten(1).sum(1)
    return (both / either.clamp_min(1)).mean()


def summary(scenes: Sequence[Mapping[str, Tensor]], others: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Means over scenes with their standard errors. The threshold is chosen on the other scenes."""
    best = int(torch.stack([scene["threshold"] for scene in others]).mean(0).argmax())
    columns = {name: torch.stack([scene[name] for scene in scenes]) for name in MEASURES}
    columns["threshold"] = columns["threshold"][:, best]
    error = max(len(scenes) - 1, 1) ** -0.5
    numbers = {name: (float(c.mean()), float(c.std(correction=0)) * error) for name, c in columns.items()}
    return {"scenes": len(scenes), "chosen on": len(others), "above": THRESHOLDS[best], **numbers}


def table(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A Markdown table with a row for each noise level and method."""
    lines = [f"| noise | maps | {' | '.join(MEASURES)} |", "|---|---|" + "---|" * len(MEASURES)]
    for level, methods in results.items():
        for method, numbers in methods.items():
            cells = [f"{numbers[name][0]:.3f} ± {numbers[name][1]:.3f}" for name in MEASURES]
            lines.append(f"| {level} | {method} | {' | '.join(cells)} above {numbers['above']:.3f} |")
    return "\n".join(lines)
