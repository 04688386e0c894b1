"""Apply references to a model: encode, compile, install."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..attention.block_strength import ALL, make_block_strength
from ..attention.options import FusionHead, Merge
from ..attention.plan import EncodedReferences, compile_plans
from ..attention.reference import Reference, Style, check_chain, objects_of, styles_of
from ..attention.schedule import ObjectTiming, PercentRange, Schedule, active_segments
from ..relevance.means import nobody
from ..relevance.record import RecordedMaps, RelevanceRecord
from ..weights.adapter import Adapter
from ..weights.sites import Site, check_head, check_sites, model_sites
from .encode import adapters_of, encode_references, encode_styles
from .inner_lora import with_inner_lora
from .joint_patch import ObjectTexts, install_joint
from .site_patch import check_percents, compute_dtype, install


def apply_references(
    model: Any,
    clip: Any,
    clip_vision: Any,
    adapter: Adapter,
    references: tuple[Reference, ...],
    *,
    scale: float,
    start_percent: float = 0.0,
    end_percent: float = 1.0,
    merge: Merge | None = None,
    fusion_head: FusionHead | None = None,
    record: RelevanceRecord | None = None,
    frozen: RecordedMaps | None = None,
    face_lora: float = 1.0,
) -> Any:
    """A clone of `model` (ModelPatcher) whose cross-attention merges the references. `model` itself is not changed.

    Styles act beside the objects: they get patches of their own, in the same slots, with the merge "sum" and no gate.

    references: objects and styles, in any order.
    scale: strength of all references; 0 disables them.
    start_percent, end_percent: the fractions of the sampling between which the references act.
    merge: default `Merge()`.
    fusion_head: default the adapter's own head.
    record: filled while the clone samples.
    frozen: maps of an earlier sampling that replace the measured shares.
    face_lora: strength of the LoRA inside a FaceID adapter; 0 leaves it out.

    Raises ValueError with a sentence for the artist when the arguments do not belong together.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale is {scale}; it must be 0 or more (0.75 suits base weights, 0.65 plus weights).")
    check_percents(start_percent, end_percent)
    sites = model_sites(model.model.diffusion_model)
    adapters = adapters_of(references, adapter)
    head = fusion_head or FusionHead(adapter.head, "image" if adapter.head else "off", name=adapter.name)
    merge = merge or Merge()
    _check(references, adapters, head, sites)
    references = tuple(_with_blocks(each, sites) for each in references)
    objects = objects_of(references)
    styles = tuple(each for each in styles_of(references) if each.weight)
    if record is not None:
        record.off, record.strategy = scale == 0, merge.strategy
    shares = None if frozen is None else frozen_shares_of(frozen, tuple(each.text for each in objects), merge)
    if scale == 0:
        return model.clone()  # the same bits as without the references
    # XLabs' adapters end with FLUX.1's double blocks; the blocks behind them stay as they are.
    sites = sites[: len(adapter.spec.sites)]
    compiled = partial(_compiled, model=model, sites=sites, scale=scale)
    installed = partial(_installed, adapter=adapter, start_percent=start_percent, end_percent=end_percent)
    patched = model
    if objects:
        one_softmax = merge.strategy == "concat"
        encoded = replace(encode_references(objects, adapter, clip, clip_vision, one_softmax), frozen=shares)
        schedule = compiled(objects, encoded, adapters=adapters_of(objects, adapter), merge=merge, head=head)
        if schedule is not None:
            patched = installed(patched, schedule, encoded, record)
        elif record is not None:
            record.off = True
    if styles:
        encoded = encode_styles(styles, adapter, clip_vision)
        schedule = compiled(styles, encoded, adapters=[adapter], merge=Merge("sum"), head=FusionHead({}, "off"))
        if schedule is not None:
            patched = installed(patched, schedule, encoded)
    for each in adapters:
        patched = with_inner_lora(patched, each, face_lora)
    return model.clone() if patched is model else patched


def _check(
    references: tuple[Reference, ...], adapters: Sequence[Adapter], head: FusionHead, sites: Sequence[Site]
) -> None:
    """Raises ValueError unless adapters and head fit the model's sites, and the references each other."""
    for each in adapters:
        check_sites(each.spec, each.name, sites)
    if head.active:
        check_head(head.weights, head.name, sites)
    if not references:
        raise ValueError("There are no references: connect at least one MIP Reference (a picture and its object text).")
    check_chain(references)


def _compiled(
    references: Sequence[Reference],
    encoded: EncodedReferences,
    *,
    model: Any,
    adapters: Sequence[Adapter],
    sites: Sequence[Site],
    scale: float,
    merge: Merge,
    head: FusionHead,
) -> Schedule | None:
    """The plans of all references together; None if they are silent at every site."""
    times = tuple(
        ObjectTiming(
            PercentRange.from_percents(each.start_percent, each.end_percent),
            # Without a region region_until changes nothing, and needs no segment.
            None if each.region is None else PercentRange.from_percents(0.0, each.region_until),
        )
        for each in references
    )
    segments = active_segments(times)
    plans = compile_plans(
        adapters,
        sites,
        [encoded.only(*each) for each in segments],
        scale=scale,
        merge=merge,
        head=head,
        device=model.load_device,
        dtype=compute_dtype(model),
    )
    return Schedule(times, dict(zip(segments, plans, strict=True))) if any(plan.sites for plan in plans) else None


def _installed(
    model: Any,
    schedule: Schedule,
    encoded: EncodedReferences,
    record: RelevanceRecord | None = None,
    *,
    adapter: Adapter,
    start_percent: float,
    end_percent: float,
) -> Any:
    """A clone of the model that samples with the plans."""
    if not adapter.spec.is_joint:
        return install(model, schedule, start_percent, end_percent, record)
    texts = ObjectTexts(encoded.names, encoded.content_tokens)
    after_block = adapter.spec.family == "xlabs"
    return install_joint(model, schedule, start_percent, end_percent, texts, after_block, record)


def _with_blocks(reference: Reference, sites: Sequence[Site]) -> Reference:
    """The reference with its strength by block checked against the model, and a style's preset made into one."""
    if reference.blocks is not None:
        reference.blocks.check(sites, reference.text)
    elif isinstance(reference, Style) and reference.preset != ALL:
        return replace(reference, blocks=make_block_strength(sites, reference.preset))
    return reference


def frozen_shares_of(maps: RecordedMaps, names: tuple[str, ...], merge: Merge) -> Tensor:
    """[M + 1, pictures, H, W]: the recorded shares, then what no object claimed."""
    if isinstance(maps, RelevanceRecord):
        raise ValueError(
            "The input “frozen” got the maps of a sampling that may not have run yet: put MIP Freeze Relevance "
            "between, behind the first pass's sampler."
        )
    if maps.names != names:
        raise ValueError(
            f"The frozen maps are of {', '.join(maps.names)}, and the references here are {', '.join(names)}: use the "
            "same objects in the same order for both passes."
        )
    if merge.strategy != "relevance":
        raise ValueError(
            f"The merge strategy is {merge.strategy}, which has no use for frozen maps: choose relevance, or "
            "disconnect “frozen”."
        )
    shares = maps.shares().clamp(0, 1)
    return torch.cat([shares, nobody(shares)])
