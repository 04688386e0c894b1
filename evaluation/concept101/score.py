"""Scores of one pair of Concept101: its pictures against its prompts, and against all pictures of both concepts."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..encoders.embeddings import embed, embed_words
from ..encoders.encoder import ImageEncoder, TextImageEncoder
from ..personalization import image_score, text_score
from .dataset import Concept, Pair, load


class Scorer:
    """Scores pairs. encoder: for CLIP-T and CLIP-I; image_encoder: for DINO, or None."""

    def __init__(self, encoder: TextImageEncoder, image_encoder: ImageEncoder | None = None) -> None:
        self.encoder, self.image_encoder = encoder, image_encoder
        # A concept belongs to several pairs, and its embeddings are only a few KB.
        self._concept = lru_cache(maxsize=None)(_seen)

    def row(self, pair: Pair, pictures: Sequence[Path]) -> dict[str, Any]:
        """Mean scores over the pair's pictures and concepts, as in the paper; nothing is cropped.

        pictures: files, one for each prompt.
        """
        made = [load(file) for file in pictures]
        seen = embed(self.encoder, made)
        words = embed_words(self.encoder, list(pair.prompts))
        row = {
            "id": f"{pair.number:03d}",
            "concepts": [concept.name for concept in pair.concepts],
            "pictures": len(made),
            "files": contents(pictures),
            "clip_t": float(text_score(seen, words).mean()),
            "clip_i": float(image_score(seen, [self._concept(self.encoder, c) for c in pair.concepts]).mean()),
        }
        if self.image_encoder is not None:
            dino = self.image_encoder
            row["dino"] = float(
                image_score(embed(dino, made), [self._concept(dino, concept) for concept in pair.concepts]).mean()
            )
        return row


def contents(files: Sequence[Path]) -> str:
    """A digest of the files' contents, by which scores know their pictures."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _seen(encoder: ImageEncoder, concept: Concept) -> Tensor:
    return embed(encoder, [load(file) for file, _ in concept.pictures])
