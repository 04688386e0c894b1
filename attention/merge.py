"""Attention to the image tokens of all objects at once.

The definition, Σ_i factor_i · softmax(q K_iᵀ/√d) V_i, needs M attentions and M full-size products. The factor, share
times gate, is one number per position, so it can multiply the probabilities instead. Two thin matrix products then do
the whole merge:

    Z += [factor_1 P_1 … factor_M P_M] [V_1; …; V_M]        P_i = softmax over the T tokens of object i

All tensors are laid out [h, tokens, positions]. The heads of q are then a view of [B, N, C] without a copy, both
softmaxes run along long contiguous rows, and the last product adds straight into the text attention's memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEVER = -1e4  # the logit of a token that nothing attends to: logits do not lie so far apart, and fp16 holds the number


def split_queries(q: Tensor, heads: int) -> Tensor:
    """[B, N, h·d] -> [h, d, B·N], a view."""
    return q.reshape(-1, heads, q.shape[-1] // heads).permute(1, 2, 0)


def object_attention(queries: Tensor, keys: Tensor, sets: int, padding: Tensor | None = None) -> Tensor:
    """Attention probabilities with one softmax for each set of tokens, as those of an object.

    queries: [h, d, BN], the N positions of all B rows.
    keys: [h, sets·T, d], already divided by sqrt(d).
    padding: [sets·T, 1], 0 at a token and `NEVER` at padding; None without padding.
    Returns [h, sets, T, BN].
    """
    logits = torch.bmm(keys, queries)
    if padding is not None:
        logits = logits + padding
    return logits.unflatten(1, (sets, -1)).softmax(2)


def concat_attention(queries: Tensor, keys: Tensor, log_regions: Tensor) -> Tensor:
    """One softmax over the tokens of all objects ("concat"), limited by regions.

    r_i exp(L_i) / Σ_j r_j exp(L_j), computed by adding log r_i to the logits L_i. Outside its region an object's tokens
    vanish and the others take over.

    queries, keys: as in `object_attention`.
    log_regions: [M, 1, BN], see `log_region`.
    Returns [h, 1, M·T, BN].
    """
    logits = torch.bmm(keys, queries).unflatten(1, (log_regions.shape[0], -1))  # [h, M, T, BN]
    return (logits + log_regions.to(logits.dtype)).flatten(1, 2).softmax(1).unsqueeze(1)


def log_region(region: Tensor) -> Tensor:
    """log r_i in float32, of a region of any shape; `NEVER` where r_i is 0."""
    return region.float().log().clamp_min(NEVER)


def accumulate(out: Tensor, probabilities: Tensor, values: Tensor) -> None:
    """out += probabilities · values, in place.

    out: [B, N, h·d], contiguous.
    probabilities: [h, objects, T, BN].
    values: [h, objects·T, d].
    """
    heads, _, width = values.shape
    rows = probabilities.flatten(1, 2).transpose(1, 2)  # [h, BN, objects·T]
    if torch.compiler.is_compiling():  # inductor cannot follow a product into a strided view, and it fuses the sum
        out += torch.bmm(rows, values).transpose(0, 1).reshape(out.shape)
    else:
        per_head = out.view(-1, heads, width).transpose(0, 1)  # [h, BN, d], strided view of `out`
        per_head.baddbmm_(rows, values)
