"""What sampling leaves behind about the objects' relevance: running means, on the device, of bounded size.

Each UNet call hands over what its sites measured, all at once. Nothing here waits for the device: the step that a call
belongs to is an index tensor.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PHASES = ("early", "middle", "late")  # thirds of the steps


class Observation(NamedTuple):
    """One site's conditional rows. shares [M, B, h, w] or None where the merge has constant ones; gate [B, h, w], the
    fusion head's g̃, or None; canvas (H, W) at this site's resolution and the corner (y, x) of it that the rows show;
    acting: how many of the objects act, the others' shares are 0."""

    shares: Tensor | None
    gate: Tensor | None
    canvas: tuple[int, int]
    corner: tuple[int, int]
    acting: int


class _Sums:
    """Running sums at one resolution; weight [phases, H, W] counts the sites that saw a position."""

    def __init__(self, phases: int, objects: int, batch: int, size: tuple[int, int], device: torch.device) -> None:
        self.shares = torch.zeros(phases, objects, batch, *size, device=device)
        self.gate = torch.zeros(phases, batch, *size, device=device)
        self.weight = torch.zeros(phases, *size, device=device)

    def copy(self) -> _Sums:
        """On the CPU."""
        other = copy(self)
        other.shares, other.gate, other.weight = (t.to("cpu", copy=True) for t in (self.shares, self.gate, self.weight))
        return other


def confusion(shares: Tensor, objects: int) -> Tensor:
    """How evenly the objects claim the same places, one number in 0..1: 0 where every position has one owner, 1 where
    all claim everything alike. shares [..., M, B, h, w], of which `objects` act.

    The entropy of the shares of what is claimed, over log(objects); its mean over positions, weighted by their claim.
    """
    claimed = shares.sum(-4)
    entropy = torch.special.xlogy(claimed, claimed) - torch.special.xlogy(shares, shares).sum(-4)
    return entropy.sum() / (claimed.sum() * math.log(objects)).clamp_min(torch.finfo(torch.float32).tiny)


class RecordedMaps:
    """Maps of one sampling run, by resolution (H, W) and phase.

    names: the object texts, in the maps' order. frozen: whether the shares were not measured but came from an earlier
    sampling. runs: which run of its model it was, from 1. Shares add up to 1 where objects claim all of a position,
    whatever the merge's normalisation.
    """

    def __init__(self, names: tuple[str, ...], frozen: bool = False) -> None:
        self.names, self.frozen = names, frozen
        self.runs = 0
        self._sums: dict[tuple[int, int], _Sums] = {}
        self._steps = torch.zeros(3, 0)  # by step: sum of confusions, how many, UNet calls
        self._has_shares = self._has_gate = False

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """Recorded (H, W), coarse to fine."""
        return sorted(self._sums, key=lambda size: size[0] * size[1])

    def shares(self, resolution: tuple[int, int] | None = None, phase: str | None = None) -> Tensor:
        """Mean share of every object, [M, B, H, W] on the CPU; by default over all resolutions (at the finest's size)
        and all steps. Raises ValueError when nothing was recorded."""
        self.require_shares()
        return self._mean("shares", resolution, phase)

    def gate(self, resolution: tuple[int, int] | None = None, phase: str | None = None) -> Tensor | None:
        """Mean g̃ of the fusion head, [B, H, W] on the CPU; None without an active head."""
        return self._mean("gate", resolution, phase) if self._has_gate else None

    def confusion(self) -> Tensor:
        """[steps] on the CPU, see the function of that name; NaN for steps that measured none."""
        total, count, _ = self._steps.cpu()
        return total / count

    def mean_confusion(self) -> float | None:
        """Over the steps that measured it; None where none did."""
        each = self.confusion()
        measured = each[each.isfinite()]
        return float(measured.mean()) if len(measured) else None

    def steps_seen(self) -> Tensor:
        """[steps] bool on the CPU: in which steps the references acted."""
        return self._steps[2].cpu() > 0

    def require_shares(self) -> None:
        """Raises ValueError when nothing was recorded."""
        if self._has_shares:
            return
        if self.runs == 0:
            raise ValueError(
                "Nothing has been recorded yet: connect the images of a sampler that uses the model of this MIP Apply, "
                "so that the maps are drawn after it."
            )
        raise ValueError(
            "The last sampling measured no relevance: the merge strategy needs none (uniform, sum, concat, or a single "
            "object without background), or never did two objects act at the same time. Use the strategy “relevance” "
            "with two or more objects."
        )

    def snapshot(self) -> RecordedMaps:
        """A copy, on the CPU, that no sampling changes. Raises ValueError when nothing was recorded."""
        self.require_shares()
        taken = RecordedMaps(self.names, self.frozen)
        taken.runs, taken._steps = self.runs, self._steps.to("cpu", copy=True)
        taken._sums = {size: sums.copy() for size, sums in self._sums.items()}
        taken._has_shares, taken._has_gate = self._has_shares, self._has_gate
        return taken

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


class RelevanceRecord(RecordedMaps):
    """The maps of the last run of a model: every new run starts them afresh."""

    def __init__(self, names: tuple[str, ...], frozen: bool = False) -> None:
        super().__init__(names, frozen)
        self._run: object = None

    def add(self, run: object, step: Tensor, steps: int, observations: Sequence[Observation]) -> None:
        """One UNet call of the sampling run `run` (any object; a new one starts the maps afresh).

        step: its index among `steps`, an integer tensor of shape [1].
        """
        if run is not self._run or self._steps.shape[1] != steps:
            self._run, self._sums, self.runs = run, {}, self.runs + 1
            self._steps = torch.zeros(3, steps, device=step.device)
            self._has_shares = self._has_gate = False
        self._steps[2].index_add_(0, step, self._steps.new_ones(1))
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
                if group[0].acting > 1:
                    sites = torch.full_like(shares[0, 0, 0, 0, 0], len(group))
                    noted = torch.stack([confusion(shares, group[0].acting) * len(group), sites])
                    self._steps[:2].index_add_(1, step, noted.unsqueeze(1))
                self._has_shares = True
            if all(seen.gate is not None for seen in group):
                gate = torch.stack([seen.gate for seen in group if seen.gate is not None]).float().sum(0)
                sums.gate[window].index_add_(0, phase, gate.unsqueeze(0))
                self._has_gate = True
