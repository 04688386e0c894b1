"""Wrappers around the host's sampling functions. They pass down what the host does not tell a patch; unet_call.py
explains what that is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.patcher_extension
import torch
from comfy.patcher_extension import WrappersMP
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..attention.regions import Area, Size, clipped, cut_from, same_shape
from ..relevance.record import RelevanceRecord
from ..relevance.report import CROPPED_SENTENCE, SQUEEZED_SENTENCE
from ..relevance.same_run import Results
from . import preview
from .batch_layout import CondEvaluation, window_of_another_pack
from .cond_lists import CondLists, context_of, marked
from .sampling_state import APPLIED, CALL, EVALUATION, FORWARD_PASSES, SAMPLING, TURN, Applied, SamplingState, Turn
from .unet_call import UNetCall

log = logging.getLogger(__name__)
WARNING = "mip_adapter.warning"  # a message to the frontend
_ABSENT = object()
_results = Results()  # of the graph that the queue runs now, for all models that it samples


def install_wrappers(model_options: dict, describe_call: Callable | None = None) -> None:
    """Install the wrappers once per model, however often an adapter is applied.

    They are stored beside the patches in transformer_options and so go wherever the patches go.

    describe_call: the wrapper around one call of the model, for models that are no UNet.
    """
    for kind, wrapper in {**dict(WRAPPERS), WrappersMP.DIFFUSION_MODEL: describe_call or _describe_call}.items():
        if not comfy.patcher_extension.get_wrappers_with_key(kind, CALL, model_options, is_model_options=True):
            comfy.patcher_extension.add_wrapper_with_key(kind, CALL, wrapper, model_options, is_model_options=True)


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
    """OUTER_SAMPLE: one sampling. The guider's model_options belong to this run, so they can hold its state."""
    executing = get_executing_context()
    guider = executor.class_obj
    hooked = any(cond.get("hooks") is not None for group in _conds(guider).values() for cond in group)
    model_sampling = guider.model_patcher.get_model_object("model_sampling")
    canvas = (noise.shape[-2], noise.shape[-1]) if noise.ndim == 4 else None
    prompt_id, steps = executing.prompt_id if executing else None, len(sigmas) - 1
    sampling = SamplingState(len(noise), prompt_id, hooked, model_sampling, canvas, steps)
    options = guider.model_options.setdefault("transformer_options", {})
    options[SAMPLING] = sampling
    applied: Sequence[Applied] = options.get(APPLIED, ())
    sampling.due.update(each for each in applied if each.always_due)
    records = _records(applied)
    cropped = latent_image is not None and bool(latent_image.any()) and _results.cropped(prompt_id, latent_image)
    for record, fixed_places in records.items():
        # Also where no reference acts: the last run's maps must not remain.
        record.begin(sampling.run, cropped, fixed_places)
        if cropped and fixed_places:
            _warn(record.names, f"{CROPPED_SENTENCE} {SQUEEZED_SENTENCE}", executing)
    if callback is not None and preview.wanted():
        latent_format = guider.model_patcher.model.latent_format
        callback = preview.with_relevance(callback, sampling.records, latent_format)
    latent = executor(noise, latent_image, sampler, sigmas, denoise_mask, callback, *rest, **more)
    for sentence, lost in _lost(sampling, applied).items():
        for record in _records(lost):
            record.patches_lost = sentence
        _warn([name for each in lost for name in each.names], sentence, executing)
    for record in dict.fromkeys((*records, *sampling.records)):
        record.finish(sampling.run, latent)
    _results.add(prompt_id, latent)
    return latent


def _records(applied: Iterable[Applied]) -> dict[RelevanceRecord, bool]:
    """The records that are filled, each with whether regions or frozen maps fix the objects' places."""
    return {each.record: each.fixed_places for each in applied if each.record is not None}


def _lost(sampling: SamplingState, applied: Iterable[Applied]) -> dict[str, list[Applied]]:
    """Whose patches another pack replaced, by what is to be said of it."""
    lost: dict[str, list[Applied]] = {}
    for each in applied if sampling.has_evaluated else ():
        if each in sampling.due and (sentence := each.lost(sampling.visited.get(each, ()))):
            lost.setdefault(sentence, []).append(each)
    return lost


