"""One relevance for all sites: each site's measure, pooled by how far the other sites agree with it.

The paper reads an object's place anew at every site. Where a site's words do not find their places its shares are
even or wrong, and looks mix there. The pool lets the sites that see tell those that do not. With a_s = N·A at site s
(1 where a text prefers no position):

    L_s = log a_s
    D_s = L_s − mean over objects of L_s, less its own mean over positions      what tells the objects' places apart
    r_s = ⟨D_s, Σ_{t≠s} D_t⟩ / Σ_t ⟨D_t, D_t⟩                                   how far the other sites agree
    w_s = max(r_s, 0)² + MIN_WEIGHT
    P   = Σ_s w_s L_s / Σ_s w_s                           the pool; exp P stands for N·A at every site

⟨·,·⟩ sums over objects and positions, at the finest site's resolution. Sites look at one picture: what they see in it
they see alike, and each errs in its own way. So a site that is sure but alone has next to no weight. A factor of all D
changes nothing. Where no site agrees with any other, as where there is only one, all count alike.

All sites of a turn, one noise prediction of the guider, read what the turn before measured. So weights are found once a
turn, and shares once a turn and resolution. While nothing was measured before, a site reads what the turn has measured
so far, its own measure included.

Shapes: M objects, B pictures, S sites, N = h·w positions of a site.
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

MIN_WEIGHT = 1e-5  # of a site's weight; that of S sites which see the same is (1 − 1/S)²
MEASURING_SITES = 8  # sites that go on measuring
FIRST_TURNS = 2  # turns in which all sites measure
TURNS_BETWEEN = 8  # turns until all sites measure again


def agreement(logs: Tensor) -> Tensor:
    """r_s of every picture, [S, B]: 1 − 1/S if all S sites see the same, 0 for a site alone.

    logs: [S, M, B, h, w], L up to a constant of each site. A site that has not measured a picture has 0 there.
    """
    contrast = logs - logs.mean(1, keepdim=True)
    contrast = contrast - contrast.mean((-2, -1), keepdim=True)
    agreed = (contrast * (contrast.sum(0) - contrast)).sum((1, 3, 4))
    everything = contrast.square().sum((0, 1, 3, 4))
    return agreed / everything.clamp_min(torch.finfo(logs.dtype).tiny)


class PoolResult(NamedTuple):
    """What the sites measured, pooled.

    agreement: r_s of every picture, [B], by site.
    weights: w_s / Σ_t w_t of every picture, [B], by site. 0 where the site has not measured the picture.
    sums: Σ_s w_s L_s / Σ_t w_t over the sites s of one resolution, [M, B, h, w], by resolution.
    """

    agreement: dict[Hashable, Tensor]
    weights: dict[Hashable, Tensor]
    sums: dict[Size, Tensor]


class Pool:
    """What the sites of one turn measured.

    objects: the M that were measured, as indices of all references.
    picture_count: B, all that the sampling makes.

    known_shares: what readers made of the pool, by whatever they choose. It holds once the turn is over.
    """

    def __init__(self, objects: tuple[int, ...], picture_count: int) -> None:
        self.objects, self.picture_count = objects, picture_count
        self.known_shares: dict[Hashable, Tensor] = {}
        self._seen: set[int] = set()
        # By site. Of sites that measure some pictures at a time: the sum of L over all times, and how many these were.
        self._logs: dict[Hashable, Tensor] = {}  # [M, B, h, w]
        self._times: dict[Hashable, Tensor] = {}  # [B]
        self._result: PoolResult | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no site has measured yet."""
        return not self._logs

    def covers(self, objects: Sequence[int], pictures: Sequence[int]) -> bool:
        """Whether all these objects were measured in all these pictures."""
        return self._seen.issuperset(pictures) and set(objects) <= set(self.objects)

    def add(self, site_key: Hashable, relevance: Tensor, size: Size, pictures: Sequence[int], numbers: Tensor) -> None:
        """Add what a site measured. Where it sees a picture several times, as in context windows, L's mean counts.

        relevance: [M, b, N], summing to 1 over N, of b pictures.
        size: (h, w) of the site.
        pictures, numbers: which pictures; the same as an integer tensor [b].
        """
        logs = (relevance * math.prod(size)).log().unflatten(-1, size)
        if pictures == range(self.picture_count) and site_key not in self._logs:
            self._logs[site_key] = logs
        else:  # again, or some pictures, or all in another order: a context window, perhaps with a picture in front
            if site_key not in self._times:
                self._times[site_key] = logs.new_full((self.picture_count,), float(site_key in self._logs))
                self._logs.setdefault(site_key, logs.new_zeros(len(self.objects), self.picture_count, *size))
            self._logs[site_key].index_add_(1, numbers, logs)
            self._times[site_key].index_add_(0, numbers, torch.ones_like(logs[0, :, 0, 0]))
        self._seen.update(pictures)
        self._result = None

    @property
    def result(self) -> PoolResult:
        """The pool of what was measured so far."""
        if self._result is None:
            self._result = self._pool()
        return self._result

    def _pool(self) -> PoolResult:
        by_size: dict[Size, list[Hashable]] = {}
        for site_key, logs in self._logs.items():
            by_size.setdefault((logs.shape[-2], logs.shape[-1]), []).append(site_key)
        site_keys = [key for group in by_size.values() for key in group]
        stacks = [torch.stack([self._mean(key) for key in group]) for group in by_size.values()]
        finest = max(by_size, key=math.prod)
        agreed = agreement(torch.cat([resize(stack, finest) for stack in stacks]))
        weight = agreed.clamp_min(0).square() + MIN_WEIGHT
        if self._times:
            everywhere = weight.new_ones(self.picture_count)
            weight = weight * torch.stack([self._times.get(key, everywhere) for key in site_keys]).sign()
        weights = weight / weight.sum(0).clamp_min(MIN_WEIGHT)  # nobody may have measured a picture yet
        groups = weights.split([len(group) for group in by_size.values()])
        sums = [(stack * each[:, None, :, None, None]).sum(0) for stack, each in zip(stacks, groups, strict=True)]
        return PoolResult(
            dict(zip(site_keys, agreed, strict=True)),
            dict(zip(site_keys, weights, strict=True)),
            dict(zip(by_size, sums, strict=True)),
        )

    def _mean(self, site_key: Hashable) -> Tensor:
        """L_s, [M, B, h, w]."""
        logs, times = self._logs[site_key], self._times.get(site_key)
        return logs if times is None else logs / times.clamp_min(1).view(-1, 1, 1)

    def relevance(self, size: Size, objects: Sequence[int], pictures: Sequence[int], numbers: Tensor) -> Tensor:
        """exp P / N, [M, b, N], of some objects and pictures, at the resolution of a site."""
        pooled = torch.stack([resize(sums, size) for sums in self.result.sums.values()]).sum(0).flatten(-2)
        if pictures != range(self.picture_count):
            pooled = pooled.index_select(1, numbers)
        if tuple(objects) != self.objects:
            pooled = torch.stack([pooled[self.objects.index(each)] for each in objects])
        return (pooled - math.log(pooled.shape[-1])).exp()


