"""When which object acts. Every stretch of the sampling in which the same objects act has a plan of its own, compiled
beforehand: shares renormalise over those that act, and no step pays for the choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .plan import Plan


class Window(NamedTuple):
    """Noise levels at which something acts: end <= sigma <= start."""

    start: float
    end: float

    @classmethod
    def of(cls, model: Any, start_percent: float, end_percent: float) -> Window | None:
        """None for all steps, which needs no look at sigma."""
        if start_percent <= 0 and end_percent >= 1:
            return None
        sampling = model.get_model_object("model_sampling")
        return cls(sampling.percent_to_sigma(start_percent), sampling.percent_to_sigma(end_percent))

    def contains(self, sigma: float) -> bool:
        return self.end <= sigma <= self.start


class Times(NamedTuple):
    """Of one object: when it acts, and while it acts, when its region holds. None: always."""

    acts: Window | None = None
    confined: Window | None = None


class Acting(NamedTuple):
    """What acts at one noise level: indices of objects, and of those among them whose region holds."""

    objects: tuple[int, ...]
    confined: tuple[int, ...]


def acting(times: Sequence[Times], sigma: float) -> Acting:
    objects = tuple(i for i, each in enumerate(times) if each.acts is None or each.acts.contains(sigma))
    held = tuple(i for i in objects if (w := times[i].confined) is None or w.contains(sigma))
    return Acting(objects, held)


def stretches(times: Sequence[Times]) -> list[Acting]:
    """Everything that `acting` gives at any noise level, least noise first, those without objects left out."""
    edges = sorted({edge for each in times for window in each if window is not None for edge in window})
    between = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    levels = sorted([0.0, *edges, *between, float("inf")])
    return [each for each in dict.fromkeys(acting(times, level) for level in levels) if each.objects]


@dataclass(frozen=True, eq=False)
class Schedule:
    """The plan of every stretch. times: one an object, in the references' order."""

    times: tuple[Times, ...]
    plans: Mapping[Acting, Plan]

    @classmethod
    def always(cls, plan: Plan) -> Schedule:
        everyone = tuple(range(plan.objects))
        return cls((Times(),) * plan.objects, {Acting(everyone, everyone): plan})

    def at(self, sigma: Callable[[], float]) -> tuple[tuple[int, ...], Plan] | None:
        """The objects that act at a noise level and their plan; None where none acts. `sigma` costs a device sync and
        is asked only if the answer depends on it."""
        if not any(window for each in self.times for window in each):
            now, plan = next(iter(self.plans.items()))
            return now.objects, plan
        now = acting(self.times, sigma())
        plan = self.plans.get(now)
        return None if plan is None else (now.objects, plan)
