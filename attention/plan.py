"""The plan: everything the references contribute to every site, computed once and never changed.

Keys and values of the image tokens depend on references and adapter only, not on the UNet, the step or a LoRA. So they
are compiled when the references are applied (4 MB for two base objects on SDXL) and the adapter itself is needed by
nobody while pictures are made. Constant factors (1/√d, scale, object weight, 1/M) are folded in, so that they cost
nothing per step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..weights.adapter import Adapter
from ..weights.sites import Site, SiteKey
from .options import FusionHead, Merge
from .relevance import flat_shares


@dataclass(frozen=True, eq=False)
class References:
    """References as the method sees them: M objects, T image tokens each, X the width of the text context.

    tokens [M, T, X]; null_tokens [T, X], the unconditional branch's; texts M × [L_i, X], the content tokens of each
    object's text encoded on its own; weights [M]; regions [M, H, W] in 0..1 on the whole canvas, or None; frozen
    [M + 1, pictures, H, W], shares recorded by an earlier sampling, the last one nobody's, or None: measured.
    """

    names: tuple[str, ...]
    tokens: Tensor
    null_tokens: Tensor
    texts: tuple[Tensor, ...]
    weights: tuple[float, ...]
    regions: Tensor | None = None
    frozen: Tensor | None = None

    def only(self, objects: Sequence[int], confined: Sequence[int]) -> References:
        """Some of the objects; regions hold only for the confined among them."""
        regions = None if self.regions is None else self.regions.clone()
        if regions is not None:
            regions[[i for i in range(len(regions)) if i not in confined]] = 1
            regions = regions[list(objects)]
        return replace(
            self,
            names=tuple(self.names[i] for i in objects),
            tokens=self.tokens[list(objects)],
            texts=tuple(self.texts[i] for i in objects),
            weights=tuple(self.weights[i] for i in objects),
            regions=None if regions is None or bool((regions == 1).all()) else regions,
            frozen=None if self.frozen is None else self.frozen[[*objects, len(self.names)]],
        )


@dataclass(frozen=True, eq=False)
class SitePlan:
    """One cross-attention: h heads of width d.

    keys [h, M·T, d] and null_keys [h, T, d] are divided by sqrt(d); values and null_values of the same shapes carry
    scale, object weights and constant shares; head [C] or None. object_text [L, X], all objects' content tokens over
    sqrt(d), and average [M, h·L] (see `raw_relevance`) are shared by all sites of the same head layout.
    """

    heads: int
    keys: Tensor
    values: Tensor
    null_keys: Tensor
    null_values: Tensor
    head: Tensor | None
    object_text: Tensor
    average: Tensor

    def like(self, q: Tensor) -> SitePlan:
        """On q's device and in its dtype: itself, unless the model runs elsewhere than it was compiled for."""
        if self.keys.dtype == q.dtype and self.keys.device == q.device:
            return self
        names = ("keys", "values", "null_keys", "null_values", "head", "object_text")
        moved = {name: tensor.to(q) for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **moved, average=self.average.to(q.device))


@dataclass(frozen=True, eq=False)
class Plan:
    """References compiled for all sites, shared by all patches of a model and never changed.

    names: the M object texts; gate and gate_strength: the fusion head's (see `FusionHead`), its rows lie with the
    sites; weights [M, 1, 1] float32, the objects' own: folded into the values, but with regions the unconditional
    branch needs them beside its one set of values; regions [M, H, W] and frozen [M + 1, pictures, H, W]: as in
    `References`, float32, on the CPU: sites see little of them (`SiteConstants`).
    """

    names: tuple[str, ...]
    merge: Merge
    gate: str
    gate_strength: float
    weights: Tensor
    regions: Tensor | None
    sites: Mapping[SiteKey, SitePlan]
    frozen: Tensor | None = None

    @property
    def objects(self) -> int:
        return len(self.names)

    @property
    def needs_relevance(self) -> bool:
        """Whether the sites measure it: not where the shares are constants or come from frozen maps."""
        return self.frozen is None and self.merge.needs_relevance(self.objects)

    @property
    def share_sum(self) -> float:
        """What the shares of a position add up to where objects claim all of it."""
        return self.objects if (self.merge.strategy, self.merge.normalization) == ("relevance", "mean") else 1.0

    @property
    def is_concat(self) -> bool:
        return self.merge.strategy == "concat"


def compile_plan(
    adapter: Adapter,
    sites: Sequence[Site],
    references: References,
    *,
    scale: float,
    merge: Merge,
    head: FusionHead,
    device: torch.device,
    dtype: torch.dtype,
) -> Plan:
    """Project the references through every site's to_k_ip and to_v_ip, in float32 on `device`; keep them as `dtype`."""
    several = compile_plans(
        adapter, sites, [references], scale=scale, merge=merge, head=head, device=device, dtype=dtype
    )
    return several[0]


