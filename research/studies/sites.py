"""How far the relevance of each site lies on the objects, and that of the pool of all sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.pool import sureness
from ...attention.regions import resize

POOL, EVEN = "the pool", "all sites, equally weighted"


class Placement(NamedTuple):
    """How relevance lies on the objects of one scene.

    own: the share of an object at its own positions. 1/M if the relevance says nothing.
    first: the part of these positions where no other object's share is larger.
    sureness: w of the pool, which knows nothing of the objects. NaN for a pool.
    """

    own: float
    first: float
    sureness: float


def placement(relevance: Tensor, masks: Tensor, weight: float = math.nan) -> Placement:
    """Where relevance [M, h, w] lies against masks [M, S, S] in 0..1; a position counts as far as an object covers it.

    The shares are the paper's, A_i / Σ_j A_j.
    """
    covered = F.adaptive_avg_pool2d(masks, (relevance.shape[-2], relevance.shape[-1]))
    share = relevance / relevance.sum(0, keepdim=True)
    largest = covered.gather(0, share.argmax(0, keepdim=True)).sum()
    return Placement(float((share * covered).sum() / covered.sum()), float(largest / covered.amax(0).sum()), weight)


def placements(sites: Mapping[Any, Tensor], masks: Tensor) -> dict[Any, Placement]:
    """The placement of every site's relevance [M, h, w], which sums to 1 over positions, of the pool, and of the same
    mean with equal weights. The pools are read at the finest site.
    """
    finest = max(((each.shape[-2], each.shape[-1]) for each in sites.values()), key=math.prod)
    found: dict[Any, Placement] = {}
    logs, weights = [], []
    for site, relevance in sites.items():
        log = (relevance * relevance[0].numel()).log()
        weights.append(sureness(log.flatten(1)[:, None])[0])
        logs.append(resize(log, finest))
        found[site] = placement(relevance, masks, float(weights[-1]))
    weight = torch.stack(weights).view(-1, 1, 1, 1)
    stacked = torch.stack(logs)
    found[POOL] = placement(((stacked * weight).sum(0) / weight.sum()).exp(), masks)
    found[EVEN] = placement(stacked.mean(0).exp(), masks)
    return found


def summary(scenes: Sequence[Mapping[Any, Placement]]) -> dict[Any, dict[str, tuple[float, float]]]:
    """Mean and standard error over scenes, by site and by the field of `Placement`."""
    found = {}
    for site in scenes[0]:
        columns = torch.tensor([scene[site] for scene in scenes], dtype=torch.float64)
        error = columns.std(0, correction=0) * max(len(scenes) - 1, 1) ** -0.5
        found[site] = {
            name: (float(mean), float(wide))
            for name, mean, wide in zip(Placement._fields, columns.mean(0), error, strict=True)
        }
    return found


def table(results: Mapping[str, Mapping[str, Mapping[str, tuple[float, float]]]]) -> str:
    """A Markdown table, a row for each site and two columns for each noise level. results: by level, site, field."""
    levels = list(results)
    lines = [
        "| site | " + " | ".join(f"{level}: own | first" for level in levels) + " |",
        "|---|" + "---|---|" * len(levels),
    ]
    for site in results[levels[0]]:
        cells = []
        for level in levels:
            numbers = results[level][site]
            cells += [f"{100 * numbers[name][0]:.0f} ± {100 * numbers[name][1]:.1f}" for name in ("own", "first")]
        lines.append(f"| {site} | {' | '.join(cells)} |")
    return "\n".join(lines)
