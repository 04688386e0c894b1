"""Running means of measurements, of bounded size, on the device; and what shares say of a position."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor

from .observation import PHASES, Observation


class Sums:
    """Sums of measurements at one resolution.

    total: [phases, *, B, H, W], the sums.
    weight: [phases, B, H, W], how often each position was measured, over sites and conds.
    """

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        self.total = torch.zeros(len(PHASES), *shape, device=device)
        self.weight = torch.zeros(len(PHASES), *shape[-3:], device=device)

    def add(self, phase: Tensor, values: Tensor, where: Observation) -> None:
        """Add values [S, *, C, P, h, w] of S sites. phase: [phases], 1 for the current one, 0 for the others."""
        (y, x), (height, width) = where.corner, values.shape[-2:]
        place = (..., where.pictures, slice(y, y + height), slice(x, x + width))
        summed = values.sum((0, -4))
        self.total[place] += phase.view(-1, *[1] * summed.ndim) * summed
        self.weight[place] += phase.view(-1, 1, 1, 1) * (values.shape[0] * values.shape[-4])

    def mean(self, phases: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The mean over some phases, [*, B, H, W], and where anything was measured, [B, H, W] of 0 and 1."""
        weight = self.weight[phases].sum(0)
        return self.total[phases].sum(0) / weight.clamp_min(1), (weight > 0).float()

    def copy(self) -> Sums:
        """A copy on the CPU."""
        other = copy(self)
        other.total, other.weight = (each.to("cpu", copy=True) for each in (self.total, self.weight))
        return other


def confusion(shares: Tensor, objects: int) -> Tensor:
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