def _warn(names: Sequence[str], sentence: str, executing: Any) -> None:
    """Say it in the log and, where a server runs the graph, in a toast at the sampler (web/js/errors.js).

    names: of the objects or styles that it concerns.
    """
    said = f"{', '.join(names)}: {sentence}" if names else sentence
    log.warning("%s", said)
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is not None and executing is not None:
        server.send_sync(WARNING, {"node_id": executing.node_id, "sentence": said}, server.client_id)


def _note_run(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict, *rest: Any, **more: Any):
    """SAMPLER_SAMPLE: from one noise level to another. Another pack may do so several times in one OUTER_SAMPLE, as
    AnimateDiff-Evolved's FreeInit does. The latent is the last one's, and so are maps and pools. A run that goes on
    where the one before ended, as with that pack's image injection, is part of the same."""
    options = extra_args["model_options"].get("transformer_options", {})
    sampling: SamplingState | None = options.get(SAMPLING)
    if sampling is not None:
        continues = sampling.continues(sigmas)
        sampling.note_run(sigmas, continues)
        if sampling.has_evaluated and not continues:
            records = dict.fromkeys((*_records(options.get(APPLIED, ())), *sampling.records))
            sampling.begin_again()
            for record in records:
                record.begin(sampling.run, record.cropped, record.fixed_places)
    return executor(guider, sigmas, extra_args, *rest, **more)


def _note_conditional(executor: Any, x: Tensor, timestep: Tensor, model_options: dict, seed: int | None):
    """PREDICT_NOISE: record the guider's lists of conds, and which of them are conditional."""
    size = (x.shape[-2], x.shape[-1]) if x.ndim == 4 else None
    model_options = _with_transformer_options(model_options)
    sampling: SamplingState | None = model_options["transformer_options"].get(SAMPLING)
    if sampling is not None:
        sampling.turn += 1
    with temporarily(model_options["transformer_options"], TURN, Turn(CondLists(_conds(executor.class_obj)), size)):
        return executor(x, timestep, model_options, seed)


def _classify_conds(executor: Any, model: Any, conds: list, x_in: Tensor, timestep: Tensor, model_options: dict):
    """CALC_COND_BATCH: record which indices of this evaluation are conditional, and what of the canvas they show."""
    model_options = _with_transformer_options(model_options)
    options = model_options["transformer_options"]
    turn: Turn = options.get(TURN) or Turn(CondLists({}), None)
    sampling: SamplingState | None = options.get(SAMPLING)
    canvas, crop, in_parts = _seen_by(x_in, turn, sampling)
    names = [turn.lists.name_of(group) for group in conds]
    list_ids = tuple(
        group[0].get("uuid") if group and name is None else name for name, group in zip(names, conds, strict=True)
    )
    # Lists that are not the guider's: the host puts the positive one first. A single one is an empty prompt, as in the
    # old Perp-Neg, unless it says otherwise.
    positive_first = len(conds) > 1 or not turn.lists.conditional
    conditional = tuple(
        marked(group, i == 0 and positive_first) if name is None else turn.lists.conditional[name]
        for i, (name, group) in enumerate(zip(names, conds, strict=True))
    )
    each = [(i, cond) for i, group in enumerate(conds) if group for cond in group]
    size = x_in.shape[-2], x_in.shape[-1]
    areas = {cond.get("uuid"): _within(clipped(_area(cond.get("area")), size), crop) for _, cond in each}
    conditional_conds = [(list_ids[i], cond.get("uuid")) for i, cond in each if conditional[i]]
    window = _window(options, model_options.get("context_handler"), len(x_in))
    main = not in_parts and turn.claim_evaluation(conditional_conds, window, crop)
    contexts = {(i, cond.get("uuid")): context for i, cond in each if (context := context_of(cond)) is not None}
    evaluation = CondEvaluation(
        conditional=conditional,
        areas=areas,
        rows=len(x_in),
        canvas=canvas,
        crop=crop,
        in_parts=in_parts,
        main=main,
        model_sampling=model.model_sampling,
        window=window,
        contexts=contexts,
        list_ids=list_ids,
    )
    if sampling is not None:
        sampling.has_evaluated = True
    with temporarily(options, EVALUATION, evaluation):
        return executor(model, conds, x_in, timestep, model_options)


