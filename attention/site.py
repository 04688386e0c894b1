"""One cross-attention site: the equations of the method put together (step 6).

image gate (official code):  Z = Z_text + Σ_i s w_i Ã_i g̃ Z_i        text gate (paper): Z = g̃ Z_text + Σ_i s w_i Ã_i Z_i
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from .area import Area
from .fusion_head import fusion_gate
from .merge import accumulate, block_attention, joint_attention, split_queries
from .plan import Plan, SitePlan
from .relevance import flat_shares, frozen_shares, raw_relevance, shares


class Rows(NamedTuple):
    """Consecutive rows of the batch that are treated alike: one branch of guidance, one area of the canvas.

    region [M, 1, N] and frozen [M + 1, 1 or rows, N] are the plan's maps at this site's resolution.
    """

    start: int
    stop: int
    conditional: bool
    region: Tensor | None = None
    area: Area = None
    frozen: Tensor | None = None

    @property
    def at(self) -> slice:
        return slice(self.start, self.stop)

    @property
    def length(self) -> int:
        return self.stop - self.start


def fuse(
    out: Tensor,
    text: Tensor | None,
    q: Tensor,
    plan: Plan,
    site: SitePlan,
    parts: Sequence[Rows],
    object_keys: Callable[[], Tensor],
    observe: Callable[[Rows, Tensor | None, Tensor | None], None] | None = None,
) -> Tensor:
    """Add the objects' image features to `out` [B, N, C], in place.

    text [B, N, C] is Z_text, needed when the site has a head; it may be `out` itself. q [B, N, C] are the queries.
    object_keys() gives the UNet's own to_k of `site.object_text`, [L, C]; it is called at most once, and only when a
    conditional row needs relevance. observe(rows, shares [M, B, N] or None, g̃ [B, N] or None) sees the conditional
    ones.
    """
    gate = image_gate = None
    if site.head is not None:
        assert text is not None, "a site with a head needs the text attention"
        gate = fusion_gate(text, site.head, plan.gate_strength)  # [B, N]
        if plan.gate == "text":
            out = out + (gate - 1).unsqueeze(-1).to(out.dtype) * text
        else:
            image_gate = gate
    keys: Tensor | None = None
    for rows in parts:
        queries = split_queries(q[rows.at], site.heads)
        if rows.conditional:
            if plan.needs_relevance and keys is None:
                keys = object_keys().unflatten(-1, (site.heads, -1)).transpose(0, 1)  # [h, L, d], a view
            share = _object_shares(queries, keys, plan, site, rows)
            if observe is not None:
                observe(rows, share, None if gate is None else gate[rows.at])
            if plan.joint and rows.region is not None:
                attention = joint_attention(queries, site.keys, rows.region.repeat(1, 1, rows.length))
            else:
                attention = block_attention(queries, site.keys, 1 if plan.joint else plan.objects)
            values = site.values
        else:
            share = None
            if rows.region is not None:
                share = (flat_shares(plan.objects, plan.merge, rows.region) * plan.weights).sum(0, keepdim=True)
            attention = block_attention(queries, site.null_keys, 1)
            values = site.null_values
        share = _times(share, None if image_gate is None else image_gate[rows.at])
        if share is not None:
            share = share.expand(-1, rows.length, -1).flatten(1).unsqueeze(1)  # [M or 1, 1, B·N]
            attention = attention * share.to(attention.dtype)
        accumulate(out[rows.at], attention, values)
    return out


def _object_shares(queries: Tensor, keys: Tensor | None, plan: Plan, site: SitePlan, rows: Rows) -> Tensor | None:
    """[M, B or 1, N], or None where the shares are constants that the plan has folded into the values."""
    if rows.frozen is not None:
        return frozen_shares(rows.frozen, plan.merge, rows.region)
    if plan.needs_relevance and keys is not None:
        relevance = raw_relevance(queries, keys, site.average, rows.length)
        return shares(relevance, plan.merge, rows.region)
    if rows.region is not None and not plan.joint:
        return flat_shares(plan.objects, plan.merge, rows.region)
    return None


def _times(share: Tensor | None, gate: Tensor | None) -> Tensor | None:
    if share is None or gate is None:
        return share if gate is None else gate.unsqueeze(0)
    return share * gate
