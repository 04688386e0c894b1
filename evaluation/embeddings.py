"""Directions of pictures and words: what every score takes cosines of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .encoders import BATCH, ImageEncoder, TextImageEncoder

Tick = Callable[[int], None]  # told how many pictures were encoded since; may raise to stop


def embed(encoder: ImageEncoder, pictures: Sequence[Any], tick: Tick | None = None) -> Tensor:
    """[n, E] of length 1. pictures: PIL images or uint8 arrays [H, W, 3], of any sizes, at least one."""
    parts = []
    for start in range(0, len(pictures), BATCH):
        batch = pictures[start : start + BATCH]
        parts.append(unit(encoder.images(batch), encoder.name))
        if tick:
            tick(len(batch))
    return torch.cat(parts)


def embed_words(encoder: TextImageEncoder, words: Sequence[str]) -> Tensor:
    """[n, E] of length 1."""
    return unit(encoder.texts(words), encoder.name)


def unit(embeddings: Tensor, name: str = "encoder") -> Tensor:
    """Rows of length 1, float32. Raises ValueError for NaN, infinities and rows of zeros, which have no direction."""
    embeddings = embeddings.float()
    if not torch.isfinite(embeddings).all() or not embeddings.any(-1).all():
        raise ValueError(
            f"The embeddings of “{name}” hold NaN, infinite numbers or only zeros: run it in a wider precision "
            "(float32), or load weights that are whole."
        )
    return F.normalize(embeddings, dim=-1)
