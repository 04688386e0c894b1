"""Unit embeddings of pictures and words. All scores take cosines of these."""

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
    """Unit embeddings [n, E] of pictures.

    pictures: at least one, PIL images or uint8 arrays [H, W, 3], of any sizes.
    tick: called with the number of pictures encoded since the last call.
    """
    return torch.cat(in_batches(lambda batch: unit(encoder.images(batch), encoder.name), pictures, BATCH, tick))


def embed_words(encoder: TextImageEncoder, words: Sequence[str]) -> Tensor:
    """Unit embeddings [n, E] of words, without the syntax of prompts."""
    return unit(encoder.texts([spoken(each) for each in words]), encoder.name)


def unit(embeddings: Tensor, name: str = "encoder") -> Tensor:
    """Embeddings [n, E] scaled to length 1, in float32.

    name: the encoder's, for the error message.

    Raises ValueError for NaN, infinities, and rows of zeros, which have no direction.
    """
    embeddings = embeddings.float()
    if not torch.isfinite(embeddings).all() or not embeddings.any(-1).all():
        raise ValueError(
            f"The embeddings of “{name}” hold NaN, infinite numbers or only zeros: start ComfyUI with --force-fp32 "
            "(mip.py curate: --device cpu), or load weights that are whole."
        )
    return F.normalize(embeddings, dim=-1)
