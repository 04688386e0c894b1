"""Object relevance: which positions of the latent belong to which object (paper §3.2).

Shapes: B rows, N latent positions, h heads of width d, M objects, L content tokens of all object texts together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .options import Merge

# Added to every A_i. It is far below any softmax over positions; where all A_i underflow it makes the shares equal
# instead of 0/0.
FLOOR = 1e-30
# The smallest divisor. Where all regions are 0 the total is 0, and the shares become 0 instead of 0/0.
MIN_TOTAL = 1e-36


def raw_relevance(queries: Tensor, object_keys: Tensor, average: Tensor, rows: int) -> Tensor:
    """A_i[n] = mean over heads and content tokens of softmax_n(k_token . q_n / sqrt(d)).

    queries: [h, d, B·N].
    object_keys: [h, L, d], already divided by sqrt(d).
    average: [M, h·L] float32, a matrix that takes the mean over each object's tokens and all heads.
    rows: B.
    Returns [M, B, N] float32; it sums to 1 over N.

    The softmax runs over *positions*, not over tokens. It is computed in float32: its values are of the order 1/N, and
    float16 would underflow.
    """
    logits = torch.bmm(object_keys, queries).unflatten(-1, (rows, -1))  # [h, L, B, N]
    attention = logits.softmax(-1, dtype=torch.float32)
    floor = average.new_full((), FLOOR)
    return torch.addmm(floor, average, attention.view(average.shape[1], -1)).unflatten(-1, (rows, -1))


def shares(relevance: Tensor, merge: Merge, region: Tensor | None = None, nobody: Tensor | None = None) -> Tensor:
    """Share of every object at every position: A_i / Σ_j A_j, the Ã_i of the merge.

    That is the merge "relevance". With "sum" every share is 1, or r_i. With "uniform" and "concat" the relevance should
    be the same everywhere (`even_shares`); sharpness, background, unclaimed and the normalisation "mean" do not act on
    them.

    With a = N·A (1 where a text prefers no position), sharpness p, background β, unclaimed u and regions r:

        Ã_i = c · r_i a_i^p / (Σ_j r_j a_j^p + β + (u · a*)^p)      a* = the geometric mean over positions of max_j a_j

    c is M for the paper's normalisation A_i / mean_j A_j, else 1.

    Regions also scale the result by max_j r_j. Soft edges then fade, and a position outside all regions gets nothing.

    relevance: [M, B, N] (or any [M, ...] with positions last), summing to 1 over N.
    region: [M, 1 or B, N] in 0..1, or None.
    nobody: [1, B, N], in the units of the relevance: one more competitor, which gets no share itself. It stands in
        place of unclaimed.
    Returns [M, B, N].
    """
    if merge.strategy == "sum":
        return torch.ones_like(relevance) if region is None else relevance.new_ones(()) * region
    background = None
    if merge.strategy == "relevance":
        if region is not None and (merge.sharpness != 1.0 or merge.unclaimed):
            relevance = relevance * (region > 0)
        if merge.unclaimed and nobody is None:
            nobody = merge.unclaimed * typical_best(relevance, region)
        if merge.sharpness != 1.0:
            # a^p relative to the largest a inside its region, so that high powers neither overflow nor vanish.
            peak = relevance.amax(0, keepdim=True).clamp_min(FLOOR)
            relevance = (relevance / peak) ** merge.sharpness
            nobody = None if nobody is None else (nobody / peak) ** merge.sharpness
            if merge.background:
                background = merge.background * (peak * relevance.shape[-1]) ** -merge.sharpness
        elif merge.background:
            background = merge.background / relevance.shape[-1]
    if region is not None:
        relevance = relevance * region
    total = relevance.sum(0, keepdim=True)
    if background is not None:
        total = total + background
    if nobody is not None:
        total = total + nobody
    if region is not None:
        share = relevance / total.clamp_min(MIN_TOTAL) * region.amax(0, keepdim=True)
    else:
        share = relevance / total
    if merge.strategy == "relevance" and merge.normalization == "mean":
        share = share * relevance.shape[0]
    return share


def typical_best(relevance: Tensor, region: Tensor | None = None) -> Tensor:
    """The geometric mean over positions of the strongest object's relevance: what leads where nothing stands out.

    relevance: [M, B, N], 0 outside its region.
    region: [M, 1 or B, 1 or N], or None. Positions outside all regions do not count.
    Returns [1, B, 1].
    """
    best = relevance.amax(0, keepdim=True).clamp_min(FLOOR).log()
    if region is None:
        return best.mean(-1, keepdim=True).exp()
    inside = (region.amax(0, keepdim=True) > 0).to(best).expand_as(best)
    return ((best * inside).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp_min(1)).exp()


def even_shares(objects: int, merge: Merge, region: Tensor | None = None) -> Tensor:
    """Shares for texts that prefer no position (A_i = 1/N everywhere).

    They apply to merges without relevance, and to the unconditional branch, whose object text is empty.
    region: [M, 1 or B, N] in 0..1, or None.
    Returns [M, 1, 1], or the shape of the regions.
    """
    like = region if region is not None else torch.ones(objects, 1, 1)
    # 1/N is flat in the units of `shares`, which reads N from the last axis.
    ones = like.new_full((objects, 1, like.shape[-1]), 1.0 / like.shape[-1])
    return shares(ones, merge, region)


def frozen_shares(recorded: Tensor, merge: Merge, region: Tensor | None = None) -> Tensor:
    """Shares from the maps of an earlier sampling instead of a measurement.

    recorded: [M + 1, B, N] in 0..1, the recorded shares; the last one is unclaimed.
    Returns [M, B, N].

    The plain merge returns the recorded shares unchanged. Background, sharpness and regions act on them as on a
    relevance that is A_i = M/N where an object has everything. The merge's unclaimed does not: the last map stands in
    its place.
    """
    relevance = recorded * ((len(recorded) - 1) / recorded.shape[-1]) + FLOOR
    return shares(relevance[:-1], merge, region, relevance[-1:])
