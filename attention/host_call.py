"""What a patch must know about the UNet call it is part of: which rows are conditional, which part of the canvas they
show, whose UNet is running. The host tells none of it to a patch directly; wrappers carry it down the call stack.

The index in `cond_or_uncond` is a position in the guider's own list of conds: 0 is the positive for most guiders, the
negative for DualCFG, and whatever a post-CFG function (PAG, SAG) happens to evaluate. The guider's names are the truth,
and each cond carries a uuid that leads back to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any, NamedTuple

import comfy.patcher_extension
import torch
import torch.nn.functional as F
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..weights.sites import cross_attentions
from . import host_preview
from .plan import Plan, SiteKey
from .record import Observation, RelevanceRecord
from .site import Run

NAMES, FRAME, CALL, SAMPLING = (f"mip_adapter_{name}" for name in ("names", "frame", "call", "sampling"))

Area = tuple[int, ...] | None  # (height, width, y, x) in latent pixels, or the whole canvas
# By the whole maps, the canvas' size where only an area of it is shown, that area, and the site's resolution.
Maps = dict[tuple[Tensor, tuple[int, int] | None, Area, tuple[int, int]], Tensor]


class Frame(NamedTuple):
    """One evaluation of several conds: per index whether it is conditional, per uuid its area, and the canvas' size."""

    conditional: tuple[bool, ...]
    areas: Mapping[Any, Area]
    canvas: tuple[int, int]


class Sampling:
    """One sampling run, from the first noise level to the last; records: those that it has filled so far. The run
    itself is known to them by its token. maps: the plans' maps at the sites' resolutions, made once a run."""

    def __init__(self) -> None:
        self.token = object()
        self.records: list[RelevanceRecord] = []
        self.maps: Maps = {}


class Call:
    """One UNet call; made once, shared by all sites and all of our patches in it."""

    def __init__(self, unet: Any, batch: int, options: Mapping[str, Any]) -> None:
        self.unet = unet
        self._options = options
        sampling: Sampling | None = options.get(SAMPLING)
        self._maps: Maps = {} if sampling is None else sampling.maps
        self.pictures = batch // len(options.get("cond_or_uncond") or [0])  # rows of one cond
        self._runs = _runs(batch, options)
        self._seen: dict[RelevanceRecord, list[Observation]] = {}

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

    @cached_property
    def step(self) -> tuple[Tensor, int] | None:
        """Index of the step, an integer tensor [1] on the device, and the number of steps; None without a schedule."""
        sigmas, schedule = self._options.get("sigmas"), self._options.get("sample_sigmas")
        if sigmas is None or schedule is None:
            return None
        steps = max(1, len(schedule) - 1)
        # How many noise levels of the schedule lie above this call's.
        return (schedule[:steps] > sigmas.flatten()[:1] * 1.0001).sum().clamp_max(steps - 1).reshape(1), steps

    def runs(self, plan: Plan | None = None, site_size: tuple[int, int] = (0, 0)) -> list[Run]:
        """Rows of the batch by treatment, with the plan's maps at the site's resolution (h, w)."""

        def run(start: int, stop: int, conditional: bool, area: Area) -> Run:
            region = frozen = None
            if plan is not None and plan.regions is not None:
                region = self._at_site(plan.regions, area, site_size).unsqueeze(1)
            if plan is not None and plan.frozen is not None and conditional:
                frozen = self._by_row(self._at_site(plan.frozen, area, site_size), stop - start)
            return Run(start, stop, conditional, region, area, frozen)

        return [run(*each) for each in self._runs]

    def observe(
        self,
        record: RelevanceRecord,
        plan: Plan,
        objects: tuple[int, ...],
        size: tuple[int, int],
        run: Run,
        shares: Tensor | None,
        gate: Tensor | None,
    ) -> None:
        """Keep what a site of resolution `size` measured until the call ends. objects: the record's that the plan's
        are."""
        if shares is None and gate is None:
            return
        frame: Frame | None = self._options.get(FRAME)
        canvas, corner = size, (0, 0)
        if run.area is not None and frame is not None:
            height, width, y, x = run.area
            scale = size[0] / height, size[1] / width
            canvas = round(frame.canvas[0] * scale[0]), round(frame.canvas[1] * scale[1])
            corner = min(round(y * scale[0]), canvas[0] - size[0]), min(round(x * scale[1]), canvas[1] - size[1])
        if shares is not None:
            shares = _for_all(shares.expand(-1, run.stop - run.start, -1), plan, objects, record).unflatten(-1, size)
        seen = Observation(
            shares,
            None if gate is None else gate.unflatten(-1, size),
            canvas,
            corner,
            len(objects),
        )
        self._seen.setdefault(record, []).append(seen)

    def close(self) -> None:
        """The call is over: hand what was measured to the records."""
        if not self._seen or self.step is None:
            return
        sampling: Sampling | None = self._options.get(SAMPLING)
        run = self._options["sample_sigmas"] if sampling is None else sampling.token
        for record, seen in self._seen.items():
            record.add(run, *self.step, seen)
            if sampling is not None and record not in sampling.records:
                sampling.records.append(record)

    def _at_site(self, maps: Tensor, area: Area, site_size: tuple[int, int]) -> Tensor:
        """Maps [..., H, W] of the whole canvas as a site sees them that shows an area of it: [..., N]."""
        frame: Frame | None = self._options.get(FRAME)
        canvas = None if area is None or frame is None else frame.canvas
        key = (maps, canvas, area, site_size)
        if key not in self._maps:
            shown = maps
            if area is not None and canvas is not None:
                height, width, y, x = area
                shown = _resize(maps, canvas)[..., y : y + height, x : x + width]
            self._maps[key] = _resize(shown, site_size).flatten(-2)
        return self._maps[key]

    def _by_row(self, maps: Tensor, rows: int) -> Tensor:
        """[..., pictures, N], recorded from so many pictures, for the rows of a run: [..., 1 or rows, N]."""
        pictures = maps.shape[-2]
        if pictures == 1:
            return maps
        if pictures != self.pictures:
            raise ValueError(
                f"The frozen maps are of {pictures} pictures and this sampling makes {self.pictures}: use the same "
                "batch size for both passes, or a first pass of one picture."
            )
        return maps.repeat(1, rows // pictures, 1)


def _for_all(shares: Tensor, plan: Plan, objects: tuple[int, ...], record: RelevanceRecord) -> Tensor:
    """Shares of the objects that act as shares of all: the others have none. They add up to 1."""
    shares = shares if plan.whole == 1 else shares / plan.whole
    if len(objects) == len(record.names):
        return shares
    rows: dict[int, Tensor] = dict(zip(objects, shares.unbind(0), strict=True))
    nothing = torch.zeros_like(shares[0])
    return torch.stack([rows.get(i, nothing) for i in range(len(record.names))])


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """[..., H, W] -> [..., h, w]"""
    if maps.shape[-2:] == size:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    resized = F.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=True)
    return resized.reshape(*maps.shape[:-2], *size)


