"""One cross-attention site in training: the equations of `attention/` where every row has objects of its own.

The functions of `attention/` take objects that all rows share, and a dimension of heads. Here the rows are folded into
that dimension as B·h "heads", so that projection, attention, shares and gate exist only once. Where the gate acts is
written here again: sampling adds in place to what other packs may have changed, and training needs gradients. Relevance
is detached, as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.fusion_head import fusion_gate
from ..attention.merge import object_attention
from ..attention.options import Merge
from ..attention.relevance import even_shares, raw_relevance, shares
from ..weights.adapter import SiteWeights


@dataclass(frozen=True, eq=False)
class RowObjects:
    """The objects of B rows. Rows with fewer than M objects are padded.

    tokens: [B, M, T, X] image tokens.
    texts: [B, L, X] content tokens of all object texts of a row, one after another.
    spans: [B, M, L] is 1/L_i on the tokens of object i and 0 elsewhere, so it averages over them.
    present: [M, B, 1] is 1 for an object and 0 for padding.
    """

    tokens: Tensor
    texts: Tensor
    spans: Tensor
    present: Tensor

    @classmethod
    def gather(cls, tokens: Tensor, texts: Sequence[Sequence[Tensor]]) -> RowObjects:
        """Pad the objects of all rows.

        tokens: [ΣM_b, T, X] of all objects, one after another.
        texts: for every row and every object [L_i, X].
        """
        counts = [len(row) for row in texts]
        rows, most = len(texts), max(counts)
        longest = max(sum(text.shape[0] for text in row) for row in texts)
        padded = tokens.new_zeros(rows, longest, tokens.shape[-1])
        spans = torch.zeros(rows, most, longest)
        for b, row in enumerate(texts):
            start = 0
            for i, text in enumerate(row):
                stop = start + text.shape[0]
                padded[b, start:stop] = text.to(padded)
                spans[b, i, start:stop] = 1 / text.shape[0]
                start = stop
        present = torch.tensor([[float(i < count) for count in counts] for i in range(most)]).unsqueeze(-1)
        per_row = [F.pad(each, (0, 0, 0, 0, 0, most - len(each))) for each in tokens.split(counts)]
        return cls(torch.stack(per_row), padded, spans.to(tokens.device), present.to(tokens.device))


@dataclass(frozen=True, eq=False)
class Merging:
    """All sites of one forward pass of the UNet. The frozen model calls it at every cross-attention."""

    site_weights: Mapping[int, SiteWeights]
    objects: RowObjects
    merge: Merge
    gated: str
    scale: float = 1.0

    def __call__(self, number: int, heads: int, z_text: Tensor, q: Tensor, to_k: Callable[[Tensor], Tensor]) -> Tensor:
        """The merged attention [B, N, C] of a site.

        number, heads: of the site.
        z_text: [B, N, C], the attention to the prompt.
        q: [B, N, C].
        to_k: the UNet's key projection.
        """
        return merge_site(
            z_text, q, self.site_weights[number], self.objects, heads, to_k, self.merge, self.gated, self.scale
        )


def merge_site(
    z_text: Tensor,
    q: Tensor,
    weights: SiteWeights,
    objects: RowObjects,
    heads: int,
    to_k: Callable[[Tensor], Tensor],
    merge: Merge,
    gated: str = "image",
    scale: float = 1.0,
) -> Tensor:
    """Steps 2 to 6 of the method (docs/architecture.md) with gradients to the weights, the image tokens, q and z_text.

    image gate: Z = Z_text + s Σ_i Ã_i g̃ Z_i        text gate: Z = g̃ Z_text + s Σ_i Ã_i Z_i
    """
    count = objects.tokens.shape[1]
    inverse_root = (q.shape[-1] // heads) ** -0.5
    queries = _fold(q, heads).transpose(1, 2)  # [B·h, d, N]
    tokens = objects.tokens.flatten(1, 2).to(q.dtype)  # [B, M·T, X]
    keys, values = (_fold(each, heads) for each in weights.on(q.device, q.dtype).keys_values(tokens, heads))
    share = scale * _shares(queries.detach(), objects, heads, inverse_root, to_k, merge)  # [M, B, N or 1]
    if gated != "off" and weights.head is not None:
        gate = fusion_gate(z_text, weights.head.to(z_text.dtype))  # [B, N]
        if gated == "image":
            share = share * gate
        else:
            z_text = z_text * gate.unsqueeze(-1).to(z_text.dtype)
    attention = object_attention(queries, keys * inverse_root, count).unflatten(0, (-1, heads))  # [B, h, M, T, N]
    attention = attention * share.transpose(0, 1)[:, None, :, None].to(attention.dtype)
    merged = attention.flatten(0, 1).flatten(1, 2).transpose(1, 2) @ values  # [B·h, N, d]
    return z_text + merged.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)


@torch.no_grad()
def _shares(
    queries: Tensor,
    objects: RowObjects,
    heads: int,
    inverse_root: float,
    to_k: Callable[[Tensor], Tensor],
    merge: Merge,
) -> Tensor:
    """Ã_i [M, B, N], or [M, B, 1] if they do not vary over positions. queries: [B·h, d, N]."""
    rows, count, length = objects.spans.shape
    # As a region, which is 0 everywhere, `present` leaves out an object that only pads its row.
    if merge.strategy != "relevance":
        share = even_shares(count, merge, objects.present)
    else:
        keys = _fold(to_k((objects.texts * inverse_root).to(queries.dtype)), heads)  # [B·h, L, d]
        # One matrix for all rows. It averages over a row's own heads and tokens and is zero for other rows' tokens.
        average = objects.spans.new_zeros(rows, count, rows, heads, length)
        row = torch.arange(rows, device=average.device)
        average[row, :, row] = (objects.spans / heads).unsqueeze(2)
        relevance = raw_relevance(queries, keys, average.flatten(0, 1).flatten(1), 1)  # [B·M, 1, N]
        share = shares(relevance.view(rows, count, -1).transpose(0, 1), merge, objects.present)
    if merge.strategy == "relevance" and merge.normalization == "mean":  # `shares` multiplied by the padded number
        share = share * (objects.present.sum(0) / count)
    return share


def _fold(x: Tensor, heads: int) -> Tensor:
    """[B, n, h·d] -> [B·h, n, d]"""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)
