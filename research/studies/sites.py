"""How far the relevance of each site lies on the objects, and that of the pool of all sites."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...attention.pool import Pool
from ...attention.regions import resize

POOL = "the pool"
FEWER = {count: f"the pool of the {count} surest" for count in (1, 2, 3, 5)}
SURE, EVEN = "all sites, weighted by sureness alone", "all sites, equally weighted"
POOLS = (POOL, *FEWER.values(), SURE, EVEN)


class Placement(NamedTuple):
    """How relevance lies on the objects of one scene.

    own: the share of an object at its own positions. 1/M if the relevance says nothing.
    first: the part of these positions where no other object's share is larger.
    part: the site's part in the pool, which knows nothing of the masks. NaN for a pool.
    """

    own: float
    first: float
    part: float


def placement(relevance: Tensor, masks: Tensor, part: float = math.nan) -> Placement:
    """Where relevance [M, h, w] lies against masks [M, S, S] in 0..1; a position counts as far as an object covers it.

    The shares are the paper's, A_i / Σ_j A_j.
    """
    covered = F.adaptive_avg_pool2d(masks, (relevance.shape[-2], relevance.shape[-1]))
    share = relevance / relevance.sum(0, keepdim=True)
    largest = covered.gather(0, share.argmax(0, keepdim=True)).sum()
    return Placement(float((share * covered).sum() / covered.sum()), float(largest / covered.amax(0).sum()), part)


def placements(
    sites: Mapping[Any, Tensor], masks: Tensor, surest: Sequence[Any] | None = None
) -> tuple[dict[Any, Placement], list[Any]]:
    """The placement of every site's relevance [M, h, w], which sums to 1 over positions, and that of `POOLS`, which are
    read at the finest site. Returns them and the sites, those first that the others agree with most.

    surest: the sites in the order in which they are chosen, as an earlier call returned them. None: by this call.

    Sureness is the mean of D² over objects and positions, D = L less its mean over objects: how far the site tells
    objects apart, whatever the other sites say.
    """
    finest = max(((each.shape[-2], each.shape[-1]) for each in sites.values()), key=math.prod)
    objects, picture = tuple(range(len(masks))), torch.zeros(1, dtype=torch.long)

    def pool_of(some: Iterable[Any]) -> Pool:
        pool = Pool(objects, 1)
        for site in some:
            height, width = sites[site].shape[-2:]
            pool.add(site, sites[site].flatten(1)[:, None], (height, width), (0,), picture)
        return pool

    def of_pool(pool: Pool) -> Placement:
        relevance = pool.relevance(finest, objects, (0,), picture)
        return placement(relevance[:, 0].unflatten(-1, finest), masks)

    everyone = pool_of(sites)
    found = {site: placement(each, masks, float(everyone.result.weights[site])) for site, each in sites.items()}
    found[POOL] = of_pool(everyone)
    order = sorted(sites, key=lambda site: float(everyone.result.agreement[site]), reverse=True)
    for count, name in FEWER.items():
        found[name] = of_pool(pool_of((surest or order)[:count]))
    logs = [(each * each[0].numel()).log() for each in sites.values()]
    sureness = torch.stack([each.var(0, correction=0).mean() for each in logs])
    at_finest = torch.stack([resize(each, finest) for each in logs])
    for name, weights in ((SURE, sureness), (EVEN, torch.ones_like(sureness))):
        mean = (at_finest * (weights / weights.sum()).view(-1, 1, 1, 1)).sum(0)
        found[name] = placement(mean.exp(), masks)
    return found, order


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
