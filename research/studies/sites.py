"""How far the relevance of each site lies on the objects, and that of the pool of all sites."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.pool import Pool
from ...attention.regions import resize

POOL, EVEN = "the pool", "all sites, equally weighted"


class Placement(NamedTuple):
    """How relevance lies on the objects of one scene.

    own: the share of an object at its own positions. 1/M if the relevance says nothing.
    first: the part of these positions where no other object's share is larger.
    sureness: the site's w in the pool, which knows nothing of the masks. NaN for a pool.
    """

    own: float
    first: float
    sureness: float


def placement(relevance: Tensor, masks: Tensor, sureness: float = math.nan) -> Placement:
    """Where relevance [M, h, w] lies against masks [M, S, S] in 0..1; a position counts as far as an object covers it.

    The shares are the paper's, A_i / Σ_j A_j.
    """
    covered = F.adaptive_avg_pool2d(masks, (relevance.shape[-2], relevance.shape[-1]))
    share = relevance / relevance.sum(0, keepdim=True)
    largest = covered.gather(0, share.argmax(0, keepdim=True)).sum()
    return Placement(float((share * covered).sum() / covered.sum()), float(largest / covered.amax(0).sum()), sureness)


def placements(sites: Mapping[Any, Tensor], masks: Tensor) -> dict[Any, Placement]:
    """The placement of every site's relevance [M, h, w], which sums to 1 over positions, of the pool, and of a mean of
    logarithms with equal weights. Both are read at the finest site.
    """
    objects, picture = tuple(range(len(masks))), torch.zeros(1, dtype=torch.long)
    pool = Pool(objects, 1)
    for site, relevance in sites.items():
        pool.add(site, relevance.flatten(1)[:, None], (relevance.shape[-2], relevance.shape[-1]), (0,), picture)
    finest = max(((each.shape[-2], each.shape[-1]) for each in sites.values()), key=math.prod)
    found = {site: placement(each, masks, float(pool.sureness[site][0])) for site, each in sites.items()}
    pooled = pool.relevance(finest, objects, (0,), picture)[:, 0]
    found[POOL] = placement(pooled.unflatten(-1, finest), masks)
    logs = [resize((each * each[0].numel()).log(), finest) for each in sites.values()]
    found[EVEN] = placement(torch.stack(logs).mean(0).exp(), masks)
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
