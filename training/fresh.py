"""An adapter to start from where there is no file: the UNet's own projections read the image tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..common.rng import generator
from ..weights.adapter import Adapter, build_adapter
from ..weights.site_keys import PARTS
from ..weights.sites import Site, SiteKey


def fresh_adapter(
    sites: Sequence[Site], attentions: Mapping[SiteKey, Any], encoder_width: int, tokens: int = 4, seed: int = 0
) -> Adapter:
    """Base family: to_k_ip and to_v_ip are copies of to_k and to_v; the projection of the image embedding (width
    `encoder_width`) to `tokens` tokens is random, so it must be trained too (train = "all")."""
    context, random = sites[0].context_dim, generator(seed, "fresh adapter")
    rows = tokens * context
    flat: dict[str, Tensor] = {
        "image_proj.proj.weight": torch.randn(rows, encoder_width, generator=random) * encoder_width**-0.5,
        "image_proj.proj.bias": torch.zeros(rows),
        "image_proj.norm.weight": torch.ones(context),
        "image_proj.norm.bias": torch.zeros(context),
    }
    for site in sites:
        own = attentions[site.key]
        for part, module in zip(PARTS, (own.to_k, own.to_v), strict=False):
            flat[f"ip_adapter.{site.number}.{part}"] = module.weight.detach().to("cpu", torch.float32, copy=True)
    return build_adapter(flat, "a fresh adapter")
