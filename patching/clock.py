"""When in the sampling a call is: its noise level, its step, its fraction. Only `Clock.sigma` waits for the device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..attention.plan import Plan
from ..attention.schedule import PercentRange
from .sampling_state import Caches

# Fractions of the sampling, evenly spaced, at which the noise level is looked up. At 0 and 1 hosts give sentinels.
FRACTIONS = torch.linspace(1e-4, 1 - 1e-4, 129, dtype=torch.float64)


class Clock:
    """The time of one call.

    options: the host's transformer_options.
    model_sampling: the sampled model's; None if it is unknown.
    caches: the sampling's.
    steps_done: those before the schedule in the options, where another pack cuts a sampling in pieces.
    steps: of the whole sampling; 0 if unknown.
    """

    def __init__(
        self, options: Mapping[str, Any], model_sampling: Any, caches: Caches, steps_done: int = 0, steps: int = 0
    ) -> None:
        self._sigmas: Tensor | None = options.get("sigmas")
        self._schedule: Tensor | None = options.get("sample_sigmas")
        self._model_sampling, self._caches = model_sampling, caches
        self._steps_done, self._steps = steps_done, steps
        self._ease_factors: dict[Plan, tuple[Tensor, Tensor]] = {}

    @cached_property
    def sigma(self) -> float:
        """The call's noise level; infinite if unknown. Reading it waits for the device, so it is read at most once."""
        return float("inf") if self._sigmas is None else float(self._sigmas.flatten()[0])

    @cached_property
    def step(self) -> tuple[Tensor, int] | None:
        """Index of the step (an integer tensor [1] on the device) and number of steps; None without a schedule."""
        if self._sigmas is None or self._schedule is None:
            return None
        steps = max(1, len(self._schedule) - 1)
        # The index is the number of noise levels in the schedule that lie above this call's.
        above = self._schedule[:steps] > self._sigmas.flatten()[:1] * 1.0001
        index = self._steps_done + above.sum().clamp_max(steps - 1).reshape(1)
        return index, max(self._steps, self._steps_done + steps)

    def within(self, period: PercentRange) -> bool:
        """Whether the sampling is inside a range now. True where the sampled model is unknown."""
        if self._model_sampling is None:
            return True
        start, end = map(self._sigma_at, period)
        return end <= self.sigma <= start

    def _sigma_at(self, fraction: float) -> float:
        key = self._model_sampling, fraction
        if key not in self._caches.sigmas:
            self._caches.sigmas[key] = self._model_sampling.percent_to_sigma(fraction)
        return self._caches.sigmas[key]

    def ease_factors(self, plan: Plan, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """`Plan.ease_factors` now; None where the sampled model is unknown. Made once for all sites."""
        if self._model_sampling is None or self._sigmas is None:
            return None
        if plan not in self._ease_factors:
            levels = self._log_sigmas(device)
            now = self._sigmas.flatten()[:1].to(levels).log()
            self._ease_factors[plan] = plan.ease_factors(fraction_at(now, levels).float())
        return self._ease_factors[plan]

    def _log_sigmas(self, device: torch.device) -> Tensor:
        """log sigma at `FRACTIONS`, on the device."""
        key = self._model_sampling, device
        if key not in self._caches.log_sigmas:
            sigmas = [float(self._model_sampling.percent_to_sigma(fraction)) for fraction in FRACTIONS.tolist()]
            self._caches.log_sigmas[key] = torch.tensor(sigmas).log().to(device)
        return self._caches.log_sigmas[key]


def fraction_at(now: Tensor, levels: Tensor) -> Tensor:
    """The fraction of the sampling at log sigma `now` [1], by linear interpolation between `levels`."""
    last = len(levels) - 1
    right = torch.searchsorted(-levels, -now).clamp(1, last)  # levels fall
    before, after = levels[right - 1], levels[right]
    part = ((before - now) / (before - after).clamp_min(torch.finfo(levels.dtype).tiny)).clamp(0, 1)
    return (right - 1 + part) / last
