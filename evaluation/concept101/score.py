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
    """encoder: CLIP-T and CLIP-I; image_encoder: DINO, or None; file_names: see `texts_of`."""

    def __init__(
        self, encoder: TextImageEncoder, image_encoder: ImageEncoder | None = None, file_names: bool = False
    ) -> None:
        self.encoder, self.image_encoder, self.file_names = encoder, image_encoder, file_names
        # A concept belongs to several pairs; its vectors are a few KB.
        self._concept = lru_cache(maxsize=None)(_seen)

    def row(self, pair: Pair, pictures: Sequence[Path]) -> dict[str, Any]:
        """Means over the pair's pictures (one a prompt) and concepts, as in the paper: nothing is cropped."""
        texts = texts_of(pair, self.file_names)
        made = [load(pictures[number]) for number in texts]
        seen = embed(self.encoder, made)
        words = embed_words(self.encoder, list(texts.values()))
        row = {
            "id": f"{pair.number:03d}",
            "concepts": [concept.name for concept in pair.concepts],
            "pictures": len(pictures),
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


def texts_of(pair: Pair, file_names: bool) -> dict[int, str]:
    """The text for CLIP-T of every picture that counts, by its number.

    file_names: as in the official code, which names a picture “PROMPT_gen.png” and later reads its text from the name,
    up to the first period. So a prompt without one gets “_gen.” at its end, and of two pictures of one prompt the first
    is overwritten.
    """
    if not file_names:
        return dict(enumerate(pair.prompts))
    last = {f"{prompt}_gen.png": number for number, prompt in enumerate(pair.prompts)}
    return {number: name.partition(".")[0] + "." for name, number in last.items()}


def contents(files: Sequence[Path]) -> str:
    """A digest of the files' contents, by which scores know their pictures."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]


def _seen(encoder: ImageEncoder, concept: Concept) -> Tensor:
    return embed(encoder, [load(file) for file, _ in concept.pictures])
