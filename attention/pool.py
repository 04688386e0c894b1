"""One relevance for all sites: each site's measure, pooled by how surely it tells the objects apart.

The paper reads an object's place anew at every site. Where a site's words do not find their places its shares are
even, and looks mix there. The pool lets the sites that see tell those that do not. With a_s = N·A at site s (1 where a
text prefers no position), resized to the site that reads:

    L_s = log a_s
    D_s = L_s − mean over objects of L_s          what tells the objects apart
    w_s = mean over objects and positions of D_s²     how sure the site is
    P   = Σ_s w_s L_s / Σ_s w_s                   the pool; exp P stands for N·A at every site

All sites of a turn, one noise prediction of the guider, read what the turn before measured. So shares are made once a
turn and resolution. While nothing was measured before, a site reads what the turn has measured so far, its own measure
included.

Shapes: M objects, B pictures, N = h·w positions of a site.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .plan import Plan
from .regions import Size, resize
from .relevance import shares

# Added to every w_s. Where no site tells the objects apart all count alike, instead of 0/0.
LEAST = 1e-9
SUREST = 8  # sites that go on measuring
AT_FIRST = 2  # turns in which all sites measure
AGAIN = 8  # turns until all sites measure again


def sureness(logs: Tensor) -> Tensor:
    """w = mean over objects and positions of D². logs: [M, B, N], L up to a constant. Returns [B]."""
    return logs.var(0, correction=0).mean(-1) + LEAST


class Pool:
    """What the sites of one turn measured.

    objects: the M that were measured, as indices of all references.
    pictures: B, all that the sampling makes.

    sureness: by site, the w_s of every picture, [B].
    shares: what readers made of the pool, by whatever they choose. It holds once the turn is over.
    """

    def __init__(self, objects: tuple[int, ...], pictures: int) -> None:
        self.objects, self.pictures = objects, pictures
        self.sureness: dict[Hashable, Tensor] = {}
        self.shares: dict[Hashable, Tensor] = {}
        self._seen: set[int] = set()
        self._logs: dict[Size, Tensor] = {}  # Σ w L, [M, B, h, w], at each resolution
        self._weights: dict[Size, Tensor] = {}  # Σ w, [B]

    def covers(self, objects: Sequence[int], pictures: Sequence[int]) -> bool:
        """Whether all these objects were measured in all these pictures."""
        return self._seen.issuperset(pictures) and set(objects) <= set(self.objects)

    def add(self, site: Hashable, relevance: Tensor, size: Size, pictures: Sequence[int], numbers: Tensor) -> None:
        """Add what a site measured.

        relevance: [M, b, N], summing to 1 over N, of b pictures.
        size: (h, w) of the site.
        pictures, numbers: which pictures; the same as an integer tensor [b].
        """
        logs = relevance.log()
        weight = sureness(logs)
        # Σ w (log A + log N): the constant joins when the pool is read.
        if size not in self._logs:
            self._logs[size] = logs.new_zeros(len(self.objects), self.pictures, *size)
            self._weights[size] = weight.new_zeros(self.pictures)
        total = self._logs[size].flatten(-2)
        if len(pictures) == self.pictures:
            total.addcmul_(logs, weight.unsqueeze(-1))
            self._weights[size] += weight
        else:
            total.index_add_(1, numbers, logs * weight.unsqueeze(-1))
            self._weights[size].index_add_(0, numbers, weight)
            weight = weight.new_zeros(self.pictures).index_add(0, numbers, weight)
        self.sureness[site] = self.sureness[site] + weight if site in self.sureness else weight
        self._seen.update(pictures)

    def relevance(self, size: Size, objects: Sequence[int], pictures: Sequence[int], numbers: Tensor) -> Tensor:
        """exp P / N, [M, b, N], of some objects and pictures, at the resolution of a site."""
        weight = torch.stack(list(self._weights.values())).sum(0)
        pooled = sum(
            resize(logs, size) + math.log(math.prod(at)) * self._weights[at].view(-1, 1, 1)
            for at, logs in self._logs.items()
        )
        assert isinstance(pooled, Tensor), "nothing was measured"
        pooled = (pooled / weight.view(-1, 1, 1)).flatten(-2)
        if len(pictures) < self.pictures:
            pooled = pooled.index_select(1, numbers)
        if tuple(objects) != self.objects:
            pooled = torch.stack([pooled[self.objects.index(each)] for each in objects])
        return (pooled - math.log(pooled.shape[-1])).exp()


class PooledSite(NamedTuple):
    """One site's access to the pool of one cond's rows.

    read: a finished pool. None: the site reads `write`, after it added its own measure.
    write: the pool that the site adds its measure to. None: the site only reads.
    site: what the site is known by.
    size: its (h, w).
    objects, pictures, numbers: see `Pool`. The rows show the pictures, perhaps several times.
    """

    read: Pool | None
    write: Pool | None
    site: Hashable
    size: Size
    objects: tuple[int, ...]
    pictures: Sequence[int]
    numbers: Tensor

    def shares(self, measure: Callable[[], Tensor], plan: Plan, region: Tensor | None, rows: int) -> Tensor:
        """The shares [M, rows, N] by the pool.

        measure: returns the site's own relevance, [M, rows, N]. It is called only where the site measures.
        region: as in `relevance.shares`.
        """
        shown = len(self.pictures)
        if self.write is not None:
            self.write.add(self.site, measure()[:, :shown], self.size, self.pictures, self.numbers)
        pool = self.read or self.write
        assert pool is not None
        known = plan, self.size, tuple(self.pictures), rows
        if self.read is None or known not in pool.shares:
            relevance = pool.relevance(self.size, self.objects, self.pictures, self.numbers)
            region = region if region is None else region[:, :shown]  # the rows repeat the pictures
            share = shares(relevance, plan.merge, region).repeat(1, rows // shown, 1)
            if self.read is None:
                return share
            pool.shares[known] = share
        return pool.shares[known]


class PoolHistory:
    """The pools of one cond's turns in a sampling, and which sites go on measuring.

    In the first turns all sites measure, then the surest few and, now and then, all again. The choice is made from
    sureness that was copied to the host a turn before, so that no step waits for the device.
    """

    def __init__(self) -> None:
        self.last: Pool | None = None
        self.now: Pool | None = None
        self._turn: object = None
        self._count = -1
        self._passes, self._expected = 0, 1
        self._chosen: frozenset[Hashable] | None = None  # None: all
        self._copied: Callable[[], frozenset[Hashable]] | None = None

    def begin(self, turn: object, objects: tuple[int, ...], pictures: int) -> None:
        """Begin a turn, unless it has begun. objects, pictures: as in `Pool`."""
        if self.now is not None and turn == self._turn and objects == self.now.objects:
            return
        if turn != self._turn:
            self._turn, self._count = turn, self._count + 1
            self._expected, self._passes = max(1, self._passes), 0
            self._chosen = self._copied() if self._copied is not None else self._chosen
            self._copied = None
            if self.now is not None and self._all_measure(self._count - 1):
                self._copied = surest(self.now.sureness)
            self.last = self.now
        self.now = Pool(objects, pictures)

    def is_last(self, number: int) -> bool:
        """Whether this pass of the UNet is the last of an evaluation, whose result counts; of the turn that has begun.

        Those before it show the UNet another picture, as reference-only control does. What they measure is kept out of
        the pool: by the number of passes in the turn before, and where there are more by a new pool.

        number: of the pass, from 0.
        """
        if number >= self._passes:
            self._passes = number + 1
            if self.now is not None and number >= self._expected:
                self.now = Pool(self.now.objects, self.now.pictures)
        return number + 1 >= max(self._passes, self._expected)

    def finished(self, turn: object) -> Pool | None:
        """The newest pool that a turn before this one made."""
        return self.last if turn == self._turn else self.now

    def measures(self, site: Hashable) -> bool:
        """Whether a site measures in this turn."""
        return self._chosen is None or self._all_measure(self._count) or site in self._chosen

    @staticmethod
    def _all_measure(count: int) -> bool:
        return count < AT_FIRST or count % AGAIN == 0


def surest(sureness: dict[Hashable, Tensor]) -> Callable[[], frozenset[Hashable]]:
    """Starts to copy every site's sureness to the host. What it returns gives the surest sites, of all pictures."""
    sites = list(sureness)
    weights = torch.stack(list(sureness.values())).mean(1)
    on_host = weights.to("cpu", non_blocking=weights.is_cuda)
    copied = torch.cuda.Event() if weights.is_cuda else None
    if copied is not None:
        copied.record()

    def chosen() -> frozenset[Hashable]:
        if copied is not None:
            copied.synchronize()  # it was queued a whole turn ago
        order = sorted(range(len(sites)), key=on_host.tolist().__getitem__, reverse=True)
        return frozenset(sites[i] for i in order[:SUREST])

    return chosen
