"""The pooled relevance written a second time, straight from its definition: float64, one picture of one cond at a time.

Every site's log(N·A) of every object is kept as a list. Who reads goes through the list and resizes by Pillow. Within a
turn, a noise prediction of the guider, only the first measure of a site counts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Picture = tuple[Hashable, Hashable]  # a cond, and one of its pictures


class Measured(NamedTuple):
    """What one site measured once. logs: [h, w] by object."""

    site: Hashable
    logs: dict[int, Tensor]


class Weighed(NamedTuple):
    """A site among all that measured. logs: the mean of what it measured, by object."""

    site: Hashable
    logs: dict[int, Tensor]
    agreement: float
    weight: float


def measured(site: Hashable, relevance: Tensor, objects: Collection[int], size: tuple[int, int]) -> Measured:
    """relevance: A [M, N] of these objects."""
    logs = torch.log(relevance * relevance.shape[1])
    return Measured(site, {i: each.reshape(size) for i, each in zip(objects, logs, strict=True)})


def weighed(entries: Collection[Measured]) -> list[Weighed]:
    by_site: dict[Hashable, dict[int, Tensor]] = {}
    for site in {entry.site: None for entry in entries}:
        own = [entry.logs for entry in entries if entry.site == site]
        by_site[site] = {i: torch.stack([logs[i] for logs in own]).mean(0) for i in own[0]}
    finest = max(((*each.shape,) for logs in by_site.values() for each in logs.values()), key=math.prod)
    rows = []
    for logs in by_site.values():
        maps = torch.stack([resized(each, finest) for each in logs.values()]).double()
        maps = maps - maps.mean(0)
        rows.append((maps - maps.mean((1, 2), keepdim=True)).flatten())
    products = torch.stack(rows) @ torch.stack(rows).T  # of every site with every other
    own = products.diagonal()
    agreements = (products.sum(1) - own) / own.sum() if own.sum() else torch.zeros(len(rows))
    return [
        Weighed(site, logs, agreement, max(agreement, 0.0) ** 2 + 1e-5)
        for (site, logs), agreement in zip(by_site.items(), agreements.tolist(), strict=True)
    ]


def pooled(sites: Collection[Weighed], objects: Collection[int], size: tuple[int, int]) -> Tensor:
    """A [M, N] of these objects at a resolution."""
    total = sum(site.weight for site in sites)
    maps = []
    for i in objects:
        by_size: dict[tuple, Tensor] = {}
        for site in sites:
            at = tuple(site.logs[i].shape)
            by_size[at] = by_size.get(at, torch.zeros(at)) + site.weight / total * site.logs[i]
        pool = torch.stack([resized(each, size) for each in by_size.values()]).sum(0)
        maps.append(torch.exp(pool).flatten() / math.prod(size))
    return torch.stack(maps)


def resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(maps.shape) == tuple(size):
        return maps
    picture = Image.fromarray(maps.numpy().astype(np.float32), "F")
    return torch.from_numpy(np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)).astype(float))


class DirectPool:
    """The pool of one sampling.

    surest: so many sites go on measuring, those that agree most with the others, from the next turn but one after they
        were chosen. They are chosen in the turns in which all sites measure: the first two, and each of number `again`,
        2 · `again`, …
    """

    surest, again = 8, 8

    def __init__(self, surest: int | None = None, again: int | None = None) -> None:
        self.surest, self.again = surest or self.surest, again or self.again
        self.history: list[dict[Picture, list[Measured]]] = []
        self.turn = 0
        self.now: dict[Picture, list[Measured]] = {}
        self.before: dict[Picture, list[Measured]] = {}
        self.weighed_before: dict[Picture, list[Weighed]] = {}  # all sites read the same
        self.counted: set[Hashable] = set()

    def watch(self, model: Any) -> None:
        """Begin a turn at every noise prediction of this MODEL's guider."""
        from comfy.patcher_extension import WrappersMP, add_wrapper_with_key

        def predict(executor, *given, **named):
            self.begin()
            return executor(*given, **named)

        add_wrapper_with_key(WrappersMP.PREDICT_NOISE, "turns", predict, model.model_options, is_model_options=True)

    def begin(self) -> None:
        if self.now:  # turns in which nothing acts do not count
            self.history.append(self.now)
            self.turn, self.before, self.weighed_before = self.turn + 1, self.now, {}
        self.now, self.counted = {}, set()

    def measuring(self, turn: int, picture: Picture) -> Collection[Hashable] | None:
        """Which sites measure in a turn that has a pool to read; None: all."""

        def all_measure(turn: int) -> bool:
            return turn < 2 or turn % self.again == 0

        if all_measure(turn):
            return None
        full = max(each for each in range(turn - 1) if all_measure(each))
        cond, _ = picture
        agreed: dict[Hashable, float] = {}
        for (of, _), entries in self.history[full].items():
            for each in weighed(entries) if of == cond else ():
                agreed[each.site] = agreed.get(each.site, 0) + each.agreement
        return sorted(agreed, key=agreed.__getitem__)[-self.surest :]

    def read(self, site: Hashable, picture: Picture, shown: Hashable, relevance: Tensor, objects: Collection[int],
             size: tuple[int, int]) -> Tensor:  # fmt: skip
        """The relevance that acts, from what the site measures itself.

        shown: what else tells evaluations of one turn apart, as a context window.
        """
        before = self.before.get(picture, [])
        covered = bool(before) and set(objects) <= set(before[0].logs)
        sites = self.measuring(self.turn, picture) if covered else None
        if (site, picture, shown) not in self.counted and (sites is None or site in sites):
            self.counted.add((site, picture, shown))
            self.now.setdefault(picture, []).append(measured(site, relevance, objects, size))
        if covered and picture not in self.weighed_before:
            self.weighed_before[picture] = weighed(before)
        return pooled(self.weighed_before[picture] if covered else weighed(self.now[picture]), objects, size)