def _runs(batch: int, options: Mapping[str, Any]) -> list[tuple[int, int, bool, Area]]:
    """Consecutive rows of equal branch and area, merged: [(start, stop, conditional, area)]."""
    indices = options.get("cond_or_uncond") or [0]
    uuids = options.get("uuids") or [None] * len(indices)
    frame: Frame | None = options.get(FRAME)
    rows = batch // len(indices)
    runs: list[tuple[int, int, bool, Area]] = []
    for chunk, (index, uuid) in enumerate(zip(indices, uuids, strict=False)):
        conditional = frame.conditional[index] if frame and index < len(frame.conditional) else index == 0
        area = frame.areas.get(uuid) if frame else None
        start, stop = chunk * rows, (chunk + 1) * rows
        if runs and runs[-1][2:] == (conditional, area):
            runs[-1] = (runs[-1][0], stop, conditional, area)
        else:
            runs.append((start, stop, conditional, area))
    return runs


def _with(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {**options, "transformer_options": {**options.get("transformer_options", {}), **more}}


# Parameters are called as the host calls them: other packs' wrappers may pass them on by name.


def _begin(
    executor: Any,
    noise: Tensor,
    latent_image: Tensor,
    sampler: Any,
    sigmas: Tensor,
    denoise_mask: Tensor | None = None,
    callback: Callable | None = None,
    *rest: Any,
    **more: Any,
):
    """OUTER_SAMPLE: a sampling run begins. The guider's options are its own for as long as it lasts."""
    guider, sampling = executor.class_obj, Sampling()
    guider.model_options.setdefault("transformer_options", {})[SAMPLING] = sampling
    if callback is not None and host_preview.wanted():
        latent_format = guider.model_patcher.model.latent_format
        callback = host_preview.with_relevance(callback, sampling.records, latent_format)
    return executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *rest, **more)


def _name_conds(executor: Any, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None):
    """PREDICT_NOISE: note which cond goes by which name in the guider. Lists are told apart by their first cond, since
    the host appends copies of other lists' conds to even out areas."""
    conds = getattr(executor.class_obj, "conds", {})
    names = {group[0].get("uuid"): name for name, group in conds.items() if group}
    return executor(x, timestep, _with(model_options, **{NAMES: names}), seed)


def _frame_conds(executor: Any, model: Any, conds: list, x_in: Tensor, timestep: Tensor, model_options: dict):
    """CALC_COND_BATCH: which indices of this evaluation are conditional, and which areas they cover."""
    names = model_options.get("transformer_options", {}).get(NAMES, {})

    def conditional(index: int, group: list | None) -> bool:
        name = names.get(group[0].get("uuid")) if group else None
        return index == 0 if name is None else "negative" not in name

    areas = {cond.get("uuid"): _area(cond.get("area")) for group in conds if group for cond in group}
    frame = Frame(
        tuple(conditional(i, group) for i, group in enumerate(conds)), areas, (x_in.shape[-2], x_in.shape[-1])
    )
    return executor(model, conds, x_in, timestep, _with(model_options, **{FRAME: frame}))


def _area(area: Any) -> Area:
    return tuple(area) if area is not None and len(area) == 4 and not isinstance(area[0], str) else None


def _describe_call(
    executor: Any,
    x: Tensor,
    timesteps: Any,
    context: Any,
    y: Any,
    control: Any,
    transformer_options: dict,
    **more: Any,
):
    """DIFFUSION_MODEL: one Call for all sites of this UNet call."""
    call = Call(executor.class_obj, x.shape[0], transformer_options)
    out = executor(x, timesteps, context, y, control, {**transformer_options, CALL: call}, **more)
    call.close()
    return out


WRAPPERS = (
    (WrappersMP.OUTER_SAMPLE, _begin),
    (WrappersMP.PREDICT_NOISE, _name_conds),
    (WrappersMP.CALC_COND_BATCH, _frame_conds),
    (WrappersMP.DIFFUSION_MODEL, _describe_call),
)


def install_wrappers(model_options: dict) -> None:
    """Once per model, however many times the adapter is applied. They lie beside the patches in transformer_options, so
    that they go wherever the patches go."""
    for kind, wrapper in WRAPPERS:
        if not comfy.patcher_extension.get_wrappers_with_key(kind, CALL, model_options, is_model_options=True):
            comfy.patcher_extension.add_wrapper_with_key(kind, CALL, wrapper, model_options, is_model_options=True)
