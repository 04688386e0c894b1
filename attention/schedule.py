"""When which object acts. Every stretch of the sampling in which the same objects act has a plan of its own, compiled
beforehand: shares renormalise over those that act, and no step pays for the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .plan import Plan


class PercentRange(NamedTuple):
    """When something acts: from one fraction of the sampling to another, both included. Which noise they stand for only
    the model says that is being sampled."""

    start: float
    end: float

    @classmethod
    def from_percents(cls, start_percent: float, end_percent: float) -> PercentRange | None:
        """None for all steps, which needs no look at the noise."""
        return None if start_percent <= 0 and end_percent >= 1 else cls(start_percent, end_percent)


Open = Callable[[PercentRange], bool]  # whether something with this window acts now


class ObjectTiming(NamedTuple):
    """Of one object: when it acts, and while it acts, when its region holds. None: always."""

    acts: PercentRange | None = None
    confined: PercentRange | None = None


class ActiveSet(NamedTuple):
    """What acts at one moment: indices of objects, and of those among them whose region holds."""

    objects: tuple[int, ...]
    confined: tuple[int, ...]


def active_set(times: Sequence[ObjectTiming], is_open: Open) -> ActiveSet:
    objects = tuple(i for i, each in enumerate(times) if each.acts is None or is_open(each.acts))
    held = tuple(i for i in objects if (window := times[i].confined) is None or is_open(window))
    return ActiveSet(objects, held)


def active_segments(times: Sequence[ObjectTiming]) -> list[ActiveSet]:
    """Everything that `active_set` gives at any moment, in their order, those without objects left out."""
    edges = sorted({0.0, 1.0, *(edge for each in times for window in each if window is not None for edge in window)})
    between = [(early + late) / 2 for early, late in zip(edges, edges[1:], strict=False)]

    def at(moment: float) -> ActiveSet:
        return active_set(times, lambda window: window.start <= moment <= window.end)

    return [each for each in dict.fromkeys(map(at, sorted(edges + between))) if each.objects]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The plan of every stretch. times: one an object, in the references' order."""

    times: tuple[ObjectTiming, ...]
    plans: Mapping[ActiveSet, Plan]

    @classmethod
    def always(cls, plan: Plan) -> Schedule:
        everyone = tuple(range(plan.objects))
        return cls((ObjectTiming(),) * plan.objects, {ActiveSet(everyone, everyone): plan})

    def at(self, is_open: Open) -> tuple[tuple[int, ...], Plan] | None:
        """The objects that act now and their plan; None where none acts. `is_open` may cost a device sync and is asked
        only if the answer depends on it."""
        if not any(window for each in self.times for window in each):
            now, plan = next(iter(self.plans.items()))
            return now.objects, plan
        now = active_set(self.times, is_open)
        if now not in self.plans:
            if not now.objects:
                return None
            # Several moments of one noise level, as at the end of LCM's: windows that never meet may both be open.
            now = max(self.plans, key=lambda each: len({*each.objects} & {*now.objects}))
        return now.objects, self.plans[now]
