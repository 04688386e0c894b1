"""Wrappers around the host's sampling functions. They pass down what the host does not tell a patch; unet_call.py
explains what that is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..attention.regions import Area, clipped
from . import preview
from .batch_layout import CondEvaluation
from .unet_call import CALL, EVALUATION, GUIDER_STEP, RECORDS, SAMPLING, GuiderStep, SamplingState, UNetCall


def install_wrappers(model_options: dict, describe_call: Callable | None = None) -> None:
    """Install the wrappers once per model, however often an adapter is applied.

    They are stored beside the patches in transformer_options and so go wherever the patches go.

    describe_call: the wrapper around one call of the model, for models that are no UNet.
    """
    for kind, wrapper in {**dict(WRAPPERS), WrappersMP.DIFFUSION_MODEL: describe_call or _describe_call}.items():
        if not comfy.patcher_extension.get_wrappers_with_key(kind, CALL, model_options, is_model_options=True):
            comfy.patcher_extension.add_wrapper_with_key(kind, CALL, wrapper, model_options, is_model_options=True)


_ABSENT = object()

# Parameters have the host's names: other packs' wrappers may pass them on by name.


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
    """OUTER_SAMPLE: one sampling run. The guider's model_options belong to this run, so they can hold its state."""
    executing = get_executing_context()
    guider = executor.class_obj
    hooked = any(cond.get("hooks") is not None for group in _conds(guider).values() for cond in group)
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    sampling = SamplingState(len(noise), executing.prompt_id if executing else None, hooked, model_sampling)
    options = guider.model_options.setdefault("transformer_options", {})
    options[SAMPLING] = sampling
    records = options.get(RECORDS, ())
    for record in records:
        record.begin(sampling.run)  # also where no reference acts: the last run's maps must not remain
    if callback is not None and preview.wanted():
        latent_format = guider.model_patcher.model.latent_format
        callback = preview.with_relevance(callback, sampling.records, latent_format)
    latent = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *rest, **more)
    for record in dict.fromkeys((*records, *sampling.records)):
        record.finish(sampling.run, latent)
    return latent


def _name_conds(executor: Any, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None):
    """PREDICT_NOISE: record the guider's name for each list of conds.

    The first cond identifies a list, since the host appends copies of other lists' conds to cover all areas.
    """
    names = {group[0].get("uuid"): name for name, group in _conds(executor.class_obj).items() if group}
    sampling: SamplingState | None = model_options.get("transformer_options", {}).get(SAMPLING)
    if sampling is not None:
        sampling.turn += 1
    model_options = _with_transformer_options(model_options)
    with _noted(model_options["transformer_options"], GUIDER_STEP, GuiderStep(names, set())):
        return executor(x, timestep, model_options, seed)


def _classify_conds(executor: Any, model: Any, conds: list, x_in: Tensor, timestep: Tensor, model_options: dict):
    """CALC_COND_BATCH: record which indices of this evaluation are conditional, and the areas of its conds."""
    options = model_options.get("transformer_options", {})
    step: GuiderStep = options.get(GUIDER_STEP) or GuiderStep({}, set())
    canvas = x_in.shape[-2], x_in.shape[-1]
    firsts = [group[0].get("uuid") if group else None for group in conds]
    names = [step.names.get(first) for first in firsts]
    # Lists without a name: the host puts the positive one first. A single list that is not one of the guider's is an
    # empty prompt, as in the old Perp-Neg.
    positive_first = len(conds) > 1 or not step.names
    conditional = tuple(
        i == 0 and positive_first if name is None else "negative" not in name for i, name in enumerate(names)
    )
    areas = {cond.get("uuid"): clipped(_area(cond.get("area")), canvas) for group in conds if group for cond in group}
    shown = [first for first, is_cond in zip(firsts, conditional, strict=True) if first and is_cond]
    main = step.is_first_evaluation(shown, options)
    window = _window(options, model_options.get("context_handler"))
    evaluation = CondEvaluation(
        conditional, areas, len(x_in), canvas, main, model.model_sampling, window, tuple(firsts)
    )
    model_options = _with_transformer_options(model_options)
    with _noted(model_options["transformer_options"], EVALUATION, evaluation):
        return executor(model, conds, x_in, timestep, model_options)


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
    """The guider's lists of conds by name."""
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
    """DIFFUSION_MODEL: make one UNetCall, shared by all sites of this call."""
    call = UNetCall(executor.class_obj, x.shape, transformer_options)
    with _noted(transformer_options, CALL, call):
        out = executor(x, timesteps, context, y, control, transformer_options, **more)
    call.close()
    return out


def _with_transformer_options(model_options: dict) -> dict:
    """The same dictionary, unless the caller passes none of the options that hold our wrappers."""
    return model_options if "transformer_options" in model_options else {**model_options, "transformer_options": {}}


@contextmanager
def _noted(options: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    """Put a value into the options for as long as a call lasts, then what was there before.

    The dictionary is the host's own and never a copy: other packs keep their state in it from step to step.
    """
    before = options.get(key, _ABSENT)
    options[key] = value
    try:
        yield
    finally:
        if before is _ABSENT:
            options.pop(key, None)
        else:
            options[key] = before


WRAPPERS = (
    (WrappersMP.OUTER_SAMPLE, _sample),
    (WrappersMP.PREDICT_NOISE, _name_conds),
    (WrappersMP.CALC_COND_BATCH, _classify_conds),
    (WrappersMP.DIFFUSION_MODEL, _describe_call),
)
