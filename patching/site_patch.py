"""Patches: thin shells around a schedule of plans, at the cross-attention sites of a cloned ModelPatcher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from copy import copy
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import CallbacksMP
from torch import Tensor

from ..attention.plan import SitePlan
from ..attention.regions import Size
from ..attention.schedule import Acting, PercentRange, Schedule
from ..attention.site import RowGroup, fuse
from ..relevance.record import RelevanceRecord
from ..weights.sites import SiteKey
from .sampling_state import Applied
from .sampling_wrappers import install_wrappers
from .site_pools import PooledSite
from .unet_call import SiteRows, UNetCall

CALLBACK_KEY = "mip_adapter"  # our callback's name in a ModelPatcher

# Of (out [B, N, C], Z_text, q, options, rows): `out` with a patch's term, perhaps in the memory of `out`. Z_text may be
# `out` itself.
Term = Callable[[Tensor, Tensor | None, Tensor, dict, SiteRows], Tensor]


class Slot(NamedTuple):
    """Where a patch stands and when it acts.

    site_key: the site's, as the host knows it.
    unet: used where the host does not say which UNet is running.
    period: when the patch acts; None: at all steps.
    occupant: the patch that was in the slot before, or None.
    """

    site_key: SiteKey
    unet: Any
    period: PercentRange | None
    occupant: Callable | None


class SitePatch(ABC):
    """Replacement for one cross-attention, chained to the slot's previous occupant.

    All patches in one slot add their terms to the attention. They see the same q and the same clean Z_text, so their
    order makes no difference. Every clone of a model has its own copies of the patches (`renew_shells`), which share
    the plan.

    A patch may have guests: IPAdapter_plus, applied after this pack, passes its callback to the slot's occupant with
    `add`. Only the clone that it works on gets the guest; its parent samples as before.
    """

    needs_z_text: bool  # whether the term reads Z_text

    def __init__(self, slot: Slot, applied: Applied) -> None:
        self.site_key, self.unet, self.period, self.occupant = slot
        self.applied = applied
        self.guests: tuple[tuple[Callable, dict], ...] = ()

    @abstractmethod
    def term(self, call: UNetCall) -> Term | None:
        """What adds this patch's term in a call within its period; None where the patch rests."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        out = self._attend(q, k, v, extra_options, keep_z_text=False)[0]
        return out if out.dtype == q.dtype else out.to(q.dtype)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, options: dict, keep_z_text: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The attention with the terms of this patch and its guests, and Z_text.

        keep_z_text: whether a patch above this one in the slot reads Z_text, which must then stay as it is. Otherwise
            the attention may be written into its memory.
        """
        call = UNetCall.from_options(options, q.shape[0], self.unet)
        term = self.term(call) if self.period is None or call.clock.within(self.period) else None
        call.note_visit(self.site_key, self.applied)
        rows = call.find_rows(self.site_key, k, options) if term is not None else None
        out, z_text = self._before(q, k, v, options, keep_z_text or (term is not None and self.needs_z_text))
        if term is not None and rows is not None:
            if z_text is not None and out is z_text and (keep_z_text or z_text.requires_grad):
                out = z_text.clone()  # the term is written into `out`
            out = term(out.contiguous(), z_text, q, options, rows)
        for callback, kwargs in self.guests:
            if kwargs.get("sigma_end", 0.0) <= call.clock.sigma <= kwargs.get("sigma_start", float("inf")):
                out = out + callback(out, q, k, v, options, **kwargs)
        return out, z_text

    def _before(
        self, q: Tensor, k: Tensor, v: Tensor, options: dict, needs_z_text: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The slot's output without this patch, and Z_text, or None where nobody needs it and it was not computed.

        The output may be written into. It may be Z_text itself.
        """
        if isinstance(self.occupant, SitePatch):
            return self.occupant._attend(q, k, v, options, keep_z_text=needs_z_text)
        if self.occupant is None:
            z_text = text_attention(q, k, v, options)
            return z_text, z_text
        z_text = text_attention(q, k, v, options) if needs_z_text else None
        return self.occupant(q, k, v, options).clone(), z_text

    def add(self, callback: Callable, **kwargs: Any) -> None:
        """Protocol of IPAdapter_plus: out += callback(out, q, k, v, extra_options, **kwargs) within its sigma range."""
        self.guests += ((callback, kwargs),)

    def to(self, device_or_dtype: Any) -> SitePatch:
        """The host moves patches with their model. The plan stays and is cast at use; the occupant is moved."""
        move = getattr(self.occupant, "to", None)
        if move is not None:
            self.occupant = move(device_or_dtype)
        return self

    def models(self) -> list:
        """Models that the host must load with this patch: only the occupant's, if any."""
        models = getattr(self.occupant, "models", None)
        return models() if models is not None else []

    def __deepcopy__(self, memo: dict) -> SitePatch:
        return copy(self)  # a new shell with the same plan and occupant; the tuple of guests is immutable


def renew_shells(_: Any, clone: Any) -> None:
    """ON_CLONE: give the clone its own copies of the patches. Slots that share a patch share its copy.

    Hosts since 2026 copy only the dictionaries around the patches. Older hosts also copy the patches (`__deepcopy__`).
    """
    slots, shells = _slots(clone), {}
    for key, patch in slots.items():
        if isinstance(patch, SitePatch):
            slots[key] = shells.setdefault(id(patch), copy(patch))


def _slots(model: Any) -> dict[tuple, Any]:
    """The patches at the cross-attentions of a model (ModelPatcher), by site key."""
    return model.model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})


