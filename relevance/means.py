"""Running means of measurements, of bounded size, on the device; and what shares say of a position."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .observation import PHASES, Observation


class Sums:
    """Sums of measurements at one resolution. Every turn counts alike: its mean over sites and conds is added, and over
    context windows, which show some pictures more often than others.

    total: [phases, *, B, H, W], the sums of the turns before the last.
    weight: [phases, B, H, W], in how many of them each position was measured.
    """

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        self.total = torch.zeros(len(PHASES), *shape, device=device)
        self.weight = torch.zeros(len(PHASES), *shape[-3:], device=device)
        self._turn: object = None  # the last, of this phase; its sum [*, B, H, W] and how often it measured [B, H, W]
        self._phase = torch.zeros(len(PHASES), device=device)
        self._now, self._often = torch.zeros_like(self.total[0]), torch.zeros_like(self.weight[0])

    def add(self, turn: object, phase: Tensor, values: Tensor, where: Observation) -> None:
        """Add values [S, *, C, P, h, w] of S sites.

        turn: what is the same in all calls of one noise prediction.
        phase: [phases], 1 for the turn's, 0 for the others.
        """
        if turn != self._turn:
            self.total, self.weight = self._with_last_turn()
            self._turn, self._phase = turn, phase
            self._now.zero_()
            self._often.zero_()
        (y, x), (height, width) = where.corner, values.shape[-2:]
        place = (..., where.pictures, slice(y, y + height), slice(x, x + width))
        self._now[place] += values.sum((0, -4))
        self._often[place] += values.shape[0] * values.shape[-4]

    def _with_last_turn(self) -> tuple[Tensor, Tensor]:
        """Total and weight of all turns."""
        mean, seen = self._now / self._often.clamp_min(1), (self._often > 0).float()
        return self.total + _outer(self._phase, mean), self.weight + _outer(self._phase, seen)

    def mean(self, phases: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean over some phases, [*, B, H, W], and where anything was measured, [B, H, W] of 0 and 1."""
        total, weight = (each[phases].sum(0) for each in self._with_last_turn())
        return total / weight.clamp_min(1), (weight > 0).float()

    def copy(self) -> Sums:
        """A copy on the CPU."""
        other = Sums(self.total.shape[1:], torch.device("cpu"))
        other.total, other.weight = (each.to("cpu") for each in self._with_last_turn())
        return other


def _outer(phase: Tensor, values: Tensor) -> Tensor:
    """[phases] and [*] -> [phases, *]."""
    return phase.view(-1, *[1] * values.ndim) * values


def evenness(shares: Tensor, objects: int) -> Tensor:
    """How evenly the objects claim the same positions: 0 if every position has one owner, 1 if all claim all alike.

    It is the entropy of the shares of what is claimed, divided by log(objects), averaged over positions with the
    claimed amount as weight.

    shares: [S, M, C, P, h, w], S sites and C conds.
    objects: how many of the M objects act, at least 2.
    Returns [P], a number in 0..1 for each picture.
    """
    claimed = shares.sum(1)
    entropy = torch.special.xlogy(claimed, claimed) - torch.special.xlogy(shares, shares).sum(1)
    entropy, claimed = (each.sum((0, 1, 3, 4)) for each in (entropy, claimed))
    return entropy / (claimed * math.log(objects)).clamp_min(torch.finfo(torch.float32).tiny)


def nobody(shares: Tensor) -> Tensor:
    """The unclaimed share of every position: shares [M, ...] -> [1, ...]."""
    return (1 - shares.sum(0, keepdim=True)).clamp_min(0)