def compile_plans(
    adapter: Adapter,
    sites: Sequence[Site],
    several: Sequence[References],
    *,
    scale: float,
    merge: Merge,
    head: FusionHead,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Plan]:
    """`compile_plan` for several sets of references. Every site's weights travel to `device` once, and only one site's
    are there at a time."""
    drafts = [_PlanBuilder(references, scale, merge, head, device, dtype) for references in several]
    for site in sites:
        weight = adapter.sites[site.number]
        to_k = weight.to_k.to(device, torch.float32)
        to_v = weight.to_v.to(device, torch.float32)
        row = head.weights[site.number].to(device, dtype) if head.active else None
        for draft in drafts:
            draft.add(site, to_k, to_v, row)
    return [draft.plan() for draft in drafts]


class _PlanBuilder:
    """A plan in the making, site by site."""

    def __init__(
        self,
        references: References,
        scale: float,
        merge: Merge,
        head: FusionHead,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.references, self.merge, self.head, self.device, self.dtype = references, merge, head, device, dtype
        self.shared = SharedText(references.texts, device, dtype)
        self.tokens = references.tokens.to(device, torch.float32).flatten(0, 1)  # [M·T, X]
        self.null = references.null_tokens.to(device, torch.float32)
        self.weights = torch.tensor(references.weights, device=device, dtype=torch.float32).view(-1, 1, 1)
        value_scale, self.null_scale = _constant_factors(self.weights, scale, merge, references)
        self.per_token = value_scale.expand(-1, references.tokens.shape[1], -1).reshape(-1, 1)  # [M·T, 1]
        self.sites: dict[SiteKey, SitePlan] = {}

    def add(self, site: Site, to_k: Tensor, to_v: Tensor, row: Tensor | None) -> None:
        width = site.width // site.heads

        def heads_first(flat: Tensor) -> Tensor:  # [tokens, C] -> [h, tokens, d]
            return flat.unflatten(-1, (site.heads, -1)).transpose(0, 1).to(self.dtype).contiguous()

        object_text, average = self.shared.for_site(site.heads, width)
        self.sites[site.key] = SitePlan(
            heads=site.heads,
            keys=heads_first(self.tokens @ to_k.T * width**-0.5),
            values=heads_first(self.tokens @ to_v.T * self.per_token),
            null_keys=heads_first(self.null @ to_k.T * width**-0.5),
            null_values=heads_first(self.null @ to_v.T * self.null_scale),
            head=row,
            object_text=object_text,
            average=average,
        )

    def plan(self) -> Plan:
        def kept(maps: Tensor | None) -> Tensor | None:
            return None if maps is None else maps.to("cpu", torch.float32)

        return Plan(
            self.references.names,
            self.merge,
            self.head.gate,
            self.head.strength,
            self.weights,
            kept(self.references.regions),
            self.sites,
            kept(self.references.frozen),
        )


def _constant_factors(weights: Tensor, scale: float, merge: Merge, references: References) -> tuple[Tensor, Tensor]:
    """What can be folded into the values [M, 1, 1] and into the null values (one number).

    Shares that do not vary over positions are constants: all but relevance for the objects, and every strategy for the
    unconditional branch, where the empty text prefers no position. With regions all of them vary, and nothing folds.
    """
    objects = weights.shape[0]
    if references.regions is not None:
        return weights * scale, weights.new_tensor(scale)
    share = flat_shares(objects, merge).to(weights)
    null_scale = scale * (weights * share).sum()
    # "concat" is one softmax over all tokens: its probabilities are the shares already.
    varies = merge.strategy == "concat" or merge.needs_relevance(objects) or references.frozen is not None
    return (weights * scale if varies else weights * share * scale), null_scale


class SharedText:
    """Object texts scaled for a head width, and averaging matrices for a number of heads: a UNet has few distinct."""

    def __init__(self, texts: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self._text = torch.cat([text.to(device, torch.float32) for text in texts])  # [L, X]
        self._counts = [text.shape[0] for text in texts]
        self._dtype = dtype
        self._made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def for_site(self, heads: int, width: int) -> tuple[Tensor, Tensor]:
        """For h heads of width d: all texts over sqrt(d) [L, X] in the plan's dtype, and average [M, h·L] float32,
        which is 1 / (h L_i) on the tokens of object i in every head (see `raw_relevance`)."""
        if (heads, width) not in self._made:
            # to_k is linear without bias: dividing the text by sqrt(d) divides the keys, once instead of at every step.
            text = (self._text * width**-0.5).to(self._dtype)
            rows = torch.zeros(len(self._counts), sum(self._counts))
            start = 0
            for i, count in enumerate(self._counts):
                rows[i, start : start + count] = 1.0 / (count * heads)
                start += count
            self._made[heads, width] = text, rows.repeat(1, heads).to(self._text.device)
        return self._made[heads, width]
