"""The artist's choices about the merge: frozen values, checked on construction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from ..common.text import brief

Strategy = Literal["relevance", "uniform", "sum", "concat"]
Normalization = Literal["sum", "mean"]
Measure = Literal["each site", "pool"]
Gated = Literal["image", "text", "off"]

STRATEGIES: tuple[str, ...] = get_args(Strategy)
NORMALIZATIONS: tuple[str, ...] = get_args(Normalization)
MEASURES: tuple[str, ...] = get_args(Measure)
GATED: tuple[str, ...] = get_args(Gated)


def one_of(what: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raises ValueError, listing the choices, when `value` is none of them. what: the setting's name."""
    if value not in allowed:
        raise ValueError(f"{what} is {brief(repr(value), 60)}; choose one of {', '.join(allowed)}.")


def between(what: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless `value` lies between two numbers, both allowed. NaN does not."""
    if not low <= value <= high:
        raise ValueError(
            f"The {what} is {value}; it must lie between {low:g} and {high:g}. Correct it, or the node that gives it."
        )


@dataclass(frozen=True)
class Merge:
    """How the image features of several objects become one.

    strategy: "relevance" (the paper: Σ Ã_i Z_i), "uniform" (1/M each), "sum" (1 each), "concat" (one softmax over the
        image tokens of all objects together: plain IP-Adapter with several pictures).
    normalization: "sum" (official code, shares add up to 1) or "mean" (the paper's A_i / mean A, shares add up to M).
    background: strength of a competitor that claims positions no object text points at. 0 is the official behaviour;
        1 competes like an object of average relevance.
    sharpness: power on the relevance; above 1 the most relevant object takes more.
    measure: where the relevance comes from: "each site" measures its own (the paper), or all sites read one "pool" of
        what they measured (see pool.py).
    unclaimed: strength of a competitor that is as strong as the best object is at a typical position of this picture,
        so that objects claim what stands out from it; 0 is off (see `relevance.typical_best`).

    The last five act on "relevance" only. Raises ValueError for values out of range.
    """

    strategy: Strategy = "relevance"
    normalization: Normalization = "sum"
    background: float = 0.0
    sharpness: float = 1.0
    measure: Measure = "each site"
    unclaimed: float = 0.0

    def __post_init__(self) -> None:
        one_of("merge strategy", self.strategy, STRATEGIES)
        one_of("normalization", self.normalization, NORMALIZATIONS)
        one_of("measure", self.measure, MEASURES)
        if not self.background >= 0:
            raise ValueError(f"background is {self.background}; it must be 0 (off) or more.")
        if not self.unclaimed >= 0:
            raise ValueError(f"unclaimed is {self.unclaimed}; it must be 0 (off) or more.")
        if not self.sharpness > 0:
            raise ValueError(f"sharpness is {self.sharpness}; it must be above 0 (1 is the paper's merge).")

    def needs_relevance(self, objects: int) -> bool:
        """Whether sites must measure relevance. A lone object without a competitor has the share 1 everywhere."""
        return self.strategy == "relevance" and (objects > 1 or self.has_competitor)

    @property
    def has_competitor(self) -> bool:
        """Whether objects compete with something that is not an object."""
        return self.background > 0 or self.unclaimed > 0


@dataclass(frozen=True, eq=False)
class FusionHead:
    """The trained gate, what it multiplies, and how strongly.

    weights: site number N of the checkpoint -> row [C].
    gated: what the gate multiplies: "image", the merged image features (official code); "text", the text features (the
        paper's formula); "off", nothing.
    strength: blends from no gate (0) to the trained gate (1); up to 2 exaggerates it.
    name: how messages call the file.

    Raises ValueError for values out of range.
    """

    weights: Mapping[int, Tensor]
    gated: Gated = "image"
    strength: float = 1.0
    name: str = "fusion head"

    def __post_init__(self) -> None:
        one_of("fusion head gate", self.gated, GATED)
        if not 0 <= self.strength <= 2:
            raise ValueError(f"fusion head strength is {self.strength}; it must lie between 0 and 2.")

    @property
    def active(self) -> bool:
        return self.gated != "off" and self.strength != 0
