"""Object texts as the sites read them: scaled for a head width, with the matrix that averages over their tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class SharedText:
    """Object texts scaled for a head width, with their averaging matrices.

    They are made once for each head layout; a UNet has few distinct layouts.
    texts: M × [L_i, X], content tokens.
    """

    def __init__(self, texts: Sequence[Tensor], device: torch.device, dtype: torch.dtype) -> None:
        self._text = torch.cat([text.to(device, torch.float32) for text in texts])  # [L, X]
        self._counts = [text.shape[0] for text in texts]
        self._dtype = dtype
        self._made: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def for_site(self, heads: int, head_width: int) -> tuple[Tensor, Tensor]:
        """For h heads of width d: content_tokens and average.

        content_tokens: [L, X], all texts divided by sqrt(d), in the plan's dtype.
        average: [M, h·L] float32, 1 / (h L_i) on the tokens of object i in every head (see `raw_relevance`).
        """
        if (heads, head_width) not in self._made:
            # to_k is linear without bias: dividing the text by sqrt(d) divides the keys, and does so only once.
            text = (self._text * head_width**-0.5).to(self._dtype)
            self._made[heads, head_width] = text, averages(self._counts, heads).to(self._text.device)
        return self._made[heads, head_width]


def averages(counts: Sequence[int], heads: int) -> Tensor:
    """[M, h·L] float32: 1 / (h L_i) on the L_i tokens of object i in every head (see `raw_relevance`)."""
    rows = torch.zeros(len(counts), sum(counts))
    start = 0
    for i, count in enumerate(counts):
        rows[i, start : start + count] = 1.0 / max(1, count * heads)
        start += count
    return rows.repeat(1, heads)