def text_attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """Z_text, computed with the host's attention function: sage, flash and overrides keep working."""
    precision = options.get("attn_precision")
    return optimized_attention(q, k, v, options["n_heads"], attn_precision=precision, transformer_options=options)


class ActingSite(NamedTuple):
    """One site in one call, with the objects that act now.

    site_plan: as strong as it is now, on the queries' device.
    groups: its rows by treatment.
    observe: see `fuse`; None without a record.
    """

    site_plan: SitePlan
    groups: list[RowGroup]
    observe: Callable[[RowGroup, Tensor | None, Tensor | None], None] | None


def acting_site(
    call: UNetCall,
    site_key: SiteKey,
    schedule: Schedule,
    acting: Acting,
    q: Tensor,
    rows: SiteRows,
    size: Size,
    record: RelevanceRecord | None,
) -> ActingSite:
    """size: (h, w) of the site. q: for their device and dtype."""
    objects, plan = acting
    site_plan = plan.site_plans[site_key].cast_like(q)
    if plan.eases and (factors := call.clock.ease_factors(plan, q.device)) is not None:
        site_plan = site_plan.eased(*factors)
    pooled = PooledSite(schedule, site_key, objects) if plan.is_pooled else None
    observe = None if record is None else partial(call.observe, rows, site_key, record, plan, objects, size)
    return ActingSite(site_plan, call.enter_site(rows, plan, size, q.device, pooled), observe)


class MergePatch(SitePatch):
    """Adds the image features of the objects that act now: the method."""

    def __init__(self, slot: Slot, applied: Applied, schedule: Schedule) -> None:
        super().__init__(slot, applied)
        self.schedule, self.record = schedule, applied.record
        site_plans = [plan.site_plans.get(self.site_key) for plan in schedule.plans.values()]
        self.needs_z_text = any(each is not None and each.head is not None for each in site_plans)

    def term(self, call: UNetCall) -> Term | None:
        acting = self.schedule.at(call.clock.within, self.site_key)
        return None if acting is None else partial(self._add, call, acting)

    def _add(
        self,
        call: UNetCall,
        acting: Acting,
        out: Tensor,
        z_text: Tensor | None,
        q: Tensor,
        options: dict,
        rows: SiteRows,
    ) -> Tensor:
        size = tuple(options["activations_shape"][-2:])
        site_plan, groups, observe = acting_site(call, self.site_key, self.schedule, acting, q, rows, size, self.record)
        object_keys = partial(call.object_keys, self.site_key, site_plan.content_tokens, q)
        return fuse(out, z_text, q, acting.plan, site_plan, groups, object_keys, observe)


def install(
    model: Any, schedule: Schedule, start_percent: float, end_percent: float, record: RelevanceRecord | None = None
) -> Any:
    """A clone of `model` (ModelPatcher) that samples with the plans and fills the record. `model` is not changed.

    Sites at which no plan has any strength get no patch.
    """
    site_keys = dict.fromkeys(key for plan in schedule.plans.values() for key in plan.site_plans)
    applied = applied_references(schedule, len(site_keys), record)
    return patched(
        model, site_keys, start_percent, end_percent, applied, lambda slot: MergePatch(slot, applied, schedule)
    )


def applied_references(schedule: Schedule, site_count: int, record: RelevanceRecord | None) -> Applied:
    """What *MIP Apply* applies: the references of a schedule's plans."""
    plans = schedule.plans.values()
    names = tuple(dict.fromkeys(name for plan in plans for name in plan.names))
    fixed_places = any(plan.regions is not None or plan.frozen is not None for plan in plans)
    return Applied("MIP Apply", names, "the references", site_count, record, fixed_places)


def patched(
    model: Any,
    site_keys: Iterable[SiteKey],
    start_percent: float,
    end_percent: float,
    applied: Applied,
    make: Callable[[Slot], SitePatch],
) -> Any:
    """A clone of `model` (ModelPatcher) with a patch in the slot of each of these sites. `model` is not changed.

    applied: what the patches are part of.
    """
    clone = model.clone()
    period = PercentRange.from_percents(start_percent, end_percent)
    unet, site_keys = model.model.diffusion_model, tuple(site_keys)
    occupied = _slots(clone)
    for site_key in site_keys:
        block = site_key[:2]
        patch = make(Slot(site_key, unet, period, occupied.get(site_key, occupied.get(block))))
        clone.set_model_attn2_replace(patch, *site_key)
        if (*block, 1) not in site_keys:
            # A block with one transformer, as in SD1.5: IPAdapter_plus looks for patches under the block's own key.
            clone.set_model_attn2_replace(patch, *block)
    install_wrappers(clone.model_options)
    applied.note(clone)
    clone.remove_callbacks_with_key(CallbacksMP.ON_CLONE, CALLBACK_KEY)  # however often applied, one callback
    clone.add_callback_with_key(CallbacksMP.ON_CLONE, CALLBACK_KEY, renew_shells)
    return clone


def check_percents(start_percent: float, end_percent: float) -> None:
    """Raises ValueError unless 0 <= start_percent <= end_percent <= 1."""
    if not 0 <= start_percent <= end_percent <= 1:
        raise ValueError(
            f"start_percent is {start_percent} and end_percent {end_percent}; both must lie in 0 to 1, start before "
            "end."
        )


def compute_dtype(model: Any) -> torch.dtype:
    """The dtype of activations while sampling. Weights in fp8 and other storage formats are cast to it."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
