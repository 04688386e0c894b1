"""Random sites, to compare the pack's equations with the definition on the same numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from mip_adapter.attention.block_strength import BlockStrength
from mip_adapter.attention.ease import Ease
from mip_adapter.attention.options import FusionHead, Merge
from mip_adapter.attention.plan import EncodedReferences, Plan, compile_plans
from mip_adapter.attention.site import RowGroup, SiteConstants, fuse
from mip_adapter.weights.adapter import Adapter, SiteWeights
from mip_adapter.weights.sites import Site
from torch import Tensor

from .direct import Direct

KEY = ("input", 4, 0)


@dataclass(frozen=True)
class Case:
    """A random site with M objects of T tokens, N positions, h heads of width d and context width X."""

    seed: int = 0
    objects: int = 2
    tokens: int = 4
    positions: int = 12
    heads: int = 2
    width: int = 8
    context: int = 6
    sharp: float = 1.0  # factor of the queries
    merge: Merge = field(default_factory=Merge)
    gate: str = "image"
    strength: float = 1.0
    scale: float = 0.75
    regional: bool = False
    weights: tuple[float, ...] | None = None
    order: tuple[int, ...] | None = None
    blocks: tuple[BlockStrength, ...] = ()
    eases: tuple[Ease, ...] = ()
    moment: float = 0.0  # the fraction of the sampling, for the eases
    own_nulls: str = ""  # "same" or "different" null tokens for each object; empty: one set for all
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def numbers(self) -> dict[str, Any]:
        """All tensors of the site. `order` permutes the objects."""
        g = torch.Generator().manual_seed(self.seed)
        make = lambda *shape: torch.randn(shape, generator=g)  # noqa: E731
        channels, x, m = self.heads * self.width, self.context, self.objects
        data = {
            "q": make(2, self.positions, channels) * self.sharp, "text": make(2, self.positions, channels),
            "to_k": make(channels, x), "to_k_ip": make(channels, x), "to_v_ip": make(channels, x),
            "head": make(channels), "null": make(self.tokens, x), "tokens": [make(self.tokens, x) for _ in range(m)],
            "texts": [make(1 + i % 3, x) for i in range(m)],
            "weights": self.weights or tuple((torch.rand(m, generator=g) * 3).tolist()),
            "regions": torch.rand(m, self.positions, generator=g) * (torch.rand(m, self.positions, generator=g) > 0.3),
        }  # fmt: skip
        for name in ("tokens", "texts", "weights", "regions") if self.order else ():
            data[name] = [data[name][i] for i in self.order or ()]
        return data

    def plan(self) -> tuple[Plan, Any]:
        data = self.numbers()
        head = data["head"] / data["head"].norm()
        adapter = Adapter("random", None, {}, {1: SiteWeights(data["to_k_ip"], data["to_v_ip"], head)})  # type: ignore
        null = data["null"]
        if self.own_nulls:
            null = torch.stack([null + i * (self.own_nulls == "different") for i in range(self.objects)])
        references = EncodedReferences(
            tuple(map(str, range(self.objects))), torch.stack(data["tokens"]), null, tuple(data["texts"]),
            tuple(data["weights"]), torch.ones(self.objects, 1, 1) if self.regional else None,
            blocks=self.blocks, eases=self.eases,
        )  # fmt: skip
        site = Site(KEY, 1, self.heads * self.width, self.heads, self.context)
        (plan,) = compile_plans(
            [adapter], (site,), [references], scale=self.scale, merge=self.merge,
            head=FusionHead({1: head}, self.gate, self.strength), device=torch.device(self.device), dtype=self.dtype,
        )  # fmt: skip
        site = plan.site_plans.get(KEY)
        if site is not None and self.eases:
            site = site.eased(*plan.ease_factors(torch.tensor([self.moment])))
        return plan, site

    def fused(self, conditional: tuple[bool, ...] = (True, True)) -> Tensor:
        """Z of both rows, computed by the pack."""
        data, (plan, site) = self.numbers(), self.plan()
        given = SiteConstants.from_plan(
            plan, torch.stack(list(data["regions"])).unsqueeze(1) if self.regional else None
        )
        q, text, to_k = (data[name].to(self.dtype) for name in ("q", "text", "to_k"))
        parts = [RowGroup(i, i + 1, c, given) for i, c in enumerate(conditional)]
        if len(set(conditional)) == 1:
            parts = [RowGroup(0, len(conditional), conditional[0], given)]
        rows = slice(0, len(conditional))
        return fuse(text[rows].clone(), text[rows], q[rows], plan, site, parts, lambda: site.content_tokens @ to_k.T)

    def defined(self, conditional: tuple[bool, ...] = (True, True)) -> Tensor:
        """Z of both rows, computed from the definition."""
        data = self.numbers()
        direct = Direct(
            data["tokens"], data["null"], data["texts"], data["weights"], {1: data["to_k_ip"]}, {1: data["to_v_ip"]},
            {1: data["head"] / data["head"].norm()}, scale=self.scale, gate=self.gate, strength=self.strength,
            strategy=self.merge.strategy, normalization=self.merge.normalization, background=self.merge.background,
            sharpness=self.merge.sharpness, unclaimed=self.merge.unclaimed,
        )  # fmt: skip
        regions = torch.stack(list(data["regions"])).double().numpy() if self.regional else None
        rows = zip(data["q"], data["text"], conditional, strict=False)
        return torch.stack([direct.row(q, z, data["to_k"], 1, self.heads, c, regions) for q, z, c in rows])


def close(got: Tensor, expected: Tensor, tolerance: float = 2e-4) -> None:
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)
