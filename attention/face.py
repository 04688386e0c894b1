"""What a face reference holds beside its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..weights.adapter import Adapter

MAX_STRUCTURE = 3.0


@dataclass(frozen=True, eq=False)
class Face:
    """One person's face, for adapters that read face embeddings. The pictures of its reference are aligned crops.

    embeddings: [B, F], of all the reference's pictures in the order of its batches, before normalisation.
    structure: s of FaceID Plus v2, how much the crops add to the embedding.
    adapter: the face's own adapter. None: the objects' adapter is a face adapter.
    clip_vision: the image encoder that this adapter needs. None: the objects'.
    """

    embeddings: Tensor
    structure: float = 1.0
    adapter: Adapter | None = None
    clip_vision: Any = None
