"""Directions of pictures and words: what every score takes cosines of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.batching import Tick, in_batches
from ...common.text import spoken
from .encoder import BATCH, ImageEncoder, TextImageEncoder


def embed(encoder: ImageEncoder, pictures: Sequence[Any], tick: Tick | None = None) -> Tensor:
    """[n, E] of length 1. pictures: PIL images or uint8 arrays [H, W, 3], of any sizes, at least one."""
    return torch.cat(in_batches(lambda batch: unit(encoder.images(batch), encoder.name), pictures, BATCH, tick))


def embed_words(encoder: TextImageEncoder, words: Sequence[str]) -> Tensor:
    """[n, E] of length 1, of the words without the prompts' syntax."""
    return unit(encoder.texts([spoken(each) for each in words]), encoder.name)


def unit(embeddings: Tensor, name: str = "encoder") -> Tensor:
    """Rows of length 1, float32. Raises ValueError for NaN, infinities and rows of zeros, which have no direction."""
    embeddings = embeddings.float()
    if not torch.isfinite(embeddings).all() or not embeddings.any(-1).all():
        raise ValueError(
            f"The embeddings of “{name}” hold NaN, infinite numbers or only zeros: start ComfyUI with --force-fp32 "
            "(mip.py curate: --device cpu), or load weights that are whole."
        )
    return F.normalize(embeddings, dim=-1)
