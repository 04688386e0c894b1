"""One cross-attention site: all equations of the method together.

image gate (official code):  Z = Z_text + Σ_i s w_i Ã_i g̃ Z_i        text gate (paper): Z = g̃ Z_text + Σ_i s w_i Ã_i Z_i
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .fusion_head import fusion_gate
from .merge import accumulate, concat_attention, log_region, object_attention, split_queries
from .plan import Plan, SitePlan
from .pool import PoolAccess
from .regions import Area
from .relevance import even_shares, frozen_shares, raw_relevance, shares


class SiteConstants(NamedTuple):
    """A plan's regions and frozen maps at one resolution: what does not depend on the queries.

    share: [M or 1, 1 or pictures, N], shares of conditional rows. None: they are measured, or folded into the values.
        With "concat", whose softmax is shared already: max_i r_i.
    null_share: [1 or M, 1 or pictures, N], share of unconditional rows, all objects together or each
        (`Plan.null_sets`). None: folded into the null values.
    region: [M, 1 or pictures, N], r_i, for a merge that depends on the queries. None: no regions.
    """

    share: Tensor | None = None
    null_share: Tensor | None = None
    region: Tensor | None = None

    @classmethod
    def from_plan(cls, plan: Plan, region: Tensor | None = None, frozen: Tensor | None = None) -> SiteConstants:
        """region: [M, 1 or pictures, N], frozen: [M + 1, pictures, N]; the plan's maps at the site's resolution."""
        share = None if frozen is None else frozen_shares(frozen, plan.merge, region)
        if region is None:
            return cls(share)
        flat = even_shares(plan.count, plan.merge, region)
        null_share = flat if plan.null_sets > 1 else (flat * plan.weights.to(flat)).sum(0, keepdim=True)
        if plan.is_concat:
            return cls(region.amax(0, keepdim=True), null_share, region)
        if frozen is None and not plan.needs_relevance:
            share = flat
        return cls(share, null_share, region)


class RowGroup(NamedTuple):
    """Consecutive rows of the batch that are treated alike.

    start, stop: the rows.
    conditional: the branch of guidance.
    constants: they are for one picture, or for as many as there are rows.
    area: the area of the canvas that the rows show.
    pool_access: for conditional rows of one cond, where the relevance is pooled.
    """

    start: int
    stop: int
    conditional: bool
    constants: SiteConstants = SiteConstants()
    area: Area = None
    pool_access: PoolAccess | None = None

    @property
    def slice(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def length(self) -> int:
        return self.stop - self.start


def fuse(
    out: Tensor,
    z_text: Tensor | None,
    q: Tensor,
    plan: Plan,
    site_plan: SitePlan,
    groups: Sequence[RowGroup],
    object_keys: Callable[[], Tensor],
    observe: Callable[[RowGroup, Tensor | None, Tensor | None], None] | None = None,
) -> Tensor:
    """Add the objects' image features to `out` [B, N, C] and return it.

    `out` is changed in place, unless the head gates the text: then the result is a new tensor.

    z_text: [B, N, C], Z_text, needed when the site has a head; it may be `out` itself.
    q: [B, N, C], the queries.
    groups: the rows of the batch by treatment.
    object_keys: returns the UNet's own to_k of `site_plan.content_tokens`, [L, C]. It is called only for conditional
        rows that need relevance.
    observe: called for conditional rows with (group, shares [M, b, N] or None, g̃ [b, N] or None).
    """
    gate = None
    if site_plan.head is not None:
        assert z_text is not None, "a site with a head needs the text attention"
        gate = fusion_gate(z_text, site_plan.head, plan.gate_strength)  # [B, N]
        if plan.gated == "text":
            out = out + (gate - 1).unsqueeze(-1).to(out.dtype) * z_text
    for group in groups:
        queries = split_queries(q[group.slice], site_plan.heads)
        measure = partial(_measured, queries, site_plan, object_keys, group.length)
        its_gate = None if gate is None else gate[group.slice]
        add_images(out[group.slice], queries, plan, site_plan, group, measure, observe, its_gate)
    return out


def add_images(
    out: Tensor,
    queries: Tensor,
    plan: Plan,
    site_plan: SitePlan,
    group: RowGroup,
    measure: Callable[[], Tensor],
    observe: Callable[[RowGroup, Tensor | None, Tensor | None], None] | None = None,
    gate: Tensor | None = None,
    text_length: int = 0,
) -> None:
    """Add Σ_i s w_i Ã_i Z_i, or with a gate on the images Σ_i s w_i Ã_i g̃ Z_i, to some rows `out` [b, P + N, C].

    queries: [h, d, b·(P + N)].
    measure: returns the site's relevance A [M, b, N]; called only for conditional rows that need it.
    observe: as in `fuse`.
    gate: g̃ [b, N].
    text_length: P, in front of the picture's, where text and picture attend together. A text position hears each
        object as much as the picture does on average.
    """
    share, null_share, region = group.constants
    columns = partial(_columns, rows=group.length, text_length=text_length)
    if group.conditional:
        if plan.needs_relevance:
            share = relevance_share(group, plan, measure)
        if observe is not None:
            observe(group, None if plan.is_concat else share, gate)
        keys, values, padding = site_plan.keys, site_plan.values, site_plan.padding_logits
        sets = 1 if plan.is_concat else plan.count
    else:
        keys, values, padding = site_plan.null_keys, site_plan.null_values, site_plan.null_padding_logits
        sets = plan.null_sets
        share = null_share
    if group.conditional and plan.is_concat and region is not None:
        attention = concat_attention(queries, keys, log_region(columns(region)))
    else:
        attention = object_attention(queries, keys, sets, padding)
    if gate is not None and plan.gated == "image":
        share = gate.unsqueeze(0) if share is None else share * gate.unsqueeze(0)
    if share is not None:
        attention = attention * columns(share).to(attention.dtype)
    accumulate(out, attention, values)


def relevance_share(group: RowGroup, plan: Plan, measure: Callable[[], Tensor]) -> Tensor:
    """Ã_i of conditional rows, [M, b, N]: from the pool where they have one, else from the site's own measure.

    measure: returns the site's relevance, [M, b, N].
    """
    if group.pool_access is not None:
        return group.pool_access.share(measure, plan, group.constants.region, group.length)
    return shares(measure(), plan.merge, group.constants.region)


def _measured(queries: Tensor, site_plan: SitePlan, object_keys: Callable[[], Tensor], rows: int) -> Tensor:
    """The site's own relevance, [M, rows, N]."""
    keys = object_keys().unflatten(-1, (site_plan.heads, -1)).transpose(0, 1)  # [h, L, d], a view
    return raw_relevance(queries, keys, site_plan.average, rows)


def _columns(maps: Tensor, rows: int, text_length: int) -> Tensor:
    """[M or 1, b or 1, N] -> [M or 1, 1, b·(P + N)], the layout of the attention."""
    maps = maps.expand(-1, rows, -1)
    if text_length:
        maps = torch.cat([maps.mean(-1, keepdim=True).expand(-1, -1, text_length), maps], -1)
    return maps.flatten(1).unsqueeze(1)