def _seen_by(x: Tensor, turn: Turn, sampling: SamplingState | None) -> tuple[Size, Area, bool]:
    """Canvas, crop and in_parts of an evaluation (see `CondEvaluation`) on latents x."""
    size = x.shape[-2], x.shape[-1]
    canvas = size if sampling is None or sampling.canvas is None or x.ndim != 4 else sampling.canvas
    if size == canvas:
        return canvas, None, False
    crop = cut_from(x, canvas)
    if crop is not None:
        return canvas, crop, False
    # Some samplers evaluate the whole picture at another size. Guidance that does not get such a latent cuts it.
    return (size, None, False) if size == turn.size and same_shape(size, canvas) else (canvas, None, True)


def _within(area: Area, crop: Area) -> Area:
    """An area of a crop as an area of the canvas."""
    if area is None or crop is None:
        return area or crop
    height, width, y, x = area
    return height, width, y + crop[2], x + crop[3]


def _window(options: Mapping[str, Any], handler: Any, picture_count: int) -> list[int] | None:
    """The numbers of the pictures in a context window, None without one. The host's window gives them itself: newer
    hosts put the picture before it in front, and can keep some pictures in every window.

    picture_count: of the evaluation. Where it has all, another pack cuts them into windows further down, and what that
        pack says here is still of the last window before.
    """
    window: Any = options.get("context_window")
    sampling: SamplingState | None = options.get(SAMPLING)
    if sampling is None or getattr(window, "dim", None) != 0:
        every = sampling is not None and picture_count == sampling.run.picture_count
        return None if every else window_of_another_pack(options)
    kept = getattr(handler, "latent_retain_index_list", None)
    more = {"retain_index_list": kept} if kept else {}  # older hosts know no such argument
    return window.get_tensor(torch.arange(sampling.run.picture_count), **more).tolist()


def _conds(guider: Any) -> Mapping[str, list]:
    """The guider's lists of conds by name."""
    return getattr(guider, "conds", {})


def _area(area: Any) -> Area:
    return tuple(area) if area is not None and len(area) == 4 and not isinstance(area[0], str) else None


def _keep_last_forward_pass(executor: Any, x: Tensor, t: Tensor, *rest: Any, **more: Any):
    """APPLY_MODEL: record the last forward pass of the UNet, whose result this is. Those before it show another picture
    to it, as reference-only control does."""
    options = more["transformer_options"] if "transformer_options" in more else rest[3] if len(rest) > 3 else {}
    calls: list[UNetCall] = []
    with temporarily(options, FORWARD_PASSES, calls):
        out = executor(x, t, *rest, **more)
    for call in _last_pass(calls):
        call.close()
    return out


def _last_pass(calls: Sequence[UNetCall]) -> Iterable[UNetCall]:
    """The last call; where another pack sends the batch in parts, the last call of each part."""
    if calls and calls[-1].part:
        return {call.part: call for call in calls if call.part}.values()
    return calls[-1:]


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
    with temporarily(transformer_options, CALL, call):
        out = executor(x, timesteps, context, y, control, transformer_options, **more)
    end_call(call, transformer_options)
    return out


def end_call(call: UNetCall, options: Mapping[str, Any]) -> None:
    """Record a call that has run; see `_keep_last_forward_pass`."""
    calls: list[UNetCall] | None = options.get(FORWARD_PASSES)
    if calls is None:
        call.close()
    else:
        calls.append(call)


def _with_transformer_options(model_options: dict) -> dict:
    """The same dictionary, unless the caller passes none of the options that hold our wrappers."""
    return model_options if "transformer_options" in model_options else {**model_options, "transformer_options": {}}


@contextmanager
def temporarily(options: dict[str, Any], key: str, value: Any) -> Iterator[None]:
    """Put a value into the options for as long as a call lasts, then what was there before.

    The dictionary is the host's own and never a copy: other packs keep their state in it from turn to turn.
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
    (WrappersMP.SAMPLER_SAMPLE, _note_run),
    (WrappersMP.PREDICT_NOISE, _note_conditional),
    (WrappersMP.CALC_COND_BATCH, _classify_conds),
    (WrappersMP.APPLY_MODEL, _keep_last_forward_pass),
    (WrappersMP.DIFFUSION_MODEL, _describe_call),
)