class PoolAccess(NamedTuple):
    """One site's access to the pool of one cond's rows.

    read: a finished pool. None: the site reads `write`, after it added its own measure.
    write: the pool that the site adds its measure to. None: the site only reads.
    site_key: what the site is known by.
    size: its (h, w).
    objects: those that act, as indices of all references.
    pictures, numbers: which pictures the rows show, perhaps several times; the same as an integer tensor.
    """

    read: Pool | None
    write: Pool | None
    site_key: Hashable
    size: Size
    objects: tuple[int, ...]
    pictures: Sequence[int]
    numbers: Tensor

    def share(self, measure: Callable[[], Tensor], plan: Plan, region: Tensor | None, rows: int) -> Tensor:
        """Ã_i by the pool, [M, rows, N].

        measure: returns the site's own relevance, [M, rows, N]. It is called only where the site measures.
        region: as in `relevance.shares`.
        """
        count = len(self.pictures)
        if self.write is not None:
            self.write.add(self.site_key, measure()[:, :count], self.size, self.pictures, self.numbers)
        pool = self.read or self.write
        assert pool is not None
        key = plan, self.size, tuple(self.pictures), rows
        if self.read is None or key not in pool.known_shares:
            relevance = pool.relevance(self.size, self.objects, self.pictures, self.numbers)
            region = region if region is None else region[:, :count]  # the rows repeat the pictures
            share = shares(relevance, plan.merge, region).repeat(1, rows // count, 1)
            if self.read is None:
                return share
            pool.known_shares[key] = share
        return pool.known_shares[key]


class PoolHistory:
    """The pools of one cond in a sampling.

    now: what the sites of this turn measure. last: what those of the turn before measured, which this turn reads; of an
        earlier one where that turn measured nothing.
    """

    def __init__(self) -> None:
        self.last: Pool | None = None
        self.now: Pool | None = None
        self._turn: object = None
        self._measuring = _MeasuringSites()
        self._forward_passes = _ForwardPasses()

    def begin(self, turn: object, objects: tuple[int, ...], picture_count: int) -> None:
        """Begin a turn, unless it has begun. Where other objects act than before, this turn's pool begins anew.

        objects, picture_count: as in `Pool`.
        """
        if turn != self._turn:
            self._turn = turn
            if self.now is not None and not self.now.is_empty:
                self.last = self.now
            self._measuring.begin_turn(self.last)
            self._forward_passes.begin_turn()
        elif self.now is not None and objects == self.now.objects:
            return
        self.now = Pool(objects, picture_count)

    def enter_forward_pass(self, number: int) -> bool:
        """Enter a forward pass of the UNet, of the turn that has begun. Returns whether it is the last of an
        evaluation, whose result counts.

        Those before it show the UNet another picture, as reference-only control does. What they measure is kept out of
        the pool: by the number of forward passes in the turn before, and where there are more by a new pool.

        number: of the pass, from 0.
        """
        if self._forward_passes.enter(number) and self.now is not None:
            self.now = Pool(self.now.objects, self.now.picture_count)
        return self._forward_passes.is_last(number)

    def finished(self, turn: object) -> Pool | None:
        """The newest pool that a turn before this one made."""
        return self.last if turn == self._turn else self.now

    def measures(self, site_key: Hashable) -> bool:
        """Whether a site measures in this turn."""
        return self._measuring.has(site_key)


class _MeasuringSites:
    """Which sites measure in a turn: in the first turns and, now and then, all; in the others the surest few.

    The choice is made from agreement that is copied to the host while the next turn runs, so that no step waits for the
    device.
    """

    def __init__(self) -> None:
        self._turn = -1
        self._chosen: frozenset[Hashable] | None = None  # None: all
        self._copied: Callable[[], frozenset[Hashable]] | None = None

    def begin_turn(self, before: Pool | None) -> None:
        """before: what the turn before measured."""
        if self._copied is not None:
            self._chosen, self._copied = self._copied(), None
        if before is not None and self._all:
            self._copied = surest(before.result.agreement)
        self._turn += 1

    def has(self, site_key: Hashable) -> bool:
        return self._chosen is None or self._all or site_key in self._chosen

    @property
    def _all(self) -> bool:
        return self._turn < FIRST_TURNS or self._turn % TURNS_BETWEEN == 0


class _ForwardPasses:
    """How often the UNet runs in an evaluation: as often as in the turn before, or oftener."""

    def __init__(self) -> None:
        self._before, self._begun = 1, 0

    def begin_turn(self) -> None:
        self._before, self._begun = max(1, self._begun), 0

    def enter(self, number: int) -> bool:
        """Enter a forward pass. Returns whether it is the first of its number, and the turn before had none of it."""
        first = number >= self._begun
        self._begun = max(self._begun, number + 1)
        return first and number >= self._before

    def is_last(self, number: int) -> bool:
        """Whether no later forward pass is expected."""
        return number + 1 >= max(self._begun, self._before)


def surest(agreement: dict[Hashable, Tensor]) -> Callable[[], frozenset[Hashable]]:
    """Starts to copy every site's agreement [B] to the host. What it returns gives the sites that have most of it, over
    all pictures."""
    site_keys = list(agreement)
    weights = torch.stack(list(agreement.values())).mean(1)
    on_host = weights.to("cpu", non_blocking=weights.is_cuda)
    copied = torch.cuda.Event() if weights.is_cuda else None
    if copied is not None:
        copied.record()

    def chosen() -> frozenset[Hashable]:
        if copied is not None:
            copied.synchronize()  # it was queued a whole turn ago
        order = sorted(range(len(site_keys)), key=on_host.tolist().__getitem__, reverse=True)
        return frozenset(site_keys[i] for i in order[:MEASURING_SITES])

    return chosen
