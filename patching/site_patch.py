"""Patches: thin shells around a frozen plan, one at every cross-attention site of a ModelPatcher's clone."""

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

from ..attention.schedule import PercentRange, Schedule
from ..attention.site import fuse
from ..relevance.record import RelevanceRecord
from ..weights.sites import SiteKey
from .sampling_wrappers import install_wrappers
from .unet_call import RECORDS, UNetCall

SHELLS = "mip_adapter"  # our callback's name in a ModelPatcher


class Place(NamedTuple):
    """Where a patch stands and when it acts; unet: for hosts that do not say which one is running."""

    key: SiteKey
    unet: Any
    window: PercentRange | None
    occupant: Callable | None


class SitePatch(ABC):
    """Replacement for one cross-attention, chained to whatever stood there before.

    All that stand in one slot add their terms to the attention and see the same q and the same clean Z_text, so that
    their order makes no difference. What a patch knows is shared by all of its copies, one for every clone of a model
    (`renew_shells`). A shell may gain guests: IPAdapter_plus, applied after us, hands its callback to the slot's
    occupant with `add`; the clone that it works on then has its own list, and its parent keeps sampling as before.
    """

    needs_text: bool  # whether `act` reads Z_text

    def __init__(self, place: Place) -> None:
        self.key, self.unet, self.window, self.occupant = place
        self.guests: tuple[tuple[Callable, dict], ...] = ()

    @abstractmethod
    def act(self, out: Tensor, text: Tensor | None, q: Tensor, options: dict, call: UNetCall) -> Tensor:
        """`out` [B, N, C] with this patch's term, written in place where that helps; text may be `out` itself."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, extra_options: dict) -> Tensor:
        return self._attend(q, k, v, extra_options, keep_text=False)[0].to(q.dtype)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, options: dict, keep_text: bool) -> tuple[Tensor, Tensor | None]:
        """The attention with our term and our guests', and Z_text where somebody needs it unchanged."""
        call = UNetCall.from_options(options, q.shape[0], self.unet)
        acts = self.window is None or call.within(self.window)
        out, text = self._before(q, k, v, options, keep_text or (acts and self.needs_text))
        if acts:
            if text is not None and out is text and (keep_text or text.requires_grad):
                out = text.clone()  # act() writes into `out`
            out = self.act(out.contiguous(), text, q, options, call)
        for callback, kwargs in self.guests:
            if kwargs.get("sigma_end", 0.0) <= call.sigma <= kwargs.get("sigma_start", float("inf")):
                out = out + callback(out, q, k, v, options, **kwargs)
        return out, text

    def _before(self, q: Tensor, k: Tensor, v: Tensor, options: dict, needs_text: bool) -> tuple[Tensor, Tensor | None]:
        """What the slot would give without us, and Z_text. `out` is ours to write into; it may be `text` itself."""
        if isinstance(self.occupant, SitePatch):
            return self.occupant._attend(q, k, v, options, keep_text=needs_text)
        if self.occupant is None:
            text = text_attention(q, k, v, options)
            return text, text
        text = text_attention(q, k, v, options) if needs_text else None
        return self.occupant(q, k, v, options).clone(), text

    def add(self, callback: Callable, **kwargs: Any) -> None:
        """Protocol of IPAdapter_plus: out += callback(out, q, k, v, extra_options, **kwargs) within its sigmas."""
        self.guests += ((callback, kwargs),)

    def to(self, device_or_dtype: Any) -> SitePatch:
        """The host moves patches with their model. The plan stays, cast at use; an occupant may move."""
        move = getattr(self.occupant, "to", None)
        if move is not None:
            self.occupant = move(device_or_dtype)
        return self

    def models(self) -> list:
        """Models the host must load with this patch: none of ours, perhaps the occupant's."""
        models = getattr(self.occupant, "models", None)
        return models() if models is not None else []

    def __deepcopy__(self, memo: dict) -> SitePatch:
        return copy(self)  # a new shell: same plan, same occupant, its own (immutable) tuple of guests


