"""Strength over time: a reference grows, fades, or does both while it acts.

With t from 0 to 1 over the reference's own range, the image features are multiplied by

    ease in: sin²(πt/2)        ease out: cos²(πt/2)        ease in and out: sin²(πt)

each of mean 1/2.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

EASES = STEADY, EASE_IN, EASE_OUT, EASE_IN_AND_OUT = ("steady", "ease in", "ease out", "ease in and out")
SHORTEST = 1e-3  # of the sampling; a shorter range is over at once


class Ease(NamedTuple):
    """How a strength varies over a range of the sampling.

    kind: one of `EASES`.
    start, end: fractions of the sampling.
    """

    kind: str = STEADY
    start: float = 0.0
    end: float = 1.0

    @classmethod
    def over(cls, kind: str, start: float, end: float) -> Ease:
        """A steady one has no range: all that are steady are equal."""
        return cls() if kind == STEADY else cls(kind, start, end)

    def at(self, fraction: Tensor) -> Tensor:
        """The factor at a fraction of the sampling; same shape, no device sync."""
        t = ((fraction - self.start) / max(self.end - self.start, SHORTEST)).clamp(0, 1)
        if self.kind == EASE_IN:
            return (t * (math.pi / 2)).sin().square()
        if self.kind == EASE_OUT:
            return (t * (math.pi / 2)).cos().square()
        return (t * math.pi).sin().square() if self.kind == EASE_IN_AND_OUT else t.new_ones(t.shape)
