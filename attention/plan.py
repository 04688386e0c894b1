"""The plan: everything the references contribute to every site, computed once and never changed.

Keys and values of the image tokens depend on the references and the adapter, not on the UNet, the step or a LoRA. They
are compiled when the references are applied (4 MB for two base objects on SDXL). Sampling does not need the adapter
itself. Constant factors (1/√d, scale, object weight, strength at the block, 1/M) are folded in and cost nothing
per step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..weights.adapter import Adapter, SiteWeights
from ..weights.sites import Site, SiteKey
from .block_strength import BlockStrength
from .ease import STEADY, Ease
from .merge import NEVER
from .options import FusionHead, Merge
from .relevance import even_shares
from .shared_text import SharedText


@dataclass(frozen=True, eq=False)
class EncodedReferences:
    """Encoded references: M objects, T image tokens each, X the width of the text context.

    names: the M object texts.
    tokens: [M, T, X], image tokens.
    null_tokens: [T, X], image tokens of the unconditional branch; [M, T, X] where each object has its own.
    content_tokens: M × [L_i, X], of each object text, encoded on its own; L_i is 0 for a style.
    weights: the M objects' weights.
    regions: [M, 1 or pictures, H, W] in 0..1 over the whole canvas, or None.
    frozen: [M + 1, pictures, H, W], shares recorded by an earlier sampling, the last one unclaimed. None: the shares
        are measured.
    blocks: the M objects' strength by block, None where it is 1; () where it is 1 for all.
    eases: the M objects' strength over time; () where it is steady for all.
    adapters: those that project the tokens, each once.
    adapter_numbers: the M objects' adapters as indices into these; () where there is only one.
    padding: how many of each object's T tokens, at their end, are padding, M numbers; () where none is.
    null_padding: the same of the null tokens: M numbers, or one where all objects share them.
    """

    names: tuple[str, ...]
    tokens: Tensor
    null_tokens: Tensor
    content_tokens: tuple[Tensor, ...]
    weights: tuple[float, ...]
    regions: Tensor | None = None
    frozen: Tensor | None = None
    blocks: tuple[BlockStrength | None, ...] = ()
    eases: tuple[Ease, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    adapter_numbers: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    null_padding: tuple[int, ...] = ()

    @property
    def needs_own_nulls(self) -> bool:
        """Whether the unconditional branch needs image tokens for each object, since one set cannot serve all.

        So it is where objects have tokens of their own there, or vary over time in different ways. With regions the
        objects' parts of it vary over positions; where their strengths also vary over blocks, the parts cannot be added
        up for all sites at once.
        """
        strengths = [None if each is None else each.strengths for each in self.blocks]
        blocks_differ = any(each != strengths[0] for each in strengths)
        return (
            self.null_tokens.ndim == 3
            or any(each != self.eases[0] for each in self.eases)
            or (self.regions is not None and blocks_differ)
        )

    def strengths_at(self, key: SiteKey) -> tuple[float, ...]:
        """The M objects' strengths at a site."""
        blocks = self.blocks or (None,) * len(self.names)
        return tuple(1.0 if each is None else each.at(key) for each in blocks)

    def only(self, objects: Sequence[int], confined: Sequence[int]) -> EncodedReferences:
        """The references of these objects (indices). Regions hold only for those that are also in `confined`."""
        own_nulls = self.null_tokens.ndim == 3
        nulls = self.null_tokens[list(objects)] if own_nulls else self.null_tokens
        regions = None if self.regions is None else self.regions.clone()
        if regions is not None:
            regions[[i for i in range(len(regions)) if i not in confined]] = 1
            regions = regions[list(objects)]

        def of_these(values: tuple) -> tuple:
            return tuple(values[i] for i in objects) if values else ()

        eases = of_these(self.eases)
        return replace(
            self,
            names=of_these(self.names),
            tokens=self.tokens[list(objects)],
            null_tokens=nulls[0] if own_nulls and len(objects) == 1 else nulls,
            content_tokens=of_these(self.content_tokens),
            weights=of_these(self.weights),
            regions=None if regions is None or bool((regions == 1).all()) else regions,
            frozen=None if self.frozen is None else self.frozen[[*objects, len(self.names)]],
            blocks=of_these(self.blocks),
            eases=eases if any(each.kind != STEADY for each in eases) else (),
            adapter_numbers=of_these(self.adapter_numbers),
            padding=of_these(self.padding),
            null_padding=of_these(self.null_padding) if own_nulls else self.null_padding,
        )


