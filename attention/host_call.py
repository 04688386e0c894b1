"""What a patch must know about the UNet call it is part of: which rows are conditional, which part of the canvas they
show, whose UNet is running. The host tells none of it to a patch directly; host_wrappers.py carries it down the stack.

The index in `cond_or_uncond` is a position in the guider's own list of conds: 0 is the positive for most guiders, the
negative for DualCFG, and whatever a post-CFG function (PAG, SAG) happens to evaluate. The guider's names are the truth,
and each cond carries a uuid that leads back to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..weights.sites import SiteKey, cross_attentions
from .area import Area, Size, placed, seen
from .plan import Plan
from .record import Observation, RelevanceRecord, SamplingRun
from .site import Rows

PREDICTION, FRAME, CALL, SAMPLING = (f"mip_adapter_{name}" for name in ("prediction", "frame", "call", "sampling"))

# By the whole maps, the canvas' size where only an area of it is shown, that area, and the site's resolution.
Maps = dict[tuple[Tensor, Size | None, Area, Size], Tensor]
# By the object text, the module that makes them and their dtype.
Keys = dict[tuple[Tensor, Any, torch.dtype], Tensor]


class Prediction(NamedTuple):
    """One noise prediction of a guider: its conds' names by the uuid of each list's first, and what was evaluated."""

    names: Mapping[Any, str]
    evaluated: set[tuple[Any, ...]]

    def begins(self, firsts: Sequence[Any], options: Mapping[str, Any]) -> bool:
        """Whether the guider itself evaluates these lists, each known by its first cond. What comes after that looks
        at them again, such as PAG with its attention perturbed, or is none of the guider's own."""
        if self.names and not set(firsts) <= self.names.keys():
            return False
        window = options.get("context_window")  # each is an evaluation of its own
        those = {(first, *getattr(window, "index_list", ())) for first in firsts}
        new = not those & self.evaluated
        self.evaluated.update(those)
        return new


class Frame(NamedTuple):
    """One evaluation of several conds: per index whether it is conditional, per uuid its area, the canvas' size, and
    whether it is the guider's own, the one to record."""

    conditional: tuple[bool, ...]
    areas: Mapping[Any, Area]
    canvas: Size
    main: bool


class Sampling:
    """One sampling run, from the first noise level to the last, of so many pictures; records: those that it has filled
    so far, to which it is known by `run`. Made once a run: maps, the plans' at the sites' resolutions; keys, of the
    object texts, unless hooks exchange weights on the way."""

    def __init__(self, pictures: int, prompt: str | None, hooked: bool) -> None:
        self.run, self.hooked = SamplingRun(object(), pictures, prompt), hooked
        self.records: list[RelevanceRecord] = []
        self.maps: Maps = {}
        self.keys: Keys = {}


