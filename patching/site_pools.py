"""Which pool a site reads, and which it adds its measure to (attention/pool.py)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..attention.pool import Pool, PoolAccess, PoolHistory
from ..attention.regions import Size
from ..attention.schedule import Schedule
from ..weights.sites import SiteKey
from .batch_layout import CondEvaluation, Pictures
from .sampling_state import Pools, SamplingState


class PooledSite(NamedTuple):
    """A site of a schedule whose relevance is pooled. objects: those that act, as indices of all."""

    schedule: Schedule
    site_key: SiteKey
    objects: tuple[int, ...]


class SitePools:
    """The pools of one call.

    picture_count: how many pictures this call draws, as rows of one cond.
    shown: the pictures of the run that they show.
    forward_passes: of the UNet in this evaluation, before this call.
    """

    def __init__(
        self,
        sampling: SamplingState | None,
        evaluation: CondEvaluation | None,
        picture_count: int,
        shown: Pictures,
        forward_passes: int,
    ) -> None:
        self._sampling, self._evaluation = sampling, evaluation
        self._picture_count, self._shown, self._forward_passes = picture_count, shown, forward_passes
        self._visits: dict[tuple[Schedule, SiteKey], int] = {}
        self._of_call: Pools = {}

    def begin_forward_pass(self, site: PooledSite) -> int:
        """Begin the work at a site. Returns which forward pass of the UNet in this evaluation it is part of, from 0."""
        visits = self._visits.get((site.schedule, site.site_key), 0)
        self._visits[site.schedule, site.site_key] = visits + 1
        return self._forward_passes + visits

    def of_this_site(self, site: PooledSite, size: Size, rows: int, device: torch.device) -> PoolAccess:
        """The site's own measure and nothing else: where the conds come to it in parts."""
        pool, numbers = Pool(site.objects, rows), torch.arange(rows, device=device)
        return PoolAccess(None, pool, site.site_key, size, site.objects, range(rows), numbers)

    def of_cond(
        self, site: PooledSite, cond_id: Hashable, size: Size, numbers: Tensor, forward_pass: int
    ) -> PoolAccess:
        """What a site reads of the pool of one cond's rows, and where it adds what it measures.

        size: (h, w) of the site.
        numbers: of the pictures that the rows show, as an integer tensor.
        forward_pass: of the UNet in this evaluation.
        """
        evaluation, sampling = self._evaluation, self._sampling
        crop = None if evaluation is None else evaluation.crop
        if self._shown is not None and sampling is not None and evaluation is not None:
            every = range(sampling.run.picture_count)
            pictures = every[self._shown] if isinstance(self._shown, slice) else self._shown
            history = sampling.pools.setdefault((site.schedule, (cond_id, crop), numbers.device), PoolHistory())
            if evaluation.main:
                history.begin(sampling.turn, site.objects, sampling.run.picture_count)
                pools = (
                    _of_main_evaluation(history, site, pictures) if history.enter_forward_pass(forward_pass) else None
                )
            else:
                pools = _of_extra_evaluation(history, sampling.turn, site, pictures)
            if pools is not None:
                return PoolAccess(*pools, site.site_key, size, site.objects, pictures, numbers)
        # Nobody knows what the rows show, or they show another picture: the pool lasts for this call.
        of_call = site.schedule, (cond_id, crop, forward_pass), numbers.device
        history = self._of_call.setdefault(of_call, PoolHistory())
        history.begin(0, site.objects, self._picture_count)
        own = torch.arange(self._picture_count, device=numbers.device)  # the pool knows no others
        return PoolAccess(None, history.now, site.site_key, size, site.objects, range(self._picture_count), own)


def _of_main_evaluation(
    history: PoolHistory, site: PooledSite, pictures: Sequence[int]
) -> tuple[Pool | None, Pool | None]:
    """What to read and write in the guider's own evaluation: the last turn's pool; this one's if the site measures."""
    last = history.last
    read = last if last is not None and last.covers(site.objects, pictures) else None
    return read, history.now if read is None or history.measures(site.site_key) else None


def _of_extra_evaluation(
    history: PoolHistory, turn: int, site: PooledSite, pictures: Sequence[int]
) -> tuple[Pool, None] | None:
    """What to read in an evaluation that is not the guider's own, such as PAG's: its sites do not measure."""
    for pool in (history.finished(turn), history.now):
        if pool is not None and pool.covers(site.objects, pictures):
            return pool, None
    return None