@dataclass(frozen=True, eq=False)
class SitePlan:
    """One cross-attention site: h heads of width d.

    keys, null_keys: [h, M·T, d] and [h, T or M·T, d] (see `Plan.null_sets`), divided by sqrt(d).
    values, null_values: same shapes; scale, object weights, strengths at the block and constant shares are folded
        in.
    head: [C], the fusion head's row, or None.
    content_tokens: [L, X], of all objects, divided by sqrt(d); the UNet's own to_k makes keys of them.
    average: [M, h·L], see `raw_relevance`.
    padding_logits, null_padding_logits: [M·T, 1] and [T or M·T, 1], see `object_attention`.

    Sites with the same heads and width share content_tokens and average, all sites the padding.
    """

    heads: int
    keys: Tensor
    values: Tensor
    null_keys: Tensor
    null_values: Tensor
    head: Tensor | None
    content_tokens: Tensor
    average: Tensor
    padding_logits: Tensor | None = None
    null_padding_logits: Tensor | None = None

    def eased(self, per_token: Tensor, per_null: Tensor) -> SitePlan:
        """This site at one moment, see `Plan.ease_factors`."""
        values, null_values = self.values * per_token.to(self.values), self.null_values * per_null.to(self.values)
        return replace(self, values=values, null_values=null_values)

    def cast_like(self, q: Tensor) -> SitePlan:
        """This site on q's device and in its dtype; itself when it was compiled for them."""
        if self.keys.dtype == q.dtype and self.keys.device == q.device:
            return self
        names = (
            "keys",
            "values",
            "null_keys",
            "null_values",
            "head",
            "content_tokens",
            "padding_logits",
            "null_padding_logits",
        )
        moved = {name: tensor.to(q) for name in names if (tensor := getattr(self, name)) is not None}
        return replace(self, **moved, average=self.average.to(q.device))


@dataclass(frozen=True, eq=False)
class Plan:
    """References compiled for all sites. All patches of a model share it; it never changes.

    names: the M object texts.
    merge: how the objects' image features are merged.
    gated, gate_strength: see `FusionHead`; the head's rows are in `site_plans`.
    weights: [M, 1, 1] float32, the objects' weights. They are folded into the values. With regions the unconditional
        branch also needs them here, because it has one set of values for all objects.
    regions: [M, 1 or pictures, H, W], as in `EncodedReferences`; float32 on the CPU.
    site_plans: by site key, without those where no object has any strength.
    frozen: [M + 1, pictures, H, W], as in `EncodedReferences`; float32 on the CPU. `SiteConstants` holds what a site
        needs of regions and frozen.
    null_sets: 1 where all objects share one set of null tokens, M where each has its own.
    eases: as in `EncodedReferences`.
    """

    names: tuple[str, ...]
    merge: Merge
    gated: str
    gate_strength: float
    weights: Tensor
    regions: Tensor | None
    site_plans: Mapping[SiteKey, SitePlan]
    frozen: Tensor | None = None
    null_sets: int = 1
    eases: tuple[Ease, ...] = ()

    @property
    def count(self) -> int:
        """M, the number of objects."""
        return len(self.names)

    @property
    def needs_relevance(self) -> bool:
        """Whether sites measure relevance. They do not if the shares are constant or come from frozen maps."""
        return self.frozen is None and self.merge.needs_relevance(self.count)

    @property
    def is_pooled(self) -> bool:
        """Whether all sites read one relevance."""
        return self.needs_relevance and self.merge.measure == "pool"

    @property
    def share_sum(self) -> float:
        """The sum of the shares at a position that the objects claim completely."""
        return self.count if (self.merge.strategy, self.merge.normalization) == ("relevance", "mean") else 1.0

    @property
    def is_concat(self) -> bool:
        return self.merge.strategy == "concat"

    def ease_factors(self, fraction: Tensor) -> tuple[Tensor, Tensor]:
        """Factors of the values and null values of every site, [M·T, 1] and [T or M·T, 1], at a fraction [1] of the
        sampling on the device.

        Null values are shared only where all objects ease alike (`needs_own_nulls`): the first factor stands for all.
        """
        token_count = next(iter(self.site_plans.values())).keys.shape[1] // self.count
        factors = torch.cat([ease.at(fraction) for ease in self.eases])  # [M]
        by_set = factors, factors[: self.null_sets]
        values, nulls = (each.repeat_interleave(token_count).unsqueeze(1) for each in by_set)
        return values, nulls


