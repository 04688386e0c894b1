"""The formulations that the pack's merge is measured against, written from their definitions in plain torch.

Each computes one site. Shapes: q [B, N, C] with rows [uncond…, cond…]; context weights to_k [C, X]; adapter weights
to_k_ip and to_v_ip [C, X].
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """Inputs and weights of one cross-attention with M objects of T image tokens."""

    heads: int
    scale: float
    q: Tensor  # [B, N, C]
    k: Tensor  # [B, 77, C]
    v: Tensor  # [B, 77, C]
    to_k: Tensor  # [C, X]
    to_v: Tensor  # [C, X]
    to_k_ip: Tensor  # [C, X]
    to_v_ip: Tensor  # [C, X]
    head: Tensor  # [C]
    image_tokens: Tensor  # [B, M, T, X]
    object_text: Tensor  # [B, M, 77, X]
    counts: tuple[int, ...]  # content tokens of each object text


def split(x: Tensor, heads: int) -> Tensor:
    """[B, N, h·d] -> [B, h, N, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    out = F.scaled_dot_product_attention(split(q, heads), split(k, heads), split(v, heads))
    return out.transpose(1, 2).flatten(2)


def text_only(site: Site) -> Tensor:
    return attend(site.q, site.k, site.v, site.heads)


def official(site: Site) -> Tensor:
    """The method as its authors published it.

    Every row gets, for each object, one attention over its image tokens and one map over all 77 text tokens. All
    projections are computed at every step, and all probabilities are written out.
    """
    objects = site.image_tokens.shape[1]
    out = attend(site.q, site.k, site.v, site.heads)
    q = split(site.q, site.heads)
    width = q.shape[-1]
    features, maps = [], []
    for i in range(objects):
        k = split(site.image_tokens[:, i] @ site.to_k_ip.T, site.heads)
        v = split(site.image_tokens[:, i] @ site.to_v_ip.T, site.heads)
        probabilities = (q @ k.transpose(-1, -2) * width**-0.5).softmax(-1)
        features.append((probabilities @ v).transpose(1, 2).flatten(2) * site.scale)
        text_k = split(site.object_text[:, i] @ site.to_k.T, site.heads)
        _ = site.object_text[:, i] @ site.to_v.T  # the published code projects values here as well
        maps.append((text_k @ q.transpose(-1, -2) * width**-0.5).softmax(-1).mean(1))  # [B, 77, N]
    relevance = torch.stack([m[:, 1 : 1 + n].mean(1) for m, n in zip(maps, site.counts, strict=True)], 1)  # [B, M, N]
    relevance = relevance / relevance.sum(1, keepdim=True)
    gate = torch.sigmoid(out @ site.head)
    gate = gate / gate.mean(-1, keepdim=True)  # [B, N]
    weights = (relevance * gate.unsqueeze(1)).unsqueeze(-1)
    return out + (weights * torch.stack(features, 1)).sum(1)


def plain_ip_adapter(site: Site) -> Tensor:
    """One IP-Adapter for each object, chained as packs do it: keys and values are projected at every step."""
    out = attend(site.q, site.k, site.v, site.heads)
    for i in range(site.image_tokens.shape[1]):
        tokens = site.image_tokens[:, i]
        out = out + attend(site.q, tokens @ site.to_k_ip.T, tokens @ site.to_v_ip.T, site.heads) * site.scale
    return out
