"""References in an edit model's own sequence: the picture's positions listen to each by its share.

Such a model attends from every position to all references' tokens alike. Here the logits of picture position n to the
tokens of reference i get

    b_i[n] = strength · log(M Ã_i[n]), clipped,

which is 0 where the shares are equal. References may also be kept apart: then none attends to another's tokens.

A matrix of all positions by all positions is never made. A bias that is one number for a position and a reference is r
more channels, one for each reference:

    q' = [q √((d + r)/d), b √(d + r)],   k' = [k, e],   v' = [v, 0],   so that   q'·k'/√(d + r) = q·k/√d + b·e

with e, 1 in the channel of the key's own reference and else 0. So any attention function serves, and fused ones stay
fused: r is padded to a multiple of 8.

Related: Conceptrol (2503.06568), Bounded Attention (2403.16990) and DAR (2602.19497) also steer such attention.
Shapes: B rows, h heads of width d, S = text + N picture + reference positions, in this order; M objects, R references.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STEP = 8  # fused attention takes widths that are multiples of it
LIMIT = 8.0  # of a bias: e^-8 leaves a reference 0.0003 of its weight
APART = 200.0  # instead of infinity, for references kept apart; far above any logit, and float16 still holds it


class Layout(NamedTuple):
    """Lengths of the parts of a sequence, in their order: text, the picture's positions, references."""

    text: int
    positions: int
    references: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.text + self.positions + sum(self.references)

    @property
    def picture(self) -> slice:
        """Where the picture's positions are."""
        return slice(self.text, self.text + self.positions)

    def reference_slices(self) -> list[slice]:
        """Where each reference's tokens are."""
        start, slices = self.text + self.positions, []
        for length in self.references:
            slices.append(slice(start, start + length))
            start += length
        return slices


def bias_of(shares: Tensor, strength: float, total: float = 1.0) -> Tensor:
    """b_i[n] = strength · log(M Ã_i[n]), clipped to ±`LIMIT`. shares: [M, B, N], adding up to `total` at most."""
    return (strength * (shares.float() * (len(shares) / total)).log()).clamp(-LIMIT, LIMIT)


def key_channels(layout: Layout, like: Tensor) -> Tensor:
    """e [S, r]: which reference each key belongs to, on the device and in the dtype of `like`."""
    width = STEP * math.ceil(max(1, len(layout.references)) / STEP)
    channels = like.new_zeros(layout.total, width)
    for number, its_tokens in enumerate(layout.reference_slices()):
        channels[its_tokens, number] = 1
    return channels


def apart_channels(layout: Layout, keys: Tensor, apart: bool) -> Tensor:
    """b [S, r] of all positions' queries before any bias. It is the same at every block.

    keys: [S, r], from `key_channels`.
    apart: whether references do not attend to each other.
    """
    channels = torch.zeros_like(keys)
    if apart:
        for number, its_tokens in enumerate(layout.reference_slices()):
            channels[its_tokens, : len(layout.references)] = -APART
            channels[its_tokens, number] = 0
    return channels


def query_channels(
    layout: Layout, channels: Tensor, bias: Sequence[tuple[slice, Tensor]], owners: Sequence[int | None], rows: int
) -> Tensor:
    """b [rows, S, r] of all positions' queries.

    channels: [S, r], from `apart_channels`.
    bias: b_i[n], [M, b, N], of some of the rows; the others' is 0.
    owners: the object that each reference shows; None: no object, and no bias.
    """
    channels = channels.repeat(rows, 1, 1)
    for at, of_rows in bias:
        for reference, owner in enumerate(owners):
            if owner is not None:
                channels[at, layout.picture, reference] = of_rows[owner].to(channels.dtype)
    return channels


def with_channels(
    q: Tensor, k: Tensor, v: Tensor, query: Tensor, key: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """q', k', v' of width d + r. q, k, v: [B, h, S, d]; q may lack positions at the end.

    query, key: [B or 1, S, r] and [S, r].
    scale: what the attention multiplies its logits with; None: 1 over the root of the width that it gets.
    """
    width, more = q.shape[-1], key.shape[-1]
    if scale is None:
        q, query = q * ((width + more) / width) ** 0.5, query * (width + more) ** 0.5
    else:
        query = query / scale
    query = query[:, : q.shape[2]].unsqueeze(1).expand(len(q), q.shape[1], -1, -1)
    key = key.expand(len(k), k.shape[1], -1, -1)
    return torch.cat([q, query.to(q.dtype)], -1), torch.cat([k, key.to(k.dtype)], -1), F.pad(v, (0, more))


def without_channels(out: Tensor, heads: int, width: int) -> Tensor:
    """The attention's result [B, S, h·(d + r)] without the channels that were added: [B, S, h·d]."""
    return out.unflatten(-1, (heads, -1))[..., :width].flatten(-2)