class Call:
    """One UNet call; made once, shared by all sites and all of our patches in it."""

    def __init__(self, unet: Any, batch: int, options: Mapping[str, Any]) -> None:
        self.unet = unet
        self._options = options
        self._frame: Frame | None = options.get(FRAME)
        self._sampling: Sampling | None = options.get(SAMPLING)
        self._maps: Maps = {} if self._sampling is None else self._sampling.maps
        self._keys: Keys = {} if self._sampling is None or self._sampling.hooked else self._sampling.keys
        self.pictures = batch // len(options.get("cond_or_uncond") or [0])  # rows of one cond
        self._parts = self._treatments()
        self._observed: dict[RelevanceRecord, list[Observation]] = {}

    @classmethod
    def of(cls, options: Mapping[str, Any], batch: int, unet: Any) -> Call:
        """The call in progress; made on the spot where a host calls patches without our wrappers."""
        return options.get(CALL) or cls(unet, batch, options)

    @cached_property
    def sigma(self) -> float:
        """Noise level of this call. Costs a device sync, so it is read at most once a call and only when asked for."""
        sigmas = self._options.get("sigmas")
        return float(sigmas.flatten()[0]) if sigmas is not None else float("inf")

    @cached_property
    def attentions(self) -> dict[SiteKey, Any]:
        """The running UNet's cross-attention modules."""
        return cross_attentions(self.unet)

    def object_keys(self, key: SiteKey, text: Tensor, q: Tensor) -> Tensor:
        """The running UNet's own to_k of an object text [L, X] at a site, on q's device and in its dtype: [L, C]."""
        to_k = self.attentions[key].to_k
        known = text, to_k, q.dtype
        if known not in self._keys:
            # The module's forward, not its weight: LoRA, low-VRAM casting and fp8 happen there.
            self._keys[known] = to_k(text.to(q))
        return self._keys[known]

    @cached_property
    def step(self) -> tuple[Tensor, int] | None:
        """Index of the step, an integer tensor [1] on the device, and the number of steps; None without a schedule."""
        sigmas, schedule = self._options.get("sigmas"), self._options.get("sample_sigmas")
        if sigmas is None or schedule is None:
            return None
        steps = max(1, len(schedule) - 1)
        # How many noise levels of the schedule lie above this call's.
        return (schedule[:steps] > sigmas.flatten()[:1] * 1.0001).sum().clamp_max(steps - 1).reshape(1), steps

    @cached_property
    def sampling_run(self) -> SamplingRun:
        """Where nobody says when a run begins, its schedule tells it apart."""
        if self._sampling is not None:
            return self._sampling.run
        return SamplingRun(self._options.get("sample_sigmas"), self.pictures)

    @cached_property
    def shown(self) -> slice | list[int] | None:
        """Which pictures of the run the rows of one cond show: all, or a context window's; None where nobody says."""
        if self.pictures == self.sampling_run.pictures:
            return slice(None)
        numbers: list[int] = getattr(self._options.get("context_window"), "index_list", [])
        return numbers if len(numbers) == self.pictures else None

    def rows(self, plan: Plan | None = None, site_size: Size = (0, 0)) -> list[Rows]:
        """Rows of the batch by treatment, with the plan's maps at the site's resolution (h, w)."""

        def rows(start: int, stop: int, conditional: bool, area: Area) -> Rows:
            region = frozen = None
            if plan is not None and plan.regions is not None:
                region = self._at_site(plan.regions, area, site_size).unsqueeze(1)
            if plan is not None and plan.frozen is not None and conditional:
                frozen = self._by_row(self._at_site(plan.frozen, area, site_size), stop - start)
            return Rows(start, stop, conditional, region, area, frozen)

        return [rows(*each) for each in self._parts]

    def observe(
        self,
        record: RelevanceRecord,
        plan: Plan,
        objects: tuple[int, ...],
        size: Size,
        rows: Rows,
        shares: Tensor | None,
        gate: Tensor | None,
    ) -> None:
        """Keep what a site of resolution `size` measured until the call ends. objects: the record's that the plan's
        are."""
        if self.shown is None or (self._frame is not None and not self._frame.main):
            return
        if shares is None and plan.merge.strategy == "relevance":
            shares = plan.weights.new_ones(1, 1, 1)  # one object alone: folded into the values
        if shares is not None:
            shares = shares.expand(-1, rows.length, size[0] * size[1])
            shares = _for_all(shares, plan, objects, record).unflatten(-1, size)
        if gate is not None:
            gate = gate.unflatten(-1, size)
        canvas, corner = placed(rows.area, self._frame.canvas if self._frame else size, size)
        observation = Observation(shares, gate, canvas, corner, len(objects), self.shown)
        self._observed.setdefault(record, []).append(observation)

    def close(self) -> None:
        """The call is over: hand what was measured to the records."""
        if not self._observed or self.step is None:
            return
        for record, observations in self._observed.items():
            record.add(self.sampling_run, *self.step, observations)
            if self._sampling is not None and record not in self._sampling.records:
                self._sampling.records.append(record)

    def _treatments(self) -> list[tuple[int, int, bool, Area]]:
        """Consecutive rows of equal branch and area, merged: [(start, stop, conditional, area)]."""
        indices = self._options.get("cond_or_uncond") or [0]
        uuids = self._options.get("uuids") or [None] * len(indices)
        frame = self._frame
        parts: list[tuple[int, int, bool, Area]] = []
        for chunk, (index, uuid) in enumerate(zip(indices, uuids, strict=False)):
            conditional = frame.conditional[index] if frame and index < len(frame.conditional) else index == 0
            area = frame.areas.get(uuid) if frame else None
            start, stop = chunk * self.pictures, (chunk + 1) * self.pictures
            if parts and parts[-1][2:] == (conditional, area):
                start = parts.pop()[0]
            parts.append((start, stop, conditional, area))
        return parts

    def _at_site(self, maps: Tensor, area: Area, site_size: Size) -> Tensor:
        """Maps [..., H, W] of the whole canvas as a site sees them that shows an area of it: [..., N]."""
        canvas = None if area is None or self._frame is None else self._frame.canvas
        key = (maps, canvas, area, site_size)
        if key not in self._maps:
            self._maps[key] = seen(maps, area, canvas, site_size)
        return self._maps[key]

    def _by_row(self, maps: Tensor, rows: int) -> Tensor:
        """[..., pictures, N], recorded from so many pictures, for so many rows: [..., 1 or rows, N]."""
        pictures = maps.shape[-2]
        if pictures == 1:
            return maps
        if self.shown is None or pictures != self.sampling_run.pictures:
            raise ValueError(
                f"The frozen maps are of {pictures} pictures and this sampling makes {self.sampling_run.pictures}: use "
                "the same batch size for both passes, or a first pass of one picture."
            )
        return maps[..., self.shown, :].repeat(1, rows // self.pictures, 1)


def _for_all(shares: Tensor, plan: Plan, objects: tuple[int, ...], record: RelevanceRecord) -> Tensor:
    """Shares of the objects that act as shares of all: the others have none. They add up to 1."""
    shares = shares if plan.whole == 1 else shares / plan.whole
    if len(objects) == len(record.names):
        return shares
    rows: dict[int, Tensor] = dict(zip(objects, shares.unbind(0), strict=True))
    nothing = torch.zeros_like(shares[0])
    return torch.stack([rows.get(i, nothing) for i in range(len(record.names))])