def compile_plans(
    adapters: Sequence[Adapter],
    sites: Sequence[Site],
    reference_sets: Sequence[EncodedReferences],
    *,
    scale: float,
    merge: Merge,
    head: FusionHead,
    device: torch.device,
    dtype: torch.dtype,
) -> list[Plan]:
    """Project references through every site's to_k_ip and to_v_ip: a plan for each of several sets of them.

    adapters: `EncodedReferences.adapters`, the same for all sets.

    The projection runs in float32 on `device`; the result is stored as `dtype`. Each site's weights are moved there
    once, and only one site's weights are there at a time.
    """
    builders = [_PlanBuilder(references, scale, merge, head, device, dtype) for references in reference_sets]
    for site in sites:
        site_weights = [adapter.site_weights[site.number].on(device) for adapter in adapters]
        head_row = head.weights[site.number].to(device, dtype) if head.active else None
        for builder in builders:
            builder.add(site, site_weights, head_row)
    return [builder.plan() for builder in builders]


class _PlanBuilder:
    """Builds a plan site by site."""

    def __init__(
        self,
        references: EncodedReferences,
        scale: float,
        merge: Merge,
        head: FusionHead,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.references, self.merge, self.head, self.device, self.dtype = references, merge, head, device, dtype
        self.shared = SharedText(references.content_tokens, device, dtype)
        self.tokens = references.tokens.to(device, torch.float32).flatten(0, 1)  # [M·T, X]
        self.scale = scale
        self.null_sets = len(references.names) if references.needs_own_nulls else 1
        null = references.null_tokens.to(device, torch.float32)
        sets = null if null.ndim == 3 else null.expand(self.null_sets, -1, -1)
        self.null = sets.flatten(0, 1)  # [T or M·T, X]
        null_padding = references.null_padding if null.ndim == 3 else references.null_padding * self.null_sets
        self.padding_logits, self.null_padding_logits = (
            _padding_logits(each, sets.shape[1], device, dtype) for each in (references.padding, null_padding)
        )
        self.object_weights = torch.tensor(references.weights, device=device, dtype=torch.float32).view(-1, 1, 1)
        self.site_plans: dict[SiteKey, SitePlan] = {}

    def _keys_values(self, tokens: Tensor, site_weights: Sequence[SiteWeights], heads: int) -> tuple[Tensor, Tensor]:
        """Keys and values [M·T, C] of tokens [M·T, X], by their objects' adapters. site_weights: as for `add`."""
        numbers = self.references.adapter_numbers or (0,)
        if len(set(numbers)) == 1:
            return site_weights[numbers[0]].keys_values(tokens, heads)
        by_object = tokens.unflatten(0, (len(numbers), -1))  # [M, T, X]
        each = [site_weights[i].keys_values(its, heads) for its, i in zip(by_object, numbers, strict=True)]
        keys, values = zip(*each, strict=True)
        return torch.cat(keys), torch.cat(values)

    def add(self, site: Site, site_weights: Sequence[SiteWeights], head_row: Tensor | None) -> None:
        """Compile one site, unless every object's strength is 0 there.

        site_weights: of every adapter at this site, float32 on the device.
        head_row: [C], or None.
        """
        head_width = site.width // site.heads
        strengths = self.references.strengths_at(site.key)
        if not any(strengths):
            return
        at_site = self.object_weights.new_tensor(strengths).view(-1, 1, 1)
        factors = _constant_factors(self.object_weights, at_site, self.scale, self.merge, self.references)
        token_count = self.references.tokens.shape[1]
        # [M·T, 1], and [T or M·T, 1]
        per_token, per_null = (each.expand(-1, token_count, -1).reshape(-1, 1) for each in factors)

        def heads_first(flat: Tensor) -> Tensor:  # [tokens, C] -> [h, tokens, d]
            return flat.unflatten(-1, (site.heads, -1)).transpose(0, 1).to(self.dtype).contiguous()

        content_tokens, average = self.shared.for_site(site.heads, head_width)
        keys, values = self._keys_values(self.tokens, site_weights, site.heads)
        null_keys, null_values = self._keys_values(self.null, site_weights, site.heads)
        self.site_plans[site.key] = SitePlan(
            heads=site.heads,
            keys=heads_first(keys * head_width**-0.5),
            values=heads_first(values * per_token),
            null_keys=heads_first(null_keys * head_width**-0.5),
            null_values=heads_first(null_values * per_null),
            head=head_row,
            content_tokens=content_tokens,
            average=average,
            padding_logits=self.padding_logits,
            null_padding_logits=self.null_padding_logits,
        )

    def plan(self) -> Plan:
        def on_cpu(maps: Tensor | None) -> Tensor | None:
            return None if maps is None else maps.to("cpu", torch.float32)

        return Plan(
            names=self.references.names,
            merge=self.merge,
            gated=self.head.gated,
            gate_strength=self.head.strength,
            weights=self.object_weights,
            regions=on_cpu(self.references.regions),
            site_plans=self.site_plans,
            frozen=on_cpu(self.references.frozen),
            null_sets=self.null_sets,
            eases=self.references.eases,
        )


def _padding_logits(
    padding: Sequence[int], token_count: int, device: torch.device, dtype: torch.dtype
) -> Tensor | None:
    """[sets·T, 1], see `object_attention`; None without padding. padding: of each set, see `EncodedReferences`."""
    if not any(padding):
        return None
    ends = torch.tensor([token_count - each for each in padding]).unsqueeze(1)
    beyond = torch.arange(token_count) >= ends  # [sets, T]
    return (beyond * NEVER).view(-1, 1).to(device, dtype)


def _constant_factors(
    weights: Tensor, strengths: Tensor, scale: float, merge: Merge, references: EncodedReferences
) -> tuple[Tensor, Tensor]:
    """Factors to fold into the values ([M, 1, 1]) and into the null values ([1 or M, 1, 1], see `Plan.null_sets`).

    weights, strengths: [M, 1, 1], the objects' own, the latter at the site.

    Weight, strength and scale are always folded. So is a share that does not vary over positions; one that does
    multiplies the probabilities, from `SiteConstants` or measured:

                                            without regions             with regions
        "uniform", "sum", a lone object¹    folded                      SiteConstants.share
        "relevance"                         measured                    measured
        "concat"                            in its softmax              in its softmax, and SiteConstants.share
        frozen maps                         SiteConstants.share         SiteConstants.share
        null values                         folded²                     SiteConstants.null_share

    ¹ of "relevance" without background and unclaimed
    ² The empty text prefers no position, so these shares are constant. One set for all objects has their sum.

    One set of null values serves all objects only where they have the same strength at every site (`needs_own_nulls`).
    With regions the first object's strength then stands for all, and the weights are in `SiteConstants.null_share`.
    """
    objects = weights.shape[0]
    if references.regions is not None:
        values = weights * strengths * scale
        return values, (values if references.needs_own_nulls else strengths[:1] * scale)
    weights = weights * strengths
    share = even_shares(objects, merge).to(weights)
    own_nulls = weights * share * scale
    null_scale = own_nulls if references.needs_own_nulls else (scale * (weights * share).sum()).view(1, 1, 1)
    # "concat" is one softmax over all tokens: its probabilities already contain the shares.
    varies = merge.strategy == "concat" or merge.needs_relevance(objects) or references.frozen is not None
    return (weights * scale if varies else weights * share * scale), null_scale
