"""Object relevance: which positions of the latent belong to which object (paper §3.2; steps 3 and 4 of the method).

Shapes: B rows, N latent positions, h heads of width d, M objects, L content tokens of all object texts together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .options import Merge

# Added to every A_i: far below any softmax over positions, yet where all of them underflow the shares become equal
# instead of 0/0. A total of nothing but regions' zeros lies below LEAST and gives shares of 0.
FLOOR = 1e-30
LEAST = 1e-36


def raw_relevance(queries: Tensor, object_keys: Tensor, average: Tensor, rows: int) -> Tensor:
    """A_i[n] = mean over heads and content tokens of softmax_n(k_token . q_n / sqrt(d)).

    queries [h, d, B·N]; object_keys [h, L, d], already divided by sqrt(d); average [M, h·L] float32, the mean over
    each object's tokens and all heads as a matrix. The softmax runs over *positions*, in float32, because its values
    are of the order 1/N and float16 would underflow. Returns [M, B, N] float32, each row summing to 1 over N.
    """
    logits = torch.bmm(object_keys, queries).unflatten(-1, (rows, -1))  # [h, L, B, N]
    attention = logits.softmax(-1, dtype=torch.float32)
    floor = average.new_full((), FLOOR)
    return torch.addmm(floor, average, attention.view(average.shape[1], -1)).unflatten(-1, (rows, -1))


def shares(relevance: Tensor, merge: Merge, region: Tensor | None = None, nobody: Tensor | None = None) -> Tensor:
    """Share of every object at every position: A_i / Σ_j A_j, the Ã_i of the merge.

    relevance [M, B, N] (or any [M, ...] with positions last) summing to 1 over N; region [M, 1, N] in 0..1 or None.
    With a = N·A (1 where the text does not care), sharpness p and background β:

        Ã_i = c · r_i a_i^p / (Σ_j r_j a_j^p + β)     c = M for the paper's normalisation A_i / mean_j A_j, else 1

    and regions scale the result by max_j r_j, so that soft edges fade and a position outside all regions gets nothing.
    nobody [1, B, N] is one more competitor, in the units of the relevance, that gets no share.
    """
    if merge.strategy == "sum":
        return torch.ones_like(relevance) if region is None else relevance.new_ones(()) * region
    background = None
    if merge.strategy == "relevance":
        if merge.sharpness != 1.0:
            # a^p relative to the largest a that has a say here, so that high powers neither overflow nor vanish.
            if region is not None:
                relevance = relevance * (region > 0)
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
        share = relevance / total.clamp_min(LEAST) * region.amax(0, keepdim=True)
    else:
        share = relevance / total
    if merge.strategy == "relevance" and merge.normalization == "mean":
        share = share * relevance.shape[0]
    return share


def flat_shares(objects: int, merge: Merge, region: Tensor | None = None) -> Tensor:
    """Shares of a text that prefers no position (A_i = 1/N everywhere): the merge without relevance, and what the
    empty object text "" of the unconditional branch gives. [M, 1, 1], or [M, 1, N] with regions."""
    like = region if region is not None else torch.ones(objects, 1, 1)
    # One position with A = 1 is flat in the units of `shares`; expand so that N of the region does not rescale it.
    ones = like.new_full((objects, 1, like.shape[-1]), 1.0 / like.shape[-1])
    return shares(ones, merge, region)


def frozen_shares(recorded: Tensor, merge: Merge, region: Tensor | None = None) -> Tensor:
    """Shares from maps of an earlier sampling instead of a measurement.

    recorded [M + 1, B, N] in 0..1: its shares, the last one what nobody claimed. With the plain merge the recorded
    shares come back as they are; its background, sharpness and regions act on them as on a relevance that is A_i = M/N
    where an object has everything. Returns [M, B, N].
    """
    relevance = recorded * ((len(recorded) - 1) / recorded.shape[-1]) + FLOOR
    return shares(relevance[:-1], merge, region, relevance[-1:])
