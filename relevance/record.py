"""What sampling records about the objects' relevance: running means of bounded size, on the device.

Each UNet call passes the measurements of all its sites at once. Adding them never waits for the device: the index of
the step is a tensor.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.regions import resize
from .absence import why_absent
from .means import Sums, evenness
from .observation import PHASES, Observation, RunId
from .same_run import GOOD_FIT, POOR_FIT, explained, fingerprint, same_latent

KEPT = 8  # finished runs whose maps are kept, found by their latent


class RecordedMaps:
    """Maps of one sampling run, by resolution (H, W) and phase.

    names: the object texts, in the maps' order.
    colours: the numbers of their colours (`common/drawing.py`: `colour`).
    prompt: the prompt of the sampling; empty if it is not known.
    frozen: whether the shares came from an earlier sampling instead of a measurement.
    switched_off: what is 0, so that no object acts, as part of a sentence; empty if they may. Styles still may act.
    styles: names of the styles beside the objects; they take no part in the shares.
    strategy: the merge's.
    runs: which run of its model and queued graph this was, from 1.
    patches_lost: that another pack replaced patches, in a sentence; empty if none did.
    cropped: whether the run started from a crop of what an earlier run of its queued graph made, with whatever model.
    fixed_places: whether regions or frozen maps say where the objects are.

    Shares add up to 1 where the objects claim all of a position, whatever the merge's normalisation.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        frozen: bool = False,
        colours: Sequence[int] | None = None,
        prompt: str = "",
        styles: tuple[str, ...] = (),
    ) -> None:
        self.names, self.frozen, self.prompt, self.styles = names, frozen, prompt, styles
        self.colours = tuple(range(len(names)) if colours is None else colours)
        self.switched_off, self.strategy = "", "relevance"
        self.runs = 0
        self.patches_lost, self.cropped, self.fixed_places = "", False, False
        self._shares: dict[tuple[int, int], Sums] = {}
        self._gates: dict[tuple[int, int], Sums] = {}
        self._evenness = torch.zeros(2, 0, 0)  # [sum or count, steps, pictures]
        self._calls = torch.zeros(0)  # [steps], the number of UNet calls

    @property
    def resolutions(self) -> list[tuple[int, int]]:
        """Recorded (H, W), coarse to fine."""
        return _coarse_to_fine(self._shares)

    def shares(self, resolution: tuple[int, int] | None = None, phase: str | None = None) -> Tensor:
        """Mean share of every object, [M, B, H, W] on the CPU.

        resolution: default all of them, at the size of the finest.
        phase: one of `PHASES`; default all steps.
        Raises ValueError if nothing was recorded.
        """
        self.require_shares()
        return self._mean(self._shares, resolution, phase)

    def gate(self, resolution: tuple[int, int] | None = None, phase: str | None = None) -> Tensor | None:
        """Mean g̃ of the fusion head, [B, H, W] on the CPU; None without an active head. Arguments as in `shares`."""
        return self._mean(self._gates, resolution, phase) if self._gates else None

    def evenness(self) -> Tensor:
        """[steps, B] on the CPU, see the function `evenness`; NaN for steps without a measurement."""
        total, count = self._evenness.cpu()
        return total / count

    def evenness_by_picture(self) -> list[float] | None:
        """Each picture's mean over the measured steps; None if no step was measured."""
        each = self.evenness()
        return each.nanmean(0).tolist() if each.isfinite().any() else None

    def mean_evenness(self) -> float | None:
        """The mean over steps and pictures; None if no step was measured."""
        each = self.evenness_by_picture()
        return None if each is None else sum(each) / len(each)

    def steps_seen(self) -> Tensor:
        """[steps] bool on the CPU: in which steps the references acted."""
        return self._calls.cpu() > 0

    def absent(self) -> str | None:
        """Why there is nothing to draw; None if there are maps. Raises ValueError if no sampling has run yet."""
        return None if self._shares else why_absent(self)

    def require_shares(self) -> None:
        """Raises ValueError if no shares were recorded."""
        if (why := self.absent()) is not None:
            raise ValueError(why)

    def for_latent(self, latent: Tensor) -> RecordedMaps:
        """The maps of the run that made this latent. Raises ValueError if nothing was recorded."""
        self.require_shares()
        return self

    def of_another_run(self, images: Tensor) -> bool:
        """Whether pictures [B, H, W, 3] clearly come from another run than these maps."""
        return False

    def _mean(
        self, recorded: Mapping[tuple[int, int], Sums], resolution: tuple[int, int] | None, phase: str | None
    ) -> Tensor:
        """The mean over resolutions, at the finest's size. All count alike, each at the positions that it measured."""
        chosen = [resolution] if resolution else _coarse_to_fine(recorded)
        phases = list(range(len(PHASES))) if phase is None else [PHASES.index(phase)]
        total = weight = torch.zeros(())
        for size in chosen:
            mean, seen = recorded[size].mean(phases)
            total, weight = total + resize(mean, chosen[-1]), weight + resize(seen, chosen[-1])
        if phase is not None and not weight.any():
            raise ValueError(f"Nothing was recorded in the {phase} third of the steps: choose “all” as steps.")
        return (total / weight.clamp_min(torch.finfo(torch.float32).tiny)).cpu()


