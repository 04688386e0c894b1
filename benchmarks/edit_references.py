"""Time and memory of one attention of FLUX.1 Kontext: by itself, with the bias as more channels, with a dense mask.

The shares are given, since both ways need the same. Queries, keys and values are random.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.share_bias import APART, Layout, apart_channels, bias_of, key_channels, query_channels, with_channels
from .measure import peak_memory

HEADS, WIDTH, TEXT = 24, 128, 512  # FLUX.1's heads, their width, the tokens of its prompt
REFERENCES = (2, 4)


def bench_edit(
    interleaved: Callable, rounds: int, device: torch.device, dtype: torch.dtype, *, pixels: int
) -> list[dict]:
    """Milliseconds of one attention, and MiB that it needs at its peak, with references as large as the picture.

    interleaved: runs and times functions, as `bench.interleaved`.
    pixels: side of the picture and of each reference.
    """
    rows = []
    print(f"{'references':>10} {'positions':>9}   milliseconds: plain channels mask   MiB: plain channels mask")
    for count in REFERENCES:
        positions = (pixels // 16) ** 2
        layout = Layout(TEXT, positions, (positions,) * count)
        draw = torch.Generator().manual_seed(0)
        made = (torch.randn(1, HEADS, layout.total, WIDTH, generator=draw) for _ in range(3))
        q, k, v = (each.to(device, dtype) for each in made)
        shares = torch.rand(count, 1, positions, generator=draw).softmax(0).to(device)
        ways = {
            "plain": partial(F.scaled_dot_product_attention, q, k, v),
            "channels": partial(by_channels, q, k, v, layout, shares),
            "mask": partial(by_mask, q, k, v, layout, shares),
        }
        off = float((ways["channels"]() - ways["mask"]()).norm() / ways["mask"]().norm())
        assert off < 0.02, f"the two ways differ by {off}"
        times = interleaved(ways, rounds, device)
        memory = {name: peak_memory(way, device) / 2**20 for name, way in ways.items()}
        rows.append({"references": count, "positions": layout.total, "ms": times, "mib": memory, "off": off})
        said = " ".join(f"{value:8.1f}" for value in (*times.values(), *memory.values()))
        print(f"{count:>10} {layout.total:>9}   {said}")
    return rows


def by_channels(q: Tensor, k: Tensor, v: Tensor, layout: Layout, shares: Tensor) -> Tensor:
    """What the pack does at every block."""
    keys = key_channels(layout, k)
    bias = [(slice(0, len(q)), bias_of(shares, 1.0))]
    apart = apart_channels(layout, keys, True)
    queries = query_channels(layout, apart, bias, range(len(shares)), len(q))
    return F.scaled_dot_product_attention(*with_channels(q, k, v, queries, keys))[..., : v.shape[-1]]


def by_mask(q: Tensor, k: Tensor, v: Tensor, layout: Layout, shares: Tensor) -> Tensor:
    """The same by a mask of all positions by all."""
    mask = q.new_zeros(len(q), 1, layout.total, layout.total)
    picture = layout.picture
    for part, values in zip(layout.reference_slices(), bias_of(shares, 1.0), strict=True):
        mask[:, 0, picture, part] = values.unsqueeze(-1).to(mask.dtype)
        for other in layout.reference_slices():
            if other != part:
                mask[:, 0, part, other] = -APART
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
