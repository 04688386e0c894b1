"""Noise on the text attention. The object relevance score is measured with it: change Z_text where the relevance places
an object, and see whether the picture changes there (arXiv 2409.17920; evaluation/relevance_score/score.py).

    Z_text + s · sd(Z_text) · w[n] ε        ε normal, independent over positions and channels

The weight w is 1 ("uniform") or proportional to the share Ã of one object ("relevance"). In both modes mean_n w² = 1:
they add the same energy. ε is a function of seed, site, step and picture. Both modes therefore add the same ε, a
picture's noise does not depend on its batch, and the device is never synchronised.

Only conditional rows get noise. The unconditional branch has the empty text, whose relevance is flat. Noise there would
change the whole picture alike in both modes and hide the effect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ..weights.sites import Site, SiteKey
from .merge import split_queries
from .options import Merge
from .relevance import raw_relevance, shares
from .shared_text import SharedText
from .site import RowGroup

NoiseMode = Literal["uniform", "relevance"]
MODES: tuple[str, ...] = get_args(NoiseMode)

WORD = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class NoiseSite:
    """One cross-attention site.

    key: the key of the site's random numbers.
    heads: number of heads.
    content_tokens, average: as in `SitePlan`; None for "uniform".
    """

    key: int
    heads: int
    content_tokens: Tensor | None = None
    average: Tensor | None = None

    def cast_like(self, q: Tensor) -> NoiseSite:
        """This site on q's device and in its dtype."""
        if self.content_tokens is None or self.average is None:
            return self
        if self.content_tokens.dtype == q.dtype and self.content_tokens.device == q.device:
            return self
        return replace(self, content_tokens=self.content_tokens.to(q), average=self.average.to(q.device))


@dataclass(frozen=True, eq=False)
class NoisePlan:
    """The noise for all sites.

    strength: in standard deviations of Z_text.
    target: index of the object whose relevance weighs the noise.
    noise_sites: by site key.
    """

    strength: float
    target: int
    noise_sites: Mapping[SiteKey, NoiseSite]


def compile_noise(
    sites: Sequence[Site],
    *,
    strength: float,
    seed: int,
    texts: Sequence[Tensor] = (),
    target: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> NoisePlan:
    """The noise plan of all sites.

    texts: M × [L_i, X], content tokens of all object texts, for "relevance"; empty for "uniform".
    strength, target: see `NoisePlan`.
    seed: 64 bits.
    """
    shared = SharedText(texts, torch.device(device), dtype) if texts else None
    plans = {}
    for site in sites:
        text = shared.for_site(site.heads, site.width // site.heads) if shared else (None, None)
        plans[site.key] = NoiseSite(int(random_bits(_signed(seed), torch.tensor(site.number))), site.heads, *text)
    return NoisePlan(strength, target, plans)


def add_noise(
    out: Tensor,
    z_text: Tensor,
    q: Tensor,
    plan: NoisePlan,
    site: NoiseSite,
    groups: Sequence[RowGroup],
    pictures: Tensor,
    step: Tensor,
    object_keys: Callable[[], Tensor],
) -> Tensor:
    """Add the noise to the conditional rows of `out` [B, N, C], in place.

    z_text: [B, N, C], Z_text; it may be `out` itself.
    q: [B, N, C], the queries.
    groups: the rows of the batch by treatment.
    pictures: [P], numbers of the pictures in the rows of one cond; B is a multiple of P.
    step: index of the sampling step, an integer tensor [1].
    object_keys: returns the UNet's own to_k of `site.content_tokens`, [L, C].
    """
    groups = [rows for rows in groups if rows.conditional]
    keys: Tensor | None = None
    if groups and site.content_tokens is not None:
        keys = object_keys().unflatten(-1, (site.heads, -1)).transpose(0, 1)  # [h, L, d], a view
    for rows in groups:
        clean = z_text[rows.slice].float()
        amount = plan.strength * clean.std((1, 2), correction=0, keepdim=True)  # [b, 1, 1]
        if keys is not None and site.average is not None:
            relevance = raw_relevance(split_queries(q[rows.slice], site.heads), keys, site.average, rows.length)
            amount = amount * relevance_weights(relevance, plan.target).unsqueeze(-1)  # [b, N, 1]
        numbers = pictures[torch.arange(rows.start, rows.stop, device=q.device) % len(pictures)]
        noise = normal(random_bits(random_bits(site.key, step), numbers), clean[0].numel())
        out[rows.slice] += (amount * noise.view_as(clean)).to(out.dtype)
    return out


def relevance_weights(relevance: Tensor, target: int) -> Tensor:
    """w [B, N], proportional to the target's share Ã, with mean square 1 over positions. relevance: A, [M, B, N]."""
    share = shares(relevance, Merge())[target]
    return share / share.square().mean(-1, keepdim=True).sqrt()


def random_bits(key: Tensor | int, index: Tensor) -> Tensor:
    """64 random bits: output number `index` of SplitMix64 (Steele, Lea and Flood 2014) seeded with `key`.

    The arguments broadcast. The result is int64; SplitMix64 is defined on uint64, and products wrap alike in both.
    A stateless generator gives the same numbers on every device and in any order. It also takes a step index that
    only the device knows.
    """
    bits = key + (index + 1) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, 31)


def normal(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers [B, count], float32, one stream per key [B], by the Box–Muller transform."""
    bits = random_bits(keys.unsqueeze(1), torch.arange((count + 1) // 2, device=keys.device))
    # 64 bits give two numbers of 32: one in (0, 1] for the radius, one for the angle.
    radius = (_shifted(bits, 32) + 1).float().mul_(2**-32).log_().mul_(-2).sqrt_()
    angle = (bits & WORD).float().mul_(math.tau * 2**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def _signed(number: int) -> int:
    """The int64 with the same bits as an unsigned number."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right: zeros come in from the left."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
