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

from ..attention.plan import Plan
from ..attention.regions import Area, Size, placed, seen
from ..attention.schedule import PercentRange
from ..attention.site import RowGroup, SiteConstants
from ..relevance.record import Observation, RelevanceRecord, RunId
from ..weights.sites import SiteKey, cross_attentions
from .batch_layout import BatchLayout, CondEvaluation

PREDICTION, FRAME, CALL, SAMPLING, RECORDS = (
    f"mip_adapter_{name}" for name in ("prediction", "frame", "call", "sampling", "records")
)

# By the plan, the canvas' size where only an area of it is shown, that area, the site's resolution and its device.
SiteConstantsCache = dict[tuple[Plan, Size | None, Area, Size, torch.device | None], SiteConstants]
# By the object text, the module that makes them and their dtype.
Keys = dict[tuple[Tensor, Any, torch.dtype], Tensor]
# By the `model_sampling` and a fraction of the sampling: the noise level that it begins at.
Levels = dict[tuple[Any, float], float]


class GuiderStep(NamedTuple):
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


class SamplingState:
    """One sampling run, from the first noise level to the last, of so many pictures; records: those that it has filled
    so far, to which it is known by `run`. Made once a run: givens, what plans come to at the sites' resolutions; keys,
    of the object texts, unless hooks exchange weights on the way; levels, of the windows' edges."""

    def __init__(self, pictures: int, prompt: str | None, hooked: bool, model_sampling: Any) -> None:
        self.run, self.hooked = RunId(object(), pictures, prompt), hooked
        self.model_sampling = model_sampling
        self.records: list[RelevanceRecord] = []
        self.givens: SiteConstantsCache = {}
        self.keys: Keys = {}
        self.levels: Levels = {}

    def __deepcopy__(self, memo: dict) -> SamplingState:
        return self  # see CondEvaluation