def renew_shells(_: Any, clone: Any) -> None:
    """ON_CLONE: the clone gets shells of its own, one for each of its parent's, however many slots share it. Hosts
    since 2026 copy only the dictionaries around them, older ones the shells too (`__deepcopy__`)."""
    slots, shells = _slots(clone), {}
    for key, patch in slots.items():
        if isinstance(patch, SitePatch):
            slots[key] = shells.setdefault(id(patch), copy(patch))


def _slots(model: Any) -> dict[tuple, Any]:
    """What stands at the cross-attentions of a MODEL, by the names of the sites."""
    return model.model_options.get("transformer_options", {}).get("patches_replace", {}).get("attn2", {})


def text_attention(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
    """Z_text by the host's attention of choice: sage, flash and overrides keep working."""
    precision = options.get("attn_precision")
    return optimized_attention(q, k, v, options["n_heads"], attn_precision=precision, transformer_options=options)


class MergePatch(SitePatch):
    """Adds the image features of the objects that act: the method."""

    def __init__(self, place: Place, schedule: Schedule, record: RelevanceRecord | None) -> None:
        super().__init__(place)
        self.schedule, self.record = schedule, record
        self.needs_text = any(plan.sites[self.key].head is not None for plan in schedule.plans.values())

    def act(self, out: Tensor, text: Tensor | None, q: Tensor, options: dict, call: UNetCall) -> Tensor:
        now = self.schedule.at(call.within)
        if now is None:
            return out
        objects, plan = now
        site = plan.sites[self.key]
        size = tuple(options["activations_shape"][-2:])
        return fuse(
            out,
            text,
            q,
            plan,
            site.like(q),
            call.rows(len(q), plan, size, q.device),
            partial(call.object_keys, self.key, site.object_text, q),
            partial(call.observe, self.record, plan, objects, size) if self.record is not None else None,
        )


def install(
    model: Any, schedule: Schedule, start_percent: float, end_percent: float, record: RelevanceRecord | None = None
) -> Any:
    """A clone of `model` (ModelPatcher) that samples with the plans and fills the record; `model` stays as it is."""
    keys = next(iter(schedule.plans.values())).sites
    clone = patched(model, keys, start_percent, end_percent, lambda place: MergePatch(place, schedule, record))
    if record is not None:
        options = clone.model_options["transformer_options"]
        options[RECORDS] = (*options.get(RECORDS, ()), record)
    return clone


def patched(
    model: Any,
    keys: Iterable[SiteKey],
    start_percent: float,
    end_percent: float,
    make: Callable[[Place], SitePatch],
) -> Any:
    """A clone of `model` (ModelPatcher) with a patch in the slots of these sites; `model` stays as it is."""
    clone = model.clone()
    window = PercentRange.from_percents(start_percent, end_percent)
    unet, keys = model.model.diffusion_model, tuple(keys)
    occupied = _slots(clone)
    for key in keys:
        patch = make(Place(key, unet, window, occupied.get(key, occupied.get(key[:2]))))
        clone.set_model_attn2_replace(patch, *key)
        if (*key[:2], 1) not in keys:
            # A block of one transformer, such as SD1.5's: IPAdapter_plus looks for us under the block's own name.
            clone.set_model_attn2_replace(patch, *key[:2])
    install_wrappers(clone.model_options)
    clone.remove_callbacks_with_key(CallbacksMP.ON_CLONE, SHELLS)  # applied twice, renewed once
    clone.add_callback_with_key(CallbacksMP.ON_CLONE, SHELLS, renew_shells)
    return clone


def check_percents(start_percent: float, end_percent: float) -> None:
    """Raises ValueError for a range of steps that is none."""
    if not 0 <= start_percent <= end_percent <= 1:
        raise ValueError(
            f"start_percent is {start_percent} and end_percent {end_percent}; both must lie in 0 to 1, start before "
            "end."
        )


def compute_dtype(model: Any) -> torch.dtype:
    """The dtype activations have while sampling: fp8 and other storage formats are cast to it."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()