def _coarse_to_fine(sizes: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sizes (H, W) by area."""
    return sorted(sizes, key=lambda size: size[0] * size[1])


class RelevanceRecord(RecordedMaps):
    """The maps of a model's latest run. A new run starts them afresh. The last finished runs are kept on the CPU."""

    def __init__(
        self,
        names: tuple[str, ...],
        frozen: bool = False,
        colours: Sequence[int] | None = None,
        prompt: str = "",
        styles: tuple[str, ...] = (),
    ) -> None:
        super().__init__(names, frozen, colours, prompt, styles)
        self._run = RunId(None, 0)
        self._lock = Lock()  # the host samples conds on several GPUs at once
        self._finished: deque[tuple[Tensor, RecordedMaps]] = deque(maxlen=KEPT)  # by the latent's fingerprint

    def __deepcopy__(self, memo: dict) -> RelevanceRecord:
        return self  # all clones of a model share its record, and the host copies their options

    def add(self, run: RunId, turn: object, step: Tensor, steps: int, observations: Sequence[Observation]) -> None:
        """Add what all sites measured in one UNet call of a run.

        turn: see `Sums.add`.
        step: index of the step, an integer tensor [1].
        steps: number of steps.

        Several threads may call it, each with its own device. The maps stay on the device of the first call.
        """
        with self._lock:
            self._add_call(run, turn, step, steps, observations)

    def _add_call(
        self, run: RunId, turn: object, step: Tensor, steps: int, observations: Sequence[Observation]
    ) -> None:
        if run.key is not self._run.key or run.picture_count != self._run.picture_count:
            self.begin(run)
        if len(self._calls) == 0:
            self._evenness = torch.zeros(2, steps, run.picture_count, device=step.device)
            self._calls = torch.zeros(steps, device=step.device)
        # Where another pack cuts the sampling in pieces, they can have more steps together than its schedule.
        more = max(0, steps - len(self._calls))
        self._evenness, self._calls = F.pad(self._evenness, (0, 0, 0, more)), F.pad(self._calls, (0, more))
        steps = len(self._calls)
        step = step.to(self._calls.device)
        now = (torch.arange(steps, device=step.device) == step).float()
        phase = (torch.arange(len(PHASES), device=step.device) == step * len(PHASES) // steps).float()
        self._calls += now
        groups = defaultdict(list)
        for each in observations:
            shapes = (None if measured is None else measured.shape for measured in (each.shares, each.gate))
            groups[each.canvas, each.corner, tuple(shapes)].append(each)
        for group in groups.values():
            shares = [each.shares for each in group if each.shares is not None]
            gates = [each.gate for each in group if each.gate is not None]
            if shares:
                stacked = self._stacked(shares, group[0])  # [S, M, C, P, h, w]
                self._add(self._shares, turn, phase, stacked, group[0])
                if group[0].acting > 1:
                    self._add_evenness(now, stacked, group[0])
            if gates:
                self._add(self._gates, turn, phase, self._stacked(gates, group[0]), group[0])

    def begin(self, run: RunId, cropped: bool = False, fixed_places: bool = False) -> None:
        """Start a run: the maps of the run before are dropped. The first `add` of an unknown run calls this."""
        self.cropped, self.fixed_places = cropped, fixed_places
        self.runs = self.runs + 1 if run.prompt_id == self._run.prompt_id else 1
        self._run, self._shares, self._gates = run, {}, {}
        self._evenness, self._calls, self.patches_lost = torch.zeros(2, 0, 0), torch.zeros(0), ""

    def finish(self, run: RunId, latent: Tensor) -> None:
        """End a run with this latent and keep its maps. Waits for the device, since it reads the latent."""
        if run.key is self._run.key:
            self._finished.append((fingerprint(latent), self._copy()))

    def for_latent(self, latent: Tensor) -> RecordedMaps:
        """The maps of the run that made this latent; later samplings do not change them.

        Raises ValueError if nothing was recorded, or if there are several finished runs and none made this latent.
        """
        mark = fingerprint(latent)
        same = [maps for known, maps in self._finished if same_latent(known, mark)]
        if not same and len(self._finished) > 1:
            raise ValueError(
                f"This latent came out of none of the last {len(self._finished)} samplings with this model, so their "
                "maps are not its own: connect the latent as the first pass's sampler gives it, before it is upscaled "
                "or cut. If that sampler came from the cache, change its seed."
            )
        known = same or [maps for _, maps in self._finished]
        return known[-1].for_latent(latent) if known else self.snapshot()

    def of_another_run(self, images: Tensor) -> bool:
        """Whether pictures [B, H, W, 3] clearly come from another of the kept runs than the last one's maps."""
        fits = [explained(mark, images) for mark, _ in self._finished if len(mark) % len(images) == 0]
        return len(fits) > 1 and fits[-1] < POOR_FIT and max(fits) > GOOD_FIT

    def snapshot(self) -> RecordedMaps:
        """A copy of the last run's maps on the CPU; later samplings do not change it.

        Raises ValueError if nothing was recorded.
        """
        self.require_shares()
        return self._copy()

    def _copy(self) -> RecordedMaps:
        taken = RecordedMaps(self.names, self.frozen, self.colours, self.prompt, self.styles)
        taken.switched_off, taken.strategy, taken.runs = self.switched_off, self.strategy, self.runs
        taken.patches_lost, taken.cropped, taken.fixed_places = self.patches_lost, self.cropped, self.fixed_places
        taken._evenness, taken._calls = (each.to("cpu", copy=True) for each in (self._evenness, self._calls))
        taken._shares = {size: sums.copy() for size, sums in self._shares.items()}
        taken._gates = {size: sums.copy() for size, sums in self._gates.items()}
        return taken

    def _stacked(self, values: list[Tensor], where: Observation) -> Tensor:
        """Values of S sites, each [*, C·P, h, w], as one tensor [S, *, C, P, h, w]."""
        count = len(where.pictures) if isinstance(where.pictures, list) else self._run.picture_count
        return torch.stack(values).to(self._calls).unflatten(-3, (-1, count))

    def _add(
        self, to: dict[tuple[int, int], Sums], turn: object, phase: Tensor, values: Tensor, where: Observation
    ) -> None:
        """Add values [S, *, C, P, h, w] of S sites to the sums of their canvas."""
        if where.canvas not in to:
            to[where.canvas] = Sums((*values.shape[1:-4], self._run.picture_count, *where.canvas), values.device)
        to[where.canvas].add(turn, phase, values, where)

    def _add_evenness(self, now: Tensor, shares: Tensor, where: Observation) -> None:
        """Add the evenness of one step.

        It is weighted by sites and conds, so that it does not matter whether the host evaluates conds together.

        now: [steps], 1 for the current step, 0 for the others.
        shares: [S, M, C, P, h, w].
        """
        each, weight = evenness(shares, where.acting), shares.shape[0] * shares.shape[2]
        measured = torch.stack([each, torch.ones_like(each)]).unsqueeze(1) * weight  # [2, 1, P]
        self._evenness[:, :, where.pictures] += now.view(1, -1, 1) * measured
