"""Wrappers that carry down the host's call stack what it does not tell a patch: host_call.py says what for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..attention.regions import Area, clipped
from . import preview
from .batch_layout import CondEvaluation
from .unet_call import CALL, FRAME, PREDICTION, RECORDS, SAMPLING, GuiderStep, SamplingState, UNetCall


def install_wrappers(model_options: dict) -> None:
    """Once per model, however many times the adapter is applied. They lie beside the patches in transformer_options, so
    that they go wherever the patches go."""
    for kind, wrapper in WRAPPERS:
        if not comfy.patcher_extension.get_wrappers_with_key(kind, CALL, model_options, is_model_options=True):
            comfy.patcher_extension.add_wrapper_with_key(kind, CALL, wrapper, model_options, is_model_options=True)


# Parameters are called as the host calls them: other packs' wrappers may pass them on by name.


def _sample(
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
    """OUTER_SAMPLE: a sampling run from its beginning to its end. The guider's options are its own for as long as it
    lasts."""
    executing = get_executing_context()
    guider = executor.class_obj
    hooked = any(cond.get("hooks") is not None for group in _conds(guider).values() for cond in group)
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    sampling = SamplingState(len(noise), executing.prompt_id if executing else None, hooked, model_sampling)
    options = guider.model_options.setdefault("transformer_options", {})
    options[SAMPLING] = sampling
    records = options.get(RECORDS, ())
    for record in records:
        record.begin(sampling.run)  # also where nothing acts: its maps are none, not the last sampling's
    if callback is not None and preview.wanted():
        latent_format = guider.model_patcher.model.latent_format
        callback = preview.with_relevance(callback, sampling.records, latent_format)
    latent = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *rest, **more)
    for record in dict.fromkeys((*records, *sampling.records)):
        record.finish(sampling.run, latent)
    return latent


def _name_conds(executor: Any, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None):
    """PREDICT_NOISE: note which cond goes by which name in the guider. Lists are told apart by their first cond, since
    the host appends copies of other lists' conds to even out areas."""
    names = {group[0].get("uuid"): name for name, group in _conds(executor.class_obj).items() if group}
    return executor(x, timestep, _with(model_options, **{PREDICTION: GuiderStep(names, set())}), seed)


def _frame_conds(executor: Any, model: Any, conds: list, x_in: Tensor, timestep: Tensor, model_options: dict):
    """CALC_COND_BATCH: which indices of this evaluation are conditional, and which areas they cover."""
    options = model_options.get("transformer_options", {})
    prediction: GuiderStep = options.get(PREDICTION) or GuiderStep({}, set())
    canvas = x_in.shape[-2], x_in.shape[-1]
    firsts = [group[0].get("uuid") if group else None for group in conds]
    names = [prediction.names.get(first) for first in firsts]
    # Unknown ones: positive first, as the host has them; one alone, and none of the guider's, is an empty prompt (the
    # old Perp-Neg's).
    positive_first = len(conds) > 1 or not prediction.names
    which = tuple(i == 0 and positive_first if name is None else "negative" not in name for i, name in enumerate(names))
    areas = {cond.get("uuid"): clipped(_area(cond.get("area")), canvas) for group in conds if group for cond in group}
    shown = [first for first, conditional in zip(firsts, which, strict=True) if first and conditional]
    window = _window(options, model_options.get("context_handler"))
    frame = CondEvaluation(
        which, areas, len(x_in), canvas, prediction.begins(shown, options), model.model_sampling, window
    )
    return executor(model, conds, x_in, timestep, _with(model_options, **{FRAME: frame}))


def _window(options: Mapping[str, Any], handler: Any) -> list[int] | None:
    """The numbers of the pictures in a context window of the host, None without one. The window gives them: newer hosts
    put the picture before it in front, and can keep some pictures in every window."""
    window: Any = options.get("context_window")
    sampling: SamplingState | None = options.get(SAMPLING)
    if sampling is None or getattr(window, "dim", None) != 0:
        return None
    kept = getattr(handler, "latent_retain_index_list", None)
    more = {"retain_index_list": kept} if kept else {}  # older hosts know no such argument
    return window.get_tensor(torch.arange(sampling.run.pictures), **more).tolist()


def _conds(guider: Any) -> Mapping[str, list]:
    """Its lists of conds by their names."""
    return getattr(guider, "conds", {})


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
    """DIFFUSION_MODEL: one UNetCall for all sites of this UNet call."""
    call = UNetCall(executor.class_obj, x.shape, transformer_options)
    out = executor(x, timesteps, context, y, control, {**transformer_options, CALL: call}, **more)
    call.close()
    return out


def _with(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return {**options, "transformer_options": {**options.get("transformer_options", {}), **more}}


WRAPPERS = (
    (WrappersMP.OUTER_SAMPLE, _sample),
    (WrappersMP.PREDICT_NOISE, _name_conds),
    (WrappersMP.CALC_COND_BATCH, _frame_conds),
    (WrappersMP.DIFFUSION_MODEL, _describe_call),
)
