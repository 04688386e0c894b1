"""What a patch must know about the UNet call it is part of: which rows are conditional, which area of the canvas they
show, which UNet is running. The host tells a patch none of this; sampling_wrappers.py passes it down the call stack.

An index in `cond_or_uncond` is a position in the caller's list of conds. Position 0 is the positive for most guiders,
the negative for DualCFG, and whatever a post-CFG function (PAG, SAG) evaluates. Only the guider's names are reliable.
Each cond carries a uuid that leads back to its name.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..attention.plan import Plan
from ..attention.pool import PooledSite, PoolHistory
from ..attention.regions import Area, Size, placed, seen
from ..attention.schedule import PercentRange, Schedule
from ..attention.site import RowGroup, SiteConstants
from ..relevance.observation import Observation, RunId
from ..relevance.record import RelevanceRecord
from ..weights.sites import SiteKey, cross_attentions
from .batch_layout import BatchLayout, CondEvaluation, CondRows

# Keys of the host's transformer_options, where a running call finds what our wrappers and nodes know.
SAMPLING = "mip_adapter_sampling"  # SamplingState
GUIDER_STEP = "mip_adapter_guider_step"  # GuiderStep
EVALUATION = "mip_adapter_evaluation"  # CondEvaluation
PASSES = "mip_adapter_passes"  # the UNetCalls of one evaluation, of which the last is recorded
CALL = "mip_adapter_call"  # UNetCall
RECORDS = "mip_adapter_records"  # by record: Applied

# By plan, canvas size (where only an area is shown), area, the site's resolution and device.
SiteConstantsCache = dict[tuple[Plan, Size | None, Area, Size, torch.device | None], SiteConstants]
# By object texts, to_k module and dtype.
Keys = dict[tuple[Tensor, Any, torch.dtype], Tensor]
# By `model_sampling` and fraction of the sampling: the noise level (sigma) at that fraction.
Sigmas = dict[tuple[Any, float], float]
# Fractions of the sampling, evenly spaced, at which the noise level is looked up. At 0 and 1 hosts give sentinels.
FRACTIONS = torch.linspace(1e-4, 1 - 1e-4, 129, dtype=torch.float64)
# By schedule, cond and device.
Pools = dict[tuple[Schedule, Hashable, torch.device | None], PoolHistory]


class PooledAt(NamedTuple):
    """A site of a schedule whose relevance is pooled. objects: those that act, as indices of all."""

    schedule: Schedule
    key: SiteKey
    objects: tuple[int, ...]


class Applied(NamedTuple):
    """What was applied to a model with a record: at how many sites, and whether regions or frozen maps are placed."""

    sites: int
    placed: bool


class GuiderStep(NamedTuple):
    """One noise prediction of a guider.

    conditional: whether a list of conds is conditional, by the uuid of its first cond.
    size: (h, w) of the latent that the sampler gave to the guider; None if unknown.
    evaluated: the lists evaluated so far, as (uuid of the first cond, context window, crop).
    """

    conditional: Mapping[Any, bool]
    size: Size | None
    evaluated: set[tuple[Any, tuple[int, ...], Area]]

    def claim_evaluation(self, firsts: Sequence[Any], window: Sequence[int] | None, crop: Area) -> bool:
        """Mark these lists of conds as evaluated; whether it is the guider itself that evaluates them now.

        firsts: the uuids of the lists' first conds. Later evaluations of the same lists, such as PAG's with perturbed
        attention, and lists that are not the guider's give False.
        window, crop: see `CondEvaluation`. Each window and each crop is an evaluation of its own; a crop of what was
        evaluated as a whole is a later one.
        """
        if self.conditional and not set(firsts) <= self.conditional.keys():
            return False
        pictures = tuple(window or ())
        lists = {(first, pictures, crop) for first in firsts}
        new = not (lists | {(first, pictures, None) for first in firsts}) & self.evaluated
        self.evaluated.update(lists)
        return new


class SamplingState:
    """One sampling run, from the first noise level to the last.

    pictures: in the batch.
    prompt: id of the queued graph; None where the host does not say.
    hooked: whether hooks exchange weights during the run. Object keys are then not kept.
    model_sampling: the sampled model's.
    canvas: size (h, w) of the latents; None if they are no pictures.

    run: identifies the run to the records.
    records: those that the run has filled so far.
    evaluated: whether the model has been evaluated.
    visited: the sites at which a record's patches were run.
    constants, keys, sigmas, levels: caches for the length of the run. They hold the plans at the sites' resolutions,
        the keys of the object texts, the noise levels at the edges of percent ranges, and the logarithms of those at
        `FRACTIONS`, on the device.
    pools: what the sites of the last turns measured together.
    turn: number of the guider's noise prediction.
    """

    def __init__(
        self, pictures: int, prompt: str | None, hooked: bool, model_sampling: Any, canvas: Size | None = None
    ) -> None:
        self.run, self.hooked = RunId(object(), pictures, prompt), hooked
        self.model_sampling, self.canvas = model_sampling, canvas
        self.evaluated = False
        self.visited: dict[RelevanceRecord, set[SiteKey]] = {}
        self.records: list[RelevanceRecord] = []
        self.constants: SiteConstantsCache = {}
        self.keys: Keys = {}
        self.sigmas: Sigmas = {}
        self.pools: Pools = {}
        self.turn = 0
        self.levels: dict[tuple[Any, torch.device], Tensor] = {}

    def __deepcopy__(self, memo: dict) -> SamplingState:
        return self  # see CondEvaluation


class UNetCall:
    """One UNet call. It is made once and shared by all sites and all our patches.

    unet: the running UNet.
    shape: the shape of its input, see `BatchLayout`.
    options: the host's transformer_options.
    """

    def __init__(self, unet: Any, shape: Sequence[int], options: Mapping[str, Any]) -> None:
        self.unet = unet
        self._options = options
        self._evaluation: CondEvaluation | None = options.get(EVALUATION)
        self._sampling: SamplingState | None = options.get(SAMPLING)
        self._constants: SiteConstantsCache = {} if self._sampling is None else self._sampling.constants
        self._keys: Keys = {} if self._sampling is None or self._sampling.hooked else self._sampling.keys
        self._sigmas: Sigmas = {} if self._sampling is None else self._sampling.sigmas
        self._window = window_of_another_pack(options) or (self._evaluation.window if self._evaluation else None)
        self._batch = BatchLayout(shape, options, self._evaluation, self._window)
        self._rows = shape[0]
        self._of_all_sites: list[CondRows] | None = None  # where the UNet gets some of the rows
        self._here: list[CondRows] | None = None  # where the site at work gets some of the rows
        self._pools: Pools = {}  # where nobody knows what the rows show, or they show another picture
        self._passes_before = len(options.get(PASSES) or ())
        self._visits: dict[tuple[Schedule, SiteKey], int] = {}
        self._observed: dict[RelevanceRecord, dict[tuple[SiteKey, int], Observation]] = {}
        self._numbers: Tensor | None = None
        self._ease_factors: dict[Plan, tuple[Tensor, Tensor]] = {}

    def __deepcopy__(self, memo: dict) -> UNetCall:
        return self  # see CondEvaluation

    @classmethod
    def from_options(cls, options: Mapping[str, Any], batch: int, unet: Any) -> UNetCall:
        """The call in progress. A new one is made where the host runs patches without our wrappers."""
        return options.get(CALL) or cls(unet, (batch,), options)

    @cached_property
    def sigma(self) -> float:
        """Noise level of this call; infinite if unknown. Reading it costs a device sync, so it is read at most once."""
        sigmas = self._options.get("sigmas")
        return float(sigmas.flatten()[0]) if sigmas is not None else float("inf")

    def within(self, period: PercentRange) -> bool:
        """Whether the sampling is inside a range now. True where the sampled model is unknown."""
        known = self._evaluation or self._sampling
        if known is None:
            return True
        start, end = (self._sigma_at(known.model_sampling, fraction) for fraction in period)
        return end <= self.sigma <= start

    def _sigma_at(self, model_sampling: Any, fraction: float) -> float:
        if (model_sampling, fraction) not in self._sigmas:
            self._sigmas[model_sampling, fraction] = model_sampling.percent_to_sigma(fraction)
        return self._sigmas[model_sampling, fraction]

    def ease_factors(self, plan: Plan, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """`Plan.ease_factors` now; None where the sampled model is unknown. Made once for all sites."""
        known = self._evaluation or self._sampling
        sigmas = self._options.get("sigmas")
        if known is None or sigmas is None:
            return None
        if plan not in self._ease_factors:
            levels = self._levels_of(known.model_sampling, device)
            now = sigmas.flatten()[:1].to(levels).log()
            self._ease_factors[plan] = plan.ease_factors(_fraction(now, levels).float())
        return self._ease_factors[plan]

    def _levels_of(self, model_sampling: Any, device: torch.device) -> Tensor:
        """log sigma at `FRACTIONS`, on the device; looked up once a sampling."""
        levels = {} if self._sampling is None else self._sampling.levels
        if (model_sampling, device) not in levels:
            sigmas = [float(model_sampling.percent_to_sigma(fraction)) for fraction in FRACTIONS.tolist()]
            levels[model_sampling, device] = torch.tensor(sigmas).log().to(device)
        return levels[model_sampling, device]

    @cached_property
    def attentions(self) -> dict[SiteKey, Any]:
        """The running UNet's cross-attention modules."""
        return cross_attentions(self.unet)

    def object_keys(self, key: SiteKey, text: Tensor, q: Tensor) -> Tensor:
        """Keys [L, C] of object texts [L, X] by the running UNet's to_k at a site, with q's device and dtype."""
        to_k = self.attentions[key].to_k
        known = text, to_k, q.dtype
        if known not in self._keys:
            # The module's forward, not its weight: LoRA, low-VRAM casting and fp8 are applied there.
            self._keys[known] = to_k(text.to(q))
        return self._keys[known]

    @cached_property
    def step(self) -> tuple[Tensor, int] | None:
        """Index of the step (an integer tensor [1] on the device) and number of steps; None without a schedule."""
        sigmas, schedule = self._options.get("sigmas"), self._options.get("sample_sigmas")
        if sigmas is None or schedule is None:
            return None
        steps = max(1, len(schedule) - 1)
        # The index is the number of noise levels in the schedule that lie above this call's.
        return (schedule[:steps] > sigmas.flatten()[:1] * 1.0001).sum().clamp_max(steps - 1).reshape(1), steps

    @cached_property
    def sampling_run(self) -> RunId:
        """The run that the call belongs to. Without our wrappers its schedule identifies it."""
        if self._sampling is not None:
            return self._sampling.run
        return RunId(self._options.get("sample_sigmas"), self._batch.pictures)

    @cached_property
    def shown(self) -> slice | list[int] | None:
        """Which pictures of the run the rows of one cond show: all, or those of a context window.

        None if the pictures are unknown, or if the rows show unknown parts of them.
        """
        if self._batch.in_tiles:
            return None
        if self._window is not None and len(self._window) == self._batch.pictures:
            return self._window
        return slice(None) if self._batch.pictures == self.sampling_run.pictures else None

    def numbers(self, device: torch.device) -> Tensor:
        """The picture numbers in `shown`, [pictures]; 0, 1, … where they are unknown. Made once per call."""
        if self._here is not None:
            return torch.arange(self.sampling_run.pictures, device=device)
        if self._numbers is None:
            shown = self.shown
            listed = isinstance(shown, list)
            self._numbers = (
                torch.tensor(shown, device=device) if listed else torch.arange(self._batch.pictures, device=device)
            )
        return self._numbers

    def rows(
        self,
        count: int,
        plan: Plan | None = None,
        size: Size = (0, 0),
        device: torch.device | None = None,
        pooled: PooledAt | None = None,
    ) -> list[RowGroup]:
        """A site's `count` rows by treatment, with the plan's constants at the site's resolution.

        size: (h, w) of the site. Without a plan the constants are empty.
        pooled: for a plan whose relevance is pooled, so that every cond needs rows of its own.
        """
        groups, number = [], self._passes_before
        if pooled is not None:
            visits = self._visits.get((pooled.schedule, pooled.key), 0)
            self._visits[pooled.schedule, pooled.key] = visits + 1
            number += visits
        for start, stop, conditional, area, cond in self._here or self._batch.groups(count, apart=pooled is not None):
            constants = SiteConstants() if plan is None else self._site_constants(plan, area, size, device)
            if not conditional:  # they read null_share alone, and share may be of pictures that they do not show
                constants = constants._replace(share=None)
            constants = SiteConstants(*(self._by_row(maps, stop - start) for maps in constants))
            pool = None
            if conditional and pooled is not None and device is not None:
                place = start if self._batch.in_tiles else 0
                pool = self._pooled_site(pooled, (cond, place), size, device, stop - start, number)
            groups.append(RowGroup(start, stop, conditional, constants, area, pool))
        return groups

    def _pooled_site(
        self, at: PooledAt, cond: Hashable, size: Size, device: torch.device, rows: int, number: int
    ) -> PooledSite:
        """What a site reads of the pool of one cond's rows, and where it adds what it measures.

        The sites of evaluations that are not the guider's own, such as PAG's, read and do not measure. Where nobody
        knows which pictures or which parts of them the rows show, and in a pass of the UNet before the last, the pool
        lasts for this call; where the conds come in parts, each site reads its own measure.

        number: of the pass, from 0.
        """
        schedule, key, objects = at
        shown, sampling, evaluation = self.shown, self._sampling, self._evaluation
        if self._here is not None:
            history = PoolHistory()
            history.begin(0, objects, rows)
            own = torch.arange(rows, device=device)
            return PooledSite(None, history.now, key, size, objects, range(rows), own)
        crop = None if evaluation is None else evaluation.crop
        numbers, by = self.numbers(device), (schedule, (cond, crop), device)
        if shown is not None and sampling is not None and evaluation is not None:
            pictures = range(sampling.run.pictures)[shown] if isinstance(shown, slice) else shown
            history = sampling.pools.setdefault(by, PoolHistory())
            if evaluation.main:
                history.begin(sampling.turn, objects, sampling.run.pictures)
                if history.is_last(number):
                    last = history.last
                    read = last if last is not None and last.covers(objects, pictures) else None
                    write = history.now if read is None or history.measures(key) else None
                    return PooledSite(read, write, key, size, objects, pictures, numbers)
            else:
                for read in (history.finished(sampling.turn), history.now):
                    if read is not None and read.covers(objects, pictures):
                        return PooledSite(read, None, key, size, objects, pictures, numbers)
        pictures = range(self._batch.pictures)
        history = self._pools.setdefault((schedule, (cond, crop, number), device), PoolHistory())
        history.begin(0, objects, len(pictures))
        return PooledSite(None, history.now, key, size, objects, pictures, numbers)

    def visit(self, key: SiteKey, record: RelevanceRecord | None) -> None:
        """Note that a record's patch is run at a site."""
        if self._sampling is not None and record is not None:
            self._sampling.visited.setdefault(record, set()).add(key)

    def find_rows(self, key: SiteKey, keys: Tensor) -> None:
        """Begin a site. Where it gets fewer rows than there are conds and pictures, find out whose they are.

        keys: [rows, L, C], of the text.
        Raises ValueError if nobody says whose rows they are.
        """
        self._here = None
        count = len(keys)
        if not self._batch.too_few(count):
            return
        if count == self._rows and self._of_all_sites is not None:
            self._here = self._of_all_sites
            return
        self._here = self._batch.groups_by_keys(keys, self.attentions[key].to_k)
        if self._here is None:
            raise ValueError(
                f"Another pack sends {count} rows of a batch through the model without saying whether they belong to "
                "the prompt or to the negative prompt, so the references cannot act: let that pack evaluate the whole "
                "batch at once, or give its sampler the model from before MIP Apply."
            )
        if count == self._rows:
            self._of_all_sites = self._here

    def observe(
        self,
        key: SiteKey,
        record: RelevanceRecord,
        plan: Plan,
        objects: tuple[int, ...],
        size: Size,
        rows: RowGroup,
        shares: Tensor | None,
        gate: Tensor | None,
    ) -> None:
        """Keep what a site measured until the call ends.

        key: the site's. If another pack runs the sites several times in a call, the last pass counts.
        objects: the plan's objects, as indices into the record's.
        size: (h, w), the site's resolution.
        rows, shares [M, b, N] or None, gate [b, N] or None: see `observe` of `fuse`.
        """
        shown = self._shown_by(rows.length)
        if shown is None or (self._evaluation is not None and not self._evaluation.main):
            return
        if shares is None and plan.merge.strategy == "relevance":
            shares = plan.weights.new_ones(1, 1, 1)  # a lone object: its share 1 is folded into the values
        if shares is not None:
            shares = shares.expand(-1, rows.length, size[0] * size[1])
            shares = _for_all(shares, plan, objects, record).unflatten(-1, size)
        if gate is not None:
            gate = gate.unflatten(-1, size)
        canvas, corner = placed(rows.area, self._evaluation.canvas if self._evaluation else size, size)
        observation = Observation(shares, gate, canvas, corner, len(objects), shown)
        self._observed.setdefault(record, {})[key, rows.start] = observation

    def _shown_by(self, rows: int) -> slice | list[int] | None:
        """`shown` for a group of rows at the site at work."""
        if self._here is None:
            return self.shown
        return None if self._batch.in_tiles or rows % self.sampling_run.pictures else slice(None)

    def close(self) -> None:
        """End the call: pass what was measured to the records."""
        if not self._observed or self.step is None:
            return
        for record, observations in self._observed.items():
            record.add(self.sampling_run, *self.step, [*observations.values()])
            if self._sampling is not None and record not in self._sampling.records:
                self._sampling.records.append(record)

    def _site_constants(self, plan: Plan, area: Area, size: Size, device: torch.device | None) -> SiteConstants:
        """The plan's constants at a site that shows an area of the canvas.

        The plan's maps stay on the CPU. What a site sees of them is moved to the device once per resolution.
        Raises ValueError if there are maps and the pictures are sampled in unknown tiles, or if the maps are of another
        number of pictures.
        """
        if self._batch.in_tiles and not (plan.regions is None and plan.frozen is None):
            what = "Regions" if plan.frozen is None else "Frozen maps"
            raise ValueError(
                f"{what} cannot be placed: this picture is sampled in tiles, and nobody says in which. Give the tiles "
                "the model from before MIP Apply, or disconnect “region” and “frozen”."
            )
        canvas = None if area is None or self._evaluation is None else self._evaluation.canvas
        known = plan, canvas, area, size, device

        def at_site(maps: Tensor | None) -> Tensor | None:
            return None if maps is None else seen(maps, area, canvas, size).to(device)

        if known not in self._constants:
            self._check_pictures(plan)
            self._constants[known] = SiteConstants.from_plan(plan, at_site(plan.regions), at_site(plan.frozen))
        return self._constants[known]

    def _check_pictures(self, plan: Plan) -> None:
        """Raises ValueError if the plan's maps are of another number of pictures than the run."""
        pictures = self.sampling_run.pictures
        if plan.frozen is not None and plan.frozen.shape[1] not in (1, pictures):
            raise ValueError(
                f"The frozen maps are of {plan.frozen.shape[1]} pictures and this sampling makes {pictures}: use the "
                "same batch size for both passes, or a first pass of one picture."
            )
        if plan.regions is not None and plan.regions.shape[1] not in (1, pictures):
            raise ValueError(
                f"There are region masks for {plan.regions.shape[1]} pictures and this sampling makes {pictures}: one "
                "mask is for all pictures, several are one for each. Give as many masks as pictures, or unite them "
                "before MIP Reference (MaskComposite, “add”)."
            )

    def _by_row(self, maps: Tensor | None, rows: int) -> Tensor | None:
        """Maps [..., pictures, N] spread over the rows that show the pictures: [..., 1 or rows, N].

        Raises ValueError if the maps are of several pictures, and the pictures that the rows show are unknown.
        """
        if maps is None or maps.shape[-2] == 1:
            return maps
        shown = self._shown_by(rows)
        if shown is None:
            raise ValueError(
                f"The frozen maps or region masks are of {maps.shape[-2]} pictures, and another pack samples some of "
                "them at a time without saying which: use ComfyUI's own context windows, or maps and masks of one "
                "picture."
            )
        spread = maps[..., shown, :]
        return spread.repeat(1, rows // spread.shape[-2], 1)


def _fraction(now: Tensor, levels: Tensor) -> Tensor:
    """The fraction of the sampling at log sigma `now` [1], by linear interpolation between `levels`. Never waits for
    the device."""
    last = len(levels) - 1
    right = torch.searchsorted(-levels, -now).clamp(1, last)  # levels fall
    before, after = levels[right - 1], levels[right]
    part = ((before - now) / (before - after).clamp_min(torch.finfo(levels.dtype).tiny)).clamp(0, 1)
    return (right - 1 + part) / last


def _for_all(shares: Tensor, plan: Plan, objects: tuple[int, ...], record: RelevanceRecord) -> Tensor:
    """Shares of all the record's objects from those of the objects that act. The others get 0; the sum is 1."""
    shares = shares if plan.share_sum == 1 else shares / plan.share_sum
    if len(objects) == len(record.names):
        return shares
    rows: dict[int, Tensor] = dict(zip(objects, shares.unbind(0), strict=True))
    nothing = torch.zeros_like(shares[0])
    return torch.stack([rows.get(i, nothing) for i in range(len(record.names))])


def window_of_another_pack(options: Mapping[str, Any]) -> list[int] | None:
    """The numbers of the pictures in a context window of AnimateDiff-Evolved, None without one."""
    said = options.get("ad_params")
    numbers = said.get("sub_idxs") if isinstance(said, Mapping) else None
    return [int(number) for number in numbers] if numbers else None
