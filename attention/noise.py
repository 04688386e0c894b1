"""Noise on the text attention, what the object relevance score is measured with: change Z_text where an object is said
to be, and see whether the picture changes there (arXiv 2409.17920; evaluation/relevance_score/score.py).

    Z_text + s · sd(Z_text) · w[n] ε        ε normal, independent over positions and channels

w = 1 ("uniform"), or in proportion to the share Ã of one object ("relevance"); mean_n w² = 1, so that both add the same
energy. ε follows from the seed, the site, the step and the row alone: both modes add the same ε, a picture's noise does
not depend on the batch around it, and nothing waits for the device.

Only conditional rows get noise. The unconditional branch has the empty text, whose relevance is flat: noise there would
change the whole picture alike in both modes and hide what is measured.
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
from .plan import SharedText
from .relevance import raw_relevance, shares
from .site import RowGroup

NoiseMode = Literal["uniform", "relevance"]
MODES: tuple[str, ...] = get_args(NoiseMode)

WORD = 0xFFFFFFFF


@dataclass(frozen=True, eq=False)
class NoiseSite:
    """One cross-attention: key of its random numbers; object_text and average as in `SitePlan`, None for "uniform"."""

    key: int
    heads: int
    object_text: Tensor | None = None
    average: Tensor | None = None

    def like(self, q: Tensor) -> NoiseSite:
        """On q's device and in its dtype."""
        if self.object_text is None or self.average is None:
            return self
        if self.object_text.dtype == q.dtype and self.object_text.device == q.device:
            return self
        return replace(self, object_text=self.object_text.to(q), average=self.average.to(q.device))


@dataclass(frozen=True, eq=False)
class NoisePlan:
    """strength: standard deviations of Z_text; target: number of the object whose relevance weighs the noise."""

    strength: float
    target: int
    sites: Mapping[SiteKey, NoiseSite]


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
    """texts M × [L_i, X]: content tokens of all object texts for noise by relevance; none for uniform noise."""
    shared = SharedText(texts, torch.device(device), dtype) if texts else None
    plans = {}
    for site in sites:
        text = shared.for_site(site.heads, site.width // site.heads) if shared else (None, None)
        plans[site.key] = NoiseSite(int(random_bits(_signed(seed), torch.tensor(site.number))), site.heads, *text)
    return NoisePlan(strength, target, plans)


def add_noise(
    out: Tensor,
    text: Tensor,
    q: Tensor,
    plan: NoisePlan,
    site: NoiseSite,
    parts: Sequence[RowGroup],
    pictures: Tensor,
    step: Tensor,
    object_keys: Callable[[], Tensor],
) -> Tensor:
    """Add the noise to the conditional rows of `out` [B, N, C], in place.

    text [B, N, C] is Z_text; it may be `out` itself. q [B, N, C]; pictures [P]: the numbers of those that the rows of
    one cond show, B is a multiple of P; step: the index of the sampling's step, an integer tensor [1]. object_keys()
    gives the UNet's own to_k of `site.object_text`, [L, C].
    """
    parts = [rows for rows in parts if rows.conditional]
    keys: Tensor | None = None
    if parts and site.object_text is not None:
        keys = object_keys().unflatten(-1, (site.heads, -1)).transpose(0, 1)  # [h, L, d], a view
    for rows in parts:
        clean = text[rows.at].float()
        amount = plan.strength * clean.std((1, 2), correction=0, keepdim=True)  # [b, 1, 1]
        if keys is not None and site.average is not None:
            relevance = raw_relevance(split_queries(q[rows.at], site.heads), keys, site.average, rows.length)
            amount = amount * relevance_weights(relevance, plan.target).unsqueeze(-1)  # [b, N, 1]
        numbers = pictures[torch.arange(rows.start, rows.stop, device=q.device) % len(pictures)]
        noise = normal(random_bits(random_bits(site.key, step), numbers), clean[0].numel())
        out[rows.at] += (amount * noise.view_as(clean)).to(out.dtype)
    return out


def relevance_weights(relevance: Tensor, target: int) -> Tensor:
    """w [B, N] in proportion to the target's share Ã, with a mean square of 1 over positions; A is [M, B, N]."""
    share = shares(relevance, Merge())[target]
    return share / share.square().mean(-1, keepdim=True).sqrt()


def random_bits(key: Tensor | int, index: Tensor) -> Tensor:
    """Output number `index` of the generator SplitMix64 (Steele, Lea and Flood 2014) seeded with `key`: 64 random bits.

    Broadcasts; int64, where the generator counts without signs: products wrap alike. A generator that is a function,
    unlike the host's own, gives the same numbers on every device, in any order, for a step that only the device knows.
    """
    bits = key + (index + 1) * _signed(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, 31)


def normal(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers [B, count], float32, one stream for each of keys [B], by Box and Muller."""
    bits = random_bits(keys.unsqueeze(1), torch.arange((count + 1) // 2, device=keys.device))
    # Two numbers of 32 bits: the radius wants one in (0, 1], the angle any.
    radius = (_shifted(bits, 32) + 1).float().mul_(2**-32).log_().mul_(-2).sqrt_()
    angle = (bits & WORD).float().mul_(math.tau * 2**-32)
    return torch.cat([radius * angle.cos(), radius * angle.sin()], 1)[:, :count]


def _signed(number: int) -> int:
    """The int64 with the bits of an unsigned number."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def _shifted(bits: Tensor, places: int) -> Tensor:
    """To the right, zeros follow from the left."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
