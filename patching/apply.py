"""Apply references to a model: encode, compile, install."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

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


class _Settings(NamedTuple):
    """What objects and styles of a chain have in common. sites: those of the model that the adapter has."""

    adapter: Adapter
    sites: Sequence[Site]
    scale: float
    start_percent: float
    end_percent: float


def apply_references(
    model: Any,
    clip: Any,
    clip_vision: Any,
    adapter: Adapter,
    chain: tuple[Reference, ...],
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

    chain: objects and styles, in any order.
    scale: strength of all references; 0 disables them.
    start_percent, end_percent: the fractions of the sampling between which the references act.
    merge: default `Merge()`.
    fusion_head: default the adapter's own head.
    record: filled while the clone samples.
    frozen: maps of an earlier sampling that replace the measured shares.
    face_lora: strength of the LoRA inside a FaceID adapter; 0 leaves it out, as for an adapter of no acting reference.

    Raises ValueError with a sentence for the artist when the arguments do not belong together.
    """
    _check_strength(scale, start_percent, end_percent)
    merge = merge or Merge()
    head = fusion_head or FusionHead(adapter.head, "image" if adapter.head else "off", name=adapter.name)
    sites = model_sites(model.model.diffusion_model)
    _check(chain, [adapter, *adapters_of(chain, adapter)], head, sites)
    chain = tuple(_with_blocks(each, sites) for each in chain)
    objects, styles = objects_of(chain), tuple(each for each in styles_of(chain) if each.weight)
    if record is not None:
        record.strategy = merge.strategy
        record.switched_off = "scale is 0 in MIP Apply" if scale == 0 else ""
    shares = None if frozen is None else frozen_shares_of(frozen, tuple(each.text for each in objects), merge)
    if scale == 0:
        return model.clone()  # the same bits as without the references
    # XLabs' adapters end with FLUX.1's double blocks; the blocks behind them stay as they are.
    settings = _Settings(adapter, sites[: len(adapter.spec.site_widths)], scale, start_percent, end_percent)
    patched = model
    if objects:
        encoded = encode_references(objects, adapter, clip, clip_vision, one_softmax=merge.strategy == "concat")
        patched = _patched(patched, objects, replace(encoded, frozen=shares), settings, merge, head, record)
    if styles:
        encoded = encode_styles(styles, adapter, clip_vision)
        patched = _patched(patched, styles, encoded, settings, Merge("sum"), FusionHead({}, "off"))
    for each in adapters_of([each for each in chain if _acts(each, settings.sites)], adapter):
        patched = with_inner_lora(patched, each, face_lora)
    return model.clone() if patched is model else patched


def _check_strength(scale: float, start_percent: float, end_percent: float) -> None:
    """Raises ValueError for a scale below 0 and for fractions outside of 0 to 1."""
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale is {scale}; it must be 0 or more (0.75 suits base weights, 0.65 plus weights).")
    check_percents(start_percent, end_percent)


def _check(chain: tuple[Reference, ...], adapters: Sequence[Adapter], head: FusionHead, sites: Sequence[Site]) -> None:
    """Raises ValueError unless adapters and head fit the model's sites, and the references each other."""
    for each in adapters:
        check_sites(each.spec, each.name, sites)
    if head.active:
        check_head(head.weights, head.name, sites)
    if not chain:
        raise ValueError("There are no references: connect at least one MIP Reference (a picture and its object text).")
    check_chain(chain)


def _acts(reference: Reference, sites: Sequence[Site]) -> bool:
    """Whether a reference adds anything: it has a weight, and a strength at some site."""
    blocks = reference.blocks
    return reference.weight > 0 and (blocks is None or any(blocks.at(site.key) for site in sites))


def _patched(
    model: Any,
    references: Sequence[Reference],
    encoded: EncodedReferences,
    settings: _Settings,
    merge: Merge,
    head: FusionHead,
    record: RelevanceRecord | None = None,
) -> Any:
    """A clone of the model with patches for objects or styles; the model itself if they are silent at every site."""
    schedule = _compiled(references, encoded, settings, merge, head, model)
    if schedule is not None:
        return _installed(model, schedule, encoded, settings, record)
    if record is not None:
        record.switched_off = "each object's weight is 0, or its MIP Block Strength in every block"
    return model


def _compiled(
    references: Sequence[Reference],
    encoded: EncodedReferences,
    settings: _Settings,
    merge: Merge,
    head: FusionHead,
    model: Any,
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
        encoded.adapters,
        settings.sites,
        [encoded.only(*each) for each in segments],
        scale=settings.scale,
        merge=merge,
        head=head,
        device=model.load_device,
        dtype=compute_dtype(model),
    )
    return Schedule(times, dict(zip(segments, plans, strict=True))) if any(plan.site_plans for plan in plans) else None


def _installed(
    model: Any, schedule: Schedule, encoded: EncodedReferences, settings: _Settings, record: RelevanceRecord | None
) -> Any:
    """A clone of the model that samples with the plans."""
    spec, start, end = settings.adapter.spec, settings.start_percent, settings.end_percent
    if not spec.is_joint:
        return install(model, schedule, start, end, record)
    texts = ObjectTexts(encoded.names, encoded.content_tokens)
    return install_joint(model, schedule, start, end, texts, spec.family == "xlabs", record)


def _with_blocks(reference: Reference, sites: Sequence[Site]) -> Reference:
    """The reference with its strength by block checked against the model, and a style's preset made into one."""
    if reference.blocks is not None:
        reference.blocks.check(sites, reference.text)
    elif isinstance(reference, Style) and reference.preset != ALL:
        return replace(reference, blocks=make_block_strength(sites, reference.preset))
    return reference


def frozen_shares_of(maps: RecordedMaps, names: tuple[str, ...], merge: Merge) -> Tensor:
    """[M + 1, pictures, H, W]: the recorded shares, then what no object claimed.

    names: the M object texts.
    Raises ValueError for maps that may not be recorded yet or are of other objects, and for a merge that needs none.
    """
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
