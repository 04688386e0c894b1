"""References onto a model: encode, compile, install."""

from __future__ import annotations

import math
from typing import Any

from ..weights.adapter import Adapter
from ..weights.sites import check_head, check_sites, unet_sites
from .host_encode import encode_references
from .host_patch import check_percents, compute_dtype, install
from .options import FusionHead, Merge
from .plan import compile_plan
from .record import RelevanceRecord
from .reference import Reference


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
) -> Any:
    """A clone of `model` (ModelPatcher) whose cross-attention merges the references; `model` stays as it is. `record`
    is filled while the clone samples.

    Raises ValueError with a sentence for the artist when the parts do not belong together.
    """
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale is {scale}; it must be 0 or more (0.75 suits base weights, 0.65 plus weights).")
    check_percents(start_percent, end_percent)
    sites = unet_sites(model.model.diffusion_model)
    check_sites(adapter.spec, adapter.name, sites)
    head = fusion_head or FusionHead(adapter.head, "image" if adapter.head else "off", name=adapter.name)
    if head.active:
        check_head(head.weights, head.name, sites)
    encoded = encode_references(references, adapter, clip, clip_vision)
    if scale == 0:
        return model.clone()  # adds nothing anywhere: the same bits as without us
    plan = compile_plan(
        adapter,
        sites,
        encoded,
        scale=scale,
        merge=merge or Merge(),
        head=head,
        device=model.load_device,
        dtype=compute_dtype(model),
    )
    return install(model, plan, start_percent, end_percent, record)
