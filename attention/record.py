"""What sampling leaves behind about the objects' relevance: running means, on the device, of bounded size.

Each UNet call hands over what its sites measured, all at once. Nothing here waits for the device: the step that a call
belongs to is an index tensor.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PHASES = ("early", "middle", "late")  # thirds of the steps


class Observation(NamedTuple):
    """One site's conditional rows. shares [M, B, h, w] or None where the merge has constant ones; gate [B, h, w], the
    fusion head's g̃, or None; canvas (H, W) at this site's resolution and the corner (y, x) of it that the rows show."""

    shares: Tensor | None
    gate: Tensor | None
    canvas: tuple[int, int]
    corner: tuple[int, int] = (0, 0)


class _Sums:
    """Running sums at one resolution; weight [phases, H, W] counts the sites that saw a position."""

    def __init__(self, phases: int, objects: int, batch: int, size: tuple[int, int], device: torch.device) -> None:
        self.shares = torch.zeros(phases, objects, batch, *size, device=device)
        self.gate = torch.zeros(phases, batch, *size, device=device)
        self.weight = torch.zeros(phases, *size, device=device)


class RelevanceRecord:
    """Maps of the last sampling run, by resolution (H, W) and phase. names: the object texts, in the maps' order."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.runs = 0  # sampling runs seen; the maps are the last one's
        self._run: object = None
        self._sums: dict[tuple[int, int], _Sums] = {}
        self._has_shares = self._has_gate = False
        self._confusion = torch.zeros(2, 0)

    def add(self, run: object, step: Tensor, steps: int, observations: Sequence[Observation]) -> None:
        """One UNet call of the sampling run `run` (any object; a new one starts the maps afresh).

        step: its index among `steps`, an integer tensor of shape [1].
        """
        if run is not self._run or self._confusion.shape[1] != steps:
            self._run, self._sums, self.runs = run, {}, self.runs + 1
            self._confusion = torch.zeros(2, steps, device=step.device)
            self._has_shares = self._has_gate = False
        phase = step * len(PHASES) // steps
        groups = defaultdict(list)
        for seen in observations:
            shape = next(t.shape for t in (seen.shares, seen.gate) if t is not None)
            groups[seen.canvas, seen.corner, shape[-3:]].append(seen)
        for (canvas, (y, x), (batch, height, width)), group in groups.items():
            sums = self._sums.get(canvas)
            if sums is None or sums.gate.shape[1] != batch:
                sums = self._sums[canvas] = _Sums(len(PHASES), len(self.names), batch, canvas, step.device)
            window = (..., slice(y, y + height), slice(x, x + width))
            sums.weight[window].index_add_(0, phase, sums.weight.new_full((1, height, width), len(group)))
            if all(seen.shares is not None for seen in group):
                shares = torch.stack([seen.shares for seen in group if seen.shares is not None]).float()
                sums.shares[window].index_add_(0, phase, shares.sum(0, keepdim=True))
                self._note_confusion(shares, step)
                self._has_shares = True
            if all(seen.gate is not None for seen in group):
                gate = torch.stack([seen.gate for seen in group if seen.gate is not None]).float().sum(0)
                sums.gate[window].index_add_(0, phase, gate.unsqueeze(0))
                self._has_gate = True

    def _note_confusion(self, shares: Tensor, step: Tensor) -> None:
        """Mean over positions of the entropy of the shares, over log M: 0 where every position has one owner, 1 where
        all objects claim everything alike. shares [sites, M, B, h, w]."""
        sites, objects = shares.shape[:2]
        if objects > 1:
            entropy = -torch.special.xlogy(shares, shares).sum(1).mean() * (sites / math.log(objects))
            self._confusion[0].index_add_(0, step, entropy.reshape(1))
            self._confusion[1].index_add_(0, step, torch.full_like(entropy, sites).reshape(1))

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """Recorded (H, W), coarse to fine."""
        return sorted(self._sums, key=lambda size: size[0] * size[1])

    def shares(self, resolution: tuple[int, int] | None = None, phase: str | None = None) -> Tensor:
        """Mean share of every object, [M, B, H, W] on the CPU; by default over all resolutions (at the finest's size)
        and all steps. Raises ValueError when nothing was recorded."""
        if not self._has_shares:
            raise ValueError(self._nothing("no relevance"))
        return self._mean("shares", resolution, phase)

    def gate(self, resolution: tuple[int, int] | None = None, phase: str | None = None) -> Tensor | None:
        """Mean g̃ of the fusion head, [B, H, W] on the CPU; None without an active head."""
        return self._mean("gate", resolution, phase) if self._has_gate else None

    def confusion(self) -> Tensor:
        """[steps] on the CPU, see `_note_confusion`; NaN for steps that measured none."""
        total, count = self._confusion.cpu()
        return total / count

    def _mean(self, what: str, resolution: tuple[int, int] | None, phase: str | None) -> Tensor:
        chosen = [resolution] if resolution else self.resolutions
        size = chosen[-1]
        phases = slice(None) if phase is None else [PHASES.index(phase)]
        means = []
        for each in chosen:
            sums = self._sums[each]
            weight = sums.weight[phases].sum(0)
            mean = getattr(sums, what)[phases].sum(0) / weight.clamp_min(1)
            flat = mean.reshape(1, -1, *mean.shape[-2:])
            flat = F.interpolate(flat, size=size, mode="bilinear", align_corners=False) if each != size else flat
            means.append(flat.reshape(*mean.shape[:-2], *size))
        return torch.stack(means).mean(0).cpu()

    def _nothing(self, what: str) -> str:
        if self.runs == 0:
            return (
                "Nothing has been recorded yet: connect the images of a sampler that uses the model of this MIP Apply, "
                "so that the maps are drawn after it."
            )
        return (
            f"The last sampling measured {what}: the merge strategy needs none (uniform, sum, concat, or a single "
            "object without background). Use the strategy “relevance” with two or more objects."
        )