class UNetCall:
    """One UNet call; made once, shared by all sites and all of our patches in it.

    shape: its batch's, see `BatchLayout`.
    """

    def __init__(self, unet: Any, shape: Sequence[int], options: Mapping[str, Any]) -> None:
        self.unet = unet
        self._options = options
        self._frame: CondEvaluation | None = options.get(FRAME)
        self._sampling: SamplingState | None = options.get(SAMPLING)
        self._givens: SiteConstantsCache = {} if self._sampling is None else self._sampling.givens
        self._keys: Keys = {} if self._sampling is None or self._sampling.hooked else self._sampling.keys
        self._levels: Levels = {} if self._sampling is None else self._sampling.levels
        self._batch = BatchLayout(shape, options, self._frame)
        self._observed: dict[RelevanceRecord, list[Observation]] = {}
        self._numbers: Tensor | None = None

    @classmethod
    def from_options(cls, options: Mapping[str, Any], batch: int, unet: Any) -> UNetCall:
        """The call in progress; made on the spot where a host calls patches without our wrappers."""
        return options.get(CALL) or cls(unet, (batch,), options)

    @cached_property
    def sigma(self) -> float:
        """Noise level of this call. Costs a device sync, so it is read at most once a call and only when asked for."""
        sigmas = self._options.get("sigmas")
        return float(sigmas.flatten()[0]) if sigmas is not None else float("inf")

    def within(self, window: PercentRange) -> bool:
        """Whether the sampling is in a window; it is in all of them where nobody says which model is sampled."""
        known = self._frame or self._sampling
        if known is None:
            return True
        start, end = (self._level(known.model_sampling, fraction) for fraction in window)
        return end <= self.sigma <= start

    def _level(self, model_sampling: Any, fraction: float) -> float:
        if (model_sampling, fraction) not in self._levels:
            self._levels[model_sampling, fraction] = model_sampling.percent_to_sigma(fraction)
        return self._levels[model_sampling, fraction]

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
    def sampling_run(self) -> RunId:
        """Where nobody says when a run begins, its schedule tells it apart."""
        if self._sampling is not None:
            return self._sampling.run
        return RunId(self._options.get("sample_sigmas"), self._batch.pictures)

    @cached_property
    def shown(self) -> slice | list[int] | None:
        """Which pictures of the run the rows of one cond show: all, or a context window's; None where nobody says, or
        which part of them."""
        if self._batch.in_tiles:
            return None
        window = self._frame.window if self._frame else None
        if window is not None and len(window) == self._batch.pictures:
            return window
        return slice(None) if self._batch.pictures == self.sampling_run.pictures else None

    def numbers(self, device: torch.device) -> Tensor:
        """[pictures] The pictures that `shown` tells; where nobody says, as if they were all. Made once a call."""
        if self._numbers is None:
            shown = self.shown
            listed = isinstance(shown, list)
            self._numbers = (
                torch.tensor(shown, device=device) if listed else torch.arange(self._batch.pictures, device=device)
            )
        return self._numbers

    def rows(
        self, count: int, plan: Plan | None = None, size: Size = (0, 0), device: torch.device | None = None
    ) -> list[RowGroup]:
        """A site's `count` rows by treatment, with what the plan gives them at its resolution (h, w)."""
        parts = []
        for start, stop, conditional, area in self._batch.parts(count):
            given = SiteConstants() if plan is None else self._given(plan, area, size, device)
            if conditional and given.share is not None:
                given = given._replace(share=self._by_row(given.share, stop - start))
            parts.append(RowGroup(start, stop, conditional, given, area))
        return parts

    def observe(
        self,
        record: RelevanceRecord,
        plan: Plan,
        objects: tuple[int, ...],
        size: Size,
        rows: RowGroup,
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

    def _given(self, plan: Plan, area: Area, size: Size, device: torch.device | None) -> SiteConstants:
        """What the plan gives at a site that shows an area of the canvas. Its maps stay on the CPU: only what is seen
        of them at a few resolutions travels, once."""
        if self._batch.in_tiles and not (plan.regions is None and plan.frozen is None):
            what = "Regions" if plan.frozen is None else "Frozen maps"
            raise ValueError(
                f"{what} cannot be placed: this picture is sampled in tiles, and nobody says in which. Give the tiles "
                "the model from before MIP Apply, or disconnect “region” and “frozen”."
            )
        canvas = None if area is None or self._frame is None else self._frame.canvas
        known = plan, canvas, area, size, device

        def at_site(maps: Tensor | None) -> Tensor | None:
            return None if maps is None else seen(maps, area, canvas, size).to(device)

        if known not in self._givens:
            self._givens[known] = SiteConstants.from_plan(plan, at_site(plan.regions), at_site(plan.frozen))
        return self._givens[known]

    def _by_row(self, share: Tensor, rows: int) -> Tensor:
        """[..., pictures, N], recorded from so many pictures, for so many rows: [..., 1 or rows, N]."""
        pictures = share.shape[-2]
        if pictures == 1:
            return share
        if self.shown is None:
            raise ValueError(
                f"The frozen maps are of {pictures} pictures, and another pack samples {self._batch.pictures} of "
                f"{self.sampling_run.pictures} at a time without saying which: use ComfyUI's own context windows, or a "
                "first pass of one picture."
            )
        if pictures != self.sampling_run.pictures:
            raise ValueError(
                f"The frozen maps are of {pictures} pictures and this sampling makes {self.sampling_run.pictures}: use "
                "the same batch size for both passes, or a first pass of one picture."
            )
        return share[..., self.shown, :].repeat(1, rows // self._batch.pictures, 1)


def _for_all(shares: Tensor, plan: Plan, objects: tuple[int, ...], record: RelevanceRecord) -> Tensor:
    """Shares of the objects that act as shares of all: the others have none. They add up to 1."""
    shares = shares if plan.share_sum == 1 else shares / plan.share_sum
    if len(objects) == len(record.names):
        return shares
    rows: dict[int, Tensor] = dict(zip(objects, shares.unbind(0), strict=True))
    nothing = torch.zeros_like(shares[0])
    return torch.stack([rows.get(i, nothing) for i in range(len(record.names))])
