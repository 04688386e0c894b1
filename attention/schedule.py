"""When which object acts.

The sampling is divided into segments in which the same objects act. Each segment has its own plan, compiled
beforehand. Shares are normalised over the objects that act, and switching plans costs nothing per step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..weights.sites import SiteKey
from .plan import Plan


class PercentRange(NamedTuple):
    """When something acts: from one fraction of the sampling to another, both included.

    The sampled model maps these fractions to noise levels.
    """

    start: float
    end: float

    @classmethod
    def from_percents(cls, start_percent: float, end_percent: float) -> PercentRange | None:
        """None where the range covers all steps: it then needs no noise level."""
        return None if start_percent <= 0 and end_percent >= 1 else cls(start_percent, end_percent)


Within = Callable[[PercentRange], bool]  # whether the sampling is inside the range now


class ObjectTiming(NamedTuple):
    """When one object acts, and when its region holds while it acts. None: always."""

    acts: PercentRange | None = None
    region_holds: PercentRange | None = None


class ActiveSet(NamedTuple):
    """What acts at one moment: the indices of the objects, and of the confined ones, whose region holds."""

    objects: tuple[int, ...]
    confined: tuple[int, ...]


def active_set(times: Sequence[ObjectTiming], within: Within) -> ActiveSet:
    """What acts now. times: one per object."""
    objects = tuple(i for i, each in enumerate(times) if each.acts is None or within(each.acts))
    confined = tuple(i for i in objects if (period := times[i].region_holds) is None or within(period))
    return ActiveSet(objects, confined)


def active_segments(times: Sequence[ObjectTiming]) -> list[ActiveSet]:
    """Every distinct result of `active_set` over the sampling, in order of time, without those that have no objects."""
    edges = sorted({0.0, 1.0, *(edge for each in times for period in each if period is not None for edge in period)})
    between = [(early + late) / 2 for early, late in zip(edges, edges[1:], strict=False)]

    def at(moment: float) -> ActiveSet:
        return active_set(times, lambda period: period.start <= moment <= period.end)

    return [each for each in dict.fromkeys(map(at, sorted(edges + between))) if each.objects]


class Acting(NamedTuple):
    """The objects that act at one moment, as indices of all, and their plan."""

    objects: tuple[int, ...]
    plan: Plan


@dataclass(frozen=True, eq=False)
class Schedule:
    """The plan of every segment.

    times: one per object, in the references' order.
    plans: by what acts.
    """

    times: tuple[ObjectTiming, ...]
    plans: Mapping[ActiveSet, Plan]

    @classmethod
    def always(cls, plan: Plan) -> Schedule:
        """A schedule in which all objects of one plan act at all steps."""
        everyone = tuple(range(plan.count))
        return cls((ObjectTiming(),) * plan.count, {ActiveSet(everyone, everyone): plan})

    def at(self, within: Within, key: SiteKey) -> Acting | None:
        """What acts at a site now; None where no object does.

        `within` may cost a device sync. It is called only if the answer depends on it.
        """
        acting = self._now(within)
        return acting if acting is not None and key in acting.plan.site_plans else None

    def _now(self, within: Within) -> Acting | None:
        """What acts now; None where no object does."""
        if all(period is None for each in self.times for period in each):
            now, plan = next(iter(self.plans.items()))
            return Acting(now.objects, plan)
        now = active_set(self.times, within)
        if now not in self.plans:
            if not now.objects:
                return None
            # Several fractions can map to one noise level, as at the end of an LCM schedule. Ranges that never meet
            # may then be open together; the plan with most of their objects is used.
            now = max(self.plans, key=lambda each: len({*each.objects} & {*now.objects}))
        return Acting(now.objects, self.plans[now])
